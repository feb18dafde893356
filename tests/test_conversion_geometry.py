"""Labels and channels of volumes: those on the grid of their image are converted, those elsewhere are told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from conversion_sources import (
    QUIET,
    blob,
    body,
    check_integrity,
    nnunet_folders,  # noqa: F401
    oblique,
    volume_of,
    write_volume,
)
from nnunet_semi.dataset_conversion import folder
from nnunet_semi.dataset_conversion.plan import SourceProblems

GEOMETRY: dict[str, Any] = {"spacing": (0.7, 0.8, 2.5), "origin": (-120.5, 33.25, 700.125)}
MASK = blob((6, 8, 7), 1) * np.uint8(255)


def make(root: Path, ending: str = ".nii.gz", **geometry: Any) -> Path:
    """A case of two channels and its mask of 0 and 255."""
    for channel in range(2):
        write_volume(root / f"images/v_000{channel}{ending}", body(channel), **GEOMETRY | geometry)
    write_volume(root / f"labels/v{ending}", MASK, **GEOMETRY | geometry)
    return root


def refusal_of(source: Path) -> str:
    with pytest.raises(SourceProblems) as refusal:
        folder.convert(source, writing=QUIET)
    return str(refusal.value)


@pytest.mark.parametrize("mask", [MASK, MASK // 255], ids=["0 and 255", "bytes that could stay"])
@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd", ".mha"])
def test_a_mask_that_was_turned_is_refused_and_not_mirrored(ending: str, mask: np.ndarray, tmp_path: Path) -> None:
    source = make(tmp_path / "source", ending)
    label = sitk.ReadImage(str(write_volume(source / f"labels/v{ending}", mask, **GEOMETRY)))
    sitk.WriteImage(sitk.DICOMOrient(label, "RAS"), str(source / f"labels/v{ending}"))
    message = refusal_of(source)
    assert f"labels/v{ending}: got the direction (-1.0" in message and "as its image; resample it" in message


@pytest.mark.parametrize(
    ("name", "geometry", "said"),
    [
        ("labels/v", {"origin": (-120.5, 33.25, 697.625)}, "the origin (-120.5, 33.25, 697.625"),
        ("labels/v", {"origin": (-120.1, 33.25, 700.125)}, "the origin"),  # half a voxel
        ("labels/v", {"spacing": (0.7, 0.8, 2.51)}, "the spacing"),
        ("images/v_0001", {"origin": (-120.5, 33.25, 697.625)}, "(-120.5, 33.25, 700.125) as the first channel"),
        ("images/v_0001", {"direction": oblique(0).ravel()}, "the direction"),
    ],
)
def test_what_lies_elsewhere_is_refused(name: str, geometry: dict[str, Any], said: str, tmp_path: Path) -> None:
    source = make(tmp_path / "source", ".nrrd")
    write_volume(source / f"{name}.nrrd", MASK if name == "labels/v" else body(1), **GEOMETRY | geometry)
    message = refusal_of(source)
    assert f"{name}.nrrd: got" in message and said in message


def test_small_voxels_are_compared_as_strictly_as_large_ones(tmp_path: Path) -> None:
    small = {"spacing": (0.0005, 0.0005, 0.0005), "origin": (0, 0, 0)}
    source = make(tmp_path / "source", ".nrrd", **small)
    write_volume(source / "labels/v.nrrd", MASK, **small | {"spacing": (0.0005, 0.0005, 0.0006)})
    assert "the spacing" in refusal_of(source)
    write_volume(source / "labels/v.nrrd", MASK, **small | {"origin": (0, 0, 0.001)})
    assert "the origin" in refusal_of(source)


def test_geometries_that_differ_by_rounding_become_that_of_the_image(tmp_path: Path) -> None:
    source = make(tmp_path / "source", ".nrrd")
    nearly = {"spacing": (0.7003, 0.8, 2.5), "origin": (-120.45, 33.25, 700.125)}
    write_volume(source / "images/v_0001.nrrd", body(1), **nearly)
    write_volume(source / "labels/v.nrrd", MASK // 255, **nearly)
    done = folder.convert(source, writing=QUIET)
    _, image = volume_of(done.folder / "imagesTr/v_0000.nrrd")
    for name, expected in (("imagesTr/v_0001", body(1)), ("labelsTr/v", MASK // 255)):
        values, written = volume_of(done.folder / f"{name}.nrrd")
        assert written.GetOrigin() == image.GetOrigin() and written.GetSpacing() == image.GetSpacing()
        np.testing.assert_array_equal(values, expected)
        assert values.dtype == expected.dtype
    assert (done.folder / "imagesTr/v_0000.nrrd").read_bytes() == (source / "images/v_0000.nrrd").read_bytes()
    check_integrity(done.folder)


# --- cases with other numbers of channels ---


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("role", ["unlabeled", "test"])
def test_other_cases_have_as_many_channels_as_the_labeled_ones(role: str, count: int, tmp_path: Path) -> None:
    source = make(tmp_path / "source")
    for channel in range(count):
        write_volume(source / f"{role}/w_000{channel}.nii.gz", body(channel), **GEOMETRY)
    message = refusal_of(source)
    assert f"{role}/w_0000.nii.gz: got {count} image(s) for the case w; expected 2 as" in message
    assert message.startswith("1 problem in")
