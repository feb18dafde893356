"""Headers of MHA files: every type of number, and everything that ITK takes for true."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_semi import mha
from nnunet_semi.errors import Unusable

VALUES = np.arange(24).reshape(2, 3, 4)


def edited(path: Path, values: np.ndarray, old: str, new: str, compressed: bool = False) -> Path:
    """A file of SimpleITK with another line in its header."""
    sitk.WriteImage(sitk.GetImageFromArray(values), str(path), compressed)
    data = path.read_bytes()
    assert old.encode() in data
    path.write_bytes(data.replace(old.encode(), new.encode()))
    return path


@pytest.mark.parametrize("kind", ["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"])
@pytest.mark.parametrize("compressed", [False, True])
def test_every_type_that_simpleitk_writes_is_read(kind: str, compressed: bool, tmp_path: Path) -> None:
    sitk.WriteImage(sitk.GetImageFromArray(VALUES.astype(kind)), str(tmp_path / "a.mha"), compressed)
    header = mha.read_header(tmp_path / "a.mha")
    mha.refuse_incomplete(header)
    assert header.dtype == kind
    np.testing.assert_array_equal(mha.read_slice(header, 1), VALUES[1])


@pytest.mark.parametrize("word", ["True", "true", "T", "t", "1"])
def test_all_that_itk_takes_for_true_is_true(word: str, tmp_path: Path) -> None:
    values = VALUES.astype("i2")
    path = edited(tmp_path / "a.mha", values, "CompressedData = True", f"CompressedData = {word}", compressed=True)
    mha.refuse_incomplete(mha.read_header(path))
    np.testing.assert_array_equal(mha.read_slice(mha.read_header(path), 1), VALUES[1])
    swapped = edited(tmp_path / "b.mha", values.byteswap(), "MSB = False", f"MSB = {word}")
    np.testing.assert_array_equal(mha.read_slice(mha.read_header(swapped), 1), VALUES[1])
    for itk in (path, swapped):
        np.testing.assert_array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(itk))), VALUES)


@pytest.mark.parametrize(
    ("line", "told"), [("ElementType = MET_LONG", "the ElementType MET_LONG"), ("Comment = none", "no ElementType")]
)
def test_an_unknown_type_is_named_with_those_that_are_known(line: str, told: str, tmp_path: Path) -> None:
    path = edited(tmp_path / "a.mha", VALUES.astype("i2"), "ElementType = MET_SHORT", line)
    with pytest.raises(Unusable) as refusal:
        mha.read_header(path)
    problem = refusal.value.problem
    assert problem.found == told
    assert "MET_INT, MET_ULONG_LONG" in problem.expected and "write it again as such" in problem.expected
