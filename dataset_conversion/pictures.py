"""PNG, JPEG and BMP files: reading them with every check, and writing PNG."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from nnunet_semi.dataset_conversion.plan import Output
from nnunet_semi.dataset_conversion.raster import Raster
from nnunet_semi.errors import Problem, Unusable

FORMATS = ("PNG", "JPEG", "BMP")
ORIENTATION = 0x0112  # the EXIF tag by which cameras say that a picture has to be turned
MODES = {"L": 1, "I;16": 1, "RGB": 3}  # what nnU-Net reads as it is


def read_image(path: Path) -> Raster:
    """A grey or RGB picture, turned as its EXIF tag says.

    Palettes become RGB, and black and white becomes grey.

    Raises:
        Unusable: unreadable, or a kind of picture that nnU-Net would misread, such as one with transparency.
    """
    picture, as_is = _open(path)
    if picture.mode in ("1", "P", "YCbCr") and "transparency" not in picture.info:
        picture, as_is = picture.convert("L" if picture.mode == "1" else "RGB"), False
    if picture.mode not in MODES:
        raise Unusable(Problem(path, _name(picture), "grey or RGB, without transparency"))
    return Raster(np.asarray(picture), MODES[picture.mode], as_is, png)


def read_label(path: Path) -> Raster:
    """The values of a label picture: of the one channel, of three equal ones, or the indices of a palette.

    Raises:
        Unusable: unreadable, lossy, or in colour.
    """
    picture, as_is = _open(path)
    if picture.format == "JPEG" or path.suffix.lower() in (".jpg", ".jpeg"):
        raise Unusable(Problem(path, "labels in JPEG, which changes values", "PNG"))
    palette = picture.mode == "P"
    values = np.asarray(picture)
    if picture.mode == "RGB":
        if not (values == values[..., :1]).all():
            raise Unusable(Problem(path, "a picture in colour", "one channel with a number per class"))
        values = values[..., 0]
    elif picture.mode not in ("1", "L", "I;16", "I", "P"):
        raise Unusable(Problem(path, _name(picture), "one channel with a number per class"))
    values = values.astype(np.uint8) if picture.mode == "1" else values
    return Raster(values, 1, as_is and picture.mode in ("L", "I;16"), png, palette=palette)


def png(values: np.ndarray) -> Output:
    """Writes values as PNG."""
    return lambda target: Image.fromarray(values).save(target, format="PNG")


def _open(path: Path) -> tuple[Image.Image, bool]:
    """A picture with all its pixels, and whether it is a PNG whose bytes can stay."""
    try:
        with Image.open(path, formats=FORMATS) as file:
            frames = getattr(file, "n_frames", 1)
            if file.format == "PNG" and frames > 1:
                raise Unusable(Problem(path, f"{frames} pictures in one file", "one"))
            turned = file.getexif().get(ORIENTATION, 1) != 1
            file.load()
            picture = ImageOps.exif_transpose(file) if turned else file.copy()
            picture.format = file.format
    except Unusable:
        raise
    except Exception as error:  # decoders raise anything
        found = f"a file that cannot be read ({type(error).__name__}: {error})".replace(str(path), path.name)
        raise Unusable(Problem(path, found, "an intact PNG, JPEG or BMP")) from error
    return picture, picture.format == "PNG" and not turned


def _name(picture: Image.Image) -> str:
    channels = len(picture.getbands())
    kind = f"{channels}-channel picture" if channels > 1 else "picture"
    hidden = " and a transparent colour" if "transparency" in picture.info else ""
    return f"a {kind} of mode {picture.mode}{hidden}"
