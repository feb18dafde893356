"""MHA files read a slice at a time, however large and whether compressed or not."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from nnunet_semi.errors import Problem, Unusable, cause_of

TYPES = {
    "MET_UCHAR": "u1",
    "MET_CHAR": "i1",
    "MET_USHORT": "u2",
    "MET_SHORT": "i2",
    "MET_UINT": "u4",
    "MET_INT": "i4",
    "MET_ULONG_LONG": "u8",
    "MET_LONG_LONG": "i8",
    "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}
CHUNK = 1 << 20
LONGEST_HEADER = 1 << 16
TRUE = ("T", "t", "1")  # what ITK takes for true begins with one of these


@dataclass(frozen=True)
class Header:
    """What the text at the beginning of an MHA file says.

    Attributes:
        path: the file.
        offset: where the data begin, in bytes.
        size: number of pixels along x, y, z, …
        channels: values per pixel.
        dtype: of a value.
        compressed: whether the data are one zlib stream.
    """

    path: Path
    offset: int
    size: tuple[int, ...]
    channels: int
    dtype: np.dtype
    compressed: bool

    @property
    def bytes_per_slice(self) -> int:
        """Of what belongs to one index of the last axis."""
        return int(np.prod(self.size[:-1])) * self.channels * self.dtype.itemsize

    @property
    def bytes_of_data(self) -> int:
        """Of everything."""
        return self.bytes_per_slice * self.size[-1]


def read_header(path: Path) -> Header:
    """The header of an MHA file that holds its own data.

    Raises:
        Unusable: it is none, or names another file as the place of the data, which is never opened.
    """
    try:
        with path.open("rb") as file:
            text = file.read(LONGEST_HEADER)
    except OSError as error:
        raise Unusable(Problem(path, cause_of(error), "a file that can be read")) from error
    fields: dict[str, str] = {}
    offset = 0
    for line in text.splitlines(keepends=True):
        key, equals, value = line.decode("latin-1").partition("=")
        offset += len(line)
        if not equals:
            break
        fields[key.strip()] = value.strip()
        if key.strip() == "ElementDataFile":
            return _understand(path, fields, offset)
    raise Unusable(Problem(path, "no header of an MHA file", "lines such as `NDims = 3`, up to ElementDataFile"))


def _understand(path: Path, fields: dict[str, str], offset: int) -> Header:
    if fields["ElementDataFile"].upper() != "LOCAL":
        found = f"a header that points to other files ({fields['ElementDataFile']})"
        raise Unusable(Problem(path, found, "ElementDataFile = LOCAL: the data in the same file"))
    kind = fields.get("ElementType", "")
    if kind not in TYPES:
        found = f"the ElementType {kind}" if kind else "no ElementType"
        raise Unusable(Problem(path, found, f"one of {', '.join(TYPES)}: write it again as such"))
    try:
        size = tuple(int(number) for number in fields["DimSize"].split())
        channels = int(fields.get("ElementNumberOfChannels", "1"))
        if len(size) != int(fields["NDims"]) or min(*size, channels) < 1:
            raise ValueError(f"DimSize = {fields['DimSize']}")
    except (KeyError, ValueError) as error:
        found = f"a header that cannot be understood ({error})"
        raise Unusable(Problem(path, found, "numbers in NDims, DimSize and ElementNumberOfChannels")) from error
    most_significant_first = fields.get("BinaryDataByteOrderMSB", fields.get("ElementByteOrderMSB", "False"))
    dtype = np.dtype(TYPES[kind]).newbyteorder(">" if most_significant_first.startswith(TRUE) else "<")
    return Header(path, offset, size, channels, dtype, fields.get("CompressedData", "False").startswith(TRUE))


def refuse_incomplete(header: Header) -> None:
    """Raises `Unusable` where the data are fewer than the header says, or their compression is damaged."""
    if not header.compressed:
        present = header.path.stat().st_size - header.offset
    else:
        stream = _Stream(header)
        present = sum(iter(lambda: stream.skip(CHUNK), 0))
    if present < header.bytes_of_data:
        found = f"{present} of {header.bytes_of_data} bytes of data"
        raise Unusable(Problem(header.path, found, "a complete file; fetch it again"))


def read_slice(header: Header, index: int) -> np.ndarray:
    """The values at an index of the last axis: y × x × channels for a stack of pictures.

    Compressed data can be read from their beginning only. A stream is kept open for that, so that slices cost nothing
    extra while they are asked for in ascending order.

    Raises:
        Unusable: the file ends before.
    """
    stream = _stream(header)
    if stream.position > index * header.bytes_per_slice:
        _stream.cache_clear()
        stream = _stream(header)
    stream.skip(index * header.bytes_per_slice - stream.position)
    data = stream.read(header.bytes_per_slice)
    if len(data) < header.bytes_per_slice:
        raise Unusable(Problem(header.path, f"an end within slice {index + 1}", "a complete file; fetch it again"))
    values = np.frombuffer(data, header.dtype)
    return values.reshape(*reversed(header.size[:-1]), *([header.channels] if header.channels > 1 else []))


class _Stream:
    """The data of a file from the beginning on, unpacked; `position` counts their bytes."""

    def __init__(self, header: Header) -> None:
        self._path = header.path
        self._file = header.path.open("rb")
        self._file.seek(header.offset)
        self._offset = header.offset
        self._unpack = zlib.decompressobj() if header.compressed else None
        self.position = 0

    def read(self, count: int) -> bytes:
        """The next bytes, fewer at the end."""
        if self._unpack is None:
            data = self._file.read(count)
        else:
            parts = []
            missing = count
            while missing and (part := self._unpacked(missing)):
                parts.append(part)
                missing -= len(part)
            data = b"".join(parts)
        self.position += len(data)
        return data

    def skip(self, count: int) -> int:
        """Moves on without keeping what is passed over; gives how much that was."""
        start = self.position
        if self._unpack is None:
            self._file.seek(count, 1)
            self.position += count
        while self.position - start < count and self.read(min(CHUNK, count - (self.position - start))):
            pass
        return self.position - start

    def _unpacked(self, most: int) -> bytes:
        assert self._unpack is not None
        try:
            while not self._unpack.eof:
                packed = self._unpack.unconsumed_tail or self._file.read(CHUNK)
                part = self._unpack.decompress(packed, most)
                if part or not packed:
                    return part
        except zlib.error as error:
            found = f"damaged compressed data ({error})"
            raise Unusable(Problem(self._path, found, "an intact file; fetch it again")) from error
        return b""


@lru_cache(maxsize=1)
def _stream(header: Header) -> _Stream:
    return _Stream(header)
