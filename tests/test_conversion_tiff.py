"""TIFF in a folder: what nnU-Net's reader would take for something else, and files that name other files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from conversion_sources import (
    COLUMNS,
    QUIET,
    ROWS,
    blob,
    check_integrity,
    nnunet_folders,  # noqa: F401
    random_image,
)
from nnunet_semi.dataset_conversion import folder, formats
from nnunet_semi.dataset_conversion.plan import SourceProblems

SLICES = (5, ROWS, COLUMNS)


def write(path: Path, values: np.ndarray, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(path, values, **options)
    return path


def refusal_of(source: Path) -> str:
    with pytest.raises(SourceProblems) as refusal:
        folder.convert(source, writing=QUIET)
    return str(refusal.value)


@pytest.mark.parametrize("options", [{"photometric": "minisblack"}, {"imagej": True, "metadata": {"axes": "ZYX"}}])
@pytest.mark.parametrize("count", [3, 4])
def test_a_volume_of_three_or_four_slices_is_refused_with_the_way_out(
    count: int, options: dict[str, Any], tmp_path: Path
) -> None:
    shape = (count, ROWS, COLUMNS)
    for case, size in (("a", SLICES), ("x", shape)):
        write(tmp_path / f"source/images/{case}.tif", random_image(0, *size), **options)
        write(tmp_path / f"source/labels/{case}.tif", blob(size, 2), **options)
    write(tmp_path / "source/unlabeled/y.tif", random_image(1, *shape), **options)
    message = refusal_of(tmp_path / "source")
    for name in ("labels/x.tif", "unlabeled/y.tif"):
        assert f"{name}: got an array of {shape} with the axes" in message
    assert "3 or 4 slices are colours for nnU-Net" in message and "NIfTI" in message


@pytest.mark.parametrize("count", [1, 2, 5])
def test_other_numbers_of_slices_are_volumes(count: int, tmp_path: Path) -> None:
    shape = (count, ROWS, COLUMNS)
    for kind, values in (("images", random_image(0, *shape)), ("labels", blob(shape, 2))):
        write(tmp_path / f"source/{kind}/x.tif", values, photometric="minisblack")
    check_integrity(folder.convert(tmp_path / "source", writing=QUIET).folder)


@pytest.mark.parametrize(
    "options",
    [{"photometric": "rgb", "planarconfig": "separate"}, {"imagej": True, "metadata": {"axes": "CYX"}}],
    ids=["planar RGB", "ImageJ's channels"],
)
def test_three_colours_one_after_the_other_are_one_picture(options: dict[str, Any], tmp_path: Path) -> None:
    write(tmp_path / "source/images/x.tif", random_image(0, 3, ROWS, COLUMNS), **options)
    write(tmp_path / "source/labels/x.tif", blob((ROWS, COLUMNS), 2))
    check_integrity(folder.convert(tmp_path / "source", writing=QUIET).folder)


# --- OME ---


def ome(path: Path, other: str = "", own: str = "urn:uuid:1") -> Path:
    """An OME-TIFF of five slices that takes them from another file if there is one."""
    uuid = "urn:uuid:2" if other else own
    where = f'<UUID FileName="{other or path.name}">{uuid}</UUID>'
    planes = "".join(f'<TiffData FirstZ="{z}" IFD="{z}" PlaneCount="1">{where}</TiffData>' for z in range(5))
    size = f'SizeX="{COLUMNS}" SizeY="{ROWS}" SizeZ="5" SizeC="1" SizeT="1"'
    pixels = f'<Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="uint8" {size}>{planes}</Pixels>'
    namespace = "http://www.openmicroscopy.org/Schemas/OME/2016-06"
    text = f'<OME xmlns="{namespace}" UUID="{own}"><Image ID="Image:0">{pixels}</Image></OME>'
    return write(path, random_image(0, *SLICES), description=text, metadata=None, photometric="minisblack")


@pytest.mark.parametrize("other", ["y.ome.tif", "../../secret.tif"])
def test_an_ome_tiff_with_pages_elsewhere_is_refused_and_nothing_else_is_opened(
    other: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ome(tmp_path / "source/images/x.ome.tif", other)
    write(tmp_path / "source/images" / other, random_image(7, *SLICES), photometric="minisblack")
    write(tmp_path / "source/labels/x.ome.tif", blob(SLICES, 2), photometric="minisblack")
    opened: list[Any] = []
    start = tifffile.TiffFile.__init__

    def noted(self: Any, file: Any, **how: Any) -> None:
        opened.append(file)
        start(self, file, **how)

    monkeypatch.setattr(tifffile.TiffFile, "__init__", noted)
    message = refusal_of(tmp_path / "source")
    assert f"images/x.ome.tif: got an OME-TIFF with pages in other files ({other})" in message
    assert "expected all pages in the file itself" in message
    assert opened and not [file for file in opened if isinstance(file, str) and "x.ome.tif" not in file]


def test_an_ome_tiff_that_names_itself_is_read_under_any_name(tmp_path: Path) -> None:
    renamed = ome(tmp_path / "source/images/x.ome.tif").rename(tmp_path / "source/images/a.tif")
    np.testing.assert_array_equal(formats.read_image(renamed).values, random_image(0, *SLICES))
    write(tmp_path / "source/labels/a.tif", blob(SLICES, 2), photometric="minisblack")
    check_integrity(folder.convert(tmp_path / "source", writing=QUIET).folder)
