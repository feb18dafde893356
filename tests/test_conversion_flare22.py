"""FLARE22: three layouts, one orientation, the crop to the body, and the way back to the original grid."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from conversion_sources import (
    FLARE_SCHEMES,
    QUIET,
    SHARED,
    blob,
    body,
    check_integrity,
    in_air,
    listing,
    make_flare,
    nnunet_folders,  # noqa: F401
    oblique,
    signed_permutations,
    volume_of,
    write_volume,
)
from nnunet_semi.dataset_conversion import flare22
from nnunet_semi.dataset_conversion.body import body_box
from nnunet_semi.dataset_conversion.reorientation import axes_to, orientation
from nnunet_semi.dataset_conversion.restore import restore

IDENTITY = tuple(np.eye(3).ravel())
NIFTI_USUAL = (-1, 0, 0, 0, -1, 0, 0, 0, 1)  # x to the right, y to the front
GEOMETRY = {"spacing": (0.7, 0.8, 2.5), "origin": (-120.5, 33.25, 700.125)}


def convert(source: Path, **options: bool) -> Path:
    return flare22.convert(source, 22, writing=QUIET, **options).folder


# --- layouts ---


@pytest.mark.parametrize("scheme", FLARE_SCHEMES)
def test_all_layouts_are_recognised(scheme: str, tmp_path: Path) -> None:
    done = flare22.convert(make_flare(tmp_path / "source", scheme), writing=QUIET)
    assert done.counts == {"labeled": 2, "unlabeled": 2, "test": 2}
    assert not done.notes
    check_integrity(done.folder)


def test_names_of_cases_stay_and_both_folders_of_unlabeled_cases_are_used(tmp_path: Path) -> None:
    source = make_flare(tmp_path / "source", count=1)
    more = source / "Training/FLARE22_UnlabeledCase1001-2000/Case_01001_0000.nii.gz"
    write_volume(more, body(7))
    assert [name for name in listing(convert(source)) if "geometry" not in name] == [
        "dataset.json",
        "imagesTr/FLARE22_Tr_0001_0000.nii.gz",
        "imagesTs/FLARETs_0001_0000.nii.gz",
        "imagesUn/Case_00001_0000.nii.gz",
        "imagesUn/Case_01001_0000.nii.gz",
        "labelsTr/FLARE22_Tr_0001.nii.gz",
    ]


def test_unlabeled_cases_with_the_names_of_labeled_ones_get_a_prefix(tmp_path: Path) -> None:
    folder = convert(make_flare(tmp_path / "source", "seed 2"))
    assert sorted(path.name for path in (folder / "imagesUn").iterdir()) == [
        "U_train_001_0000.nii.gz",
        "U_train_002_0000.nii.gz",
    ]


def test_test_cases_with_the_names_of_labeled_ones_get_a_prefix_so_that_restore_knows_them_apart(
    tmp_path: Path,
) -> None:
    source = make_flare(tmp_path / "source", "seed 2")
    for number, path in enumerate(sorted((source / "val_images").iterdir()), 1):
        path.rename(path.with_name(f"train_{number:03d}_0000.nii.gz"))
    folder = convert(source)
    assert sorted(path.name for path in (folder / "imagesTs").iterdir()) == [
        "T_train_001_0000.nii.gz",
        "T_train_002_0000.nii.gz",
    ]
    assert json.loads((folder / "geometryTs/T_train_001.json").read_text())["file"] == "train_001.nii.gz"


def test_test_cases_with_the_names_of_unlabeled_ones_get_a_prefix_too(tmp_path: Path) -> None:
    source = make_flare(tmp_path / "source", "seed 1", count=1)
    (source / "test_image/test_001_0000.nii.gz").rename(source / "test_image/case_001_0000.nii.gz")
    folder = convert(source)
    assert (folder / "geometryUn/case_001.json").is_file()
    assert json.loads((folder / "geometryTs/T_case_001.json").read_text())["file"] == "case_001.nii.gz"


def test_dataset_json_has_the_organs_in_the_order_of_the_challenge(tmp_path: Path) -> None:
    description = json.loads((convert(make_flare(tmp_path / "source")) / "dataset.json").read_text())
    names = [name for name, _ in sorted(description["labels"].items(), key=lambda item: item[1])]
    assert names[:4] == ["background", "liver", "right kidney", "spleen"] and names[13] == "left kidney"
    assert description["channel_names"] == {"0": "CT"}
    assert description["orientation"] == "LPS"


# --- orientation ---


@pytest.mark.parametrize("number", range(48))
def test_every_orientation_comes_out_the_same(number: int, tmp_path: Path) -> None:
    direction = signed_permutations()[number]
    source = make_flare(tmp_path / "source", count=1, direction=direction.ravel(), **GEOMETRY)
    original = sitk.ReadImage(str(source / FLARE_SCHEMES["challenge"][0].format(1)))
    folder = convert(source)
    values, image = volume_of(folder / "imagesTr/FLARE22_Tr_0001_0000.nii.gz")
    _, label = volume_of(folder / "labelsTr/FLARE22_Tr_0001.nii.gz")
    assert image.GetDirection() == IDENTITY == label.GetDirection()
    assert image.GetOrigin() == label.GetOrigin() and image.GetSpacing() == label.GetSpacing()
    for index in ((0, 0, 0), (3, 4, 2), tuple(size - 1 for size in original.GetSize())):
        place = original.TransformIndexToPhysicalPoint(index)
        assert original[index] == image[image.TransformPhysicalPointToIndex(place)]
    assert values.size == original.GetNumberOfPixels()


def test_the_axes_found_are_those_that_simpleitk_uses() -> None:
    values = np.random.default_rng(0).integers(0, 1000, (3, 4, 5), np.int16)
    for direction in [*signed_permutations(), *map(oblique, range(4))]:
        image = sitk.GetImageFromArray(values)
        image.SetDirection(direction.ravel().tolist())
        axes, flipped = axes_to(orientation(image))
        mine = np.flip(values.transpose().transpose(axes), tuple(i for i in range(3) if flipped[i]))
        theirs = sitk.GetArrayFromImage(sitk.DICOMOrient(image, "LPS")).transpose()
        np.testing.assert_array_equal(mine, theirs)


def test_volumes_that_lie_right_keep_their_bytes(tmp_path: Path) -> None:
    source = make_flare(tmp_path / "source", count=1)
    folder = convert(source)
    old, new = FLARE_SCHEMES["challenge"][0].format(1), "imagesTr/FLARE22_Tr_0001_0000.nii.gz"
    assert (source / old).read_bytes() == (folder / new).read_bytes()


def test_geometries_that_differ_by_rounding_become_that_of_the_image(tmp_path: Path) -> None:
    source = make_flare(tmp_path / "source", count=1, **GEOMETRY)
    label = source / FLARE_SCHEMES["challenge"][1].format(1)
    nearly = {"spacing": (0.70001, 0.8, 2.5), "origin": (-120.51, 33.25, 700.125)}
    write_volume(label, blob((6, 8, 7), 13).astype(np.float32), direction=NIFTI_USUAL, **nearly)
    write_volume(source / FLARE_SCHEMES["challenge"][0].format(1), body(1), direction=NIFTI_USUAL, **GEOMETRY)
    folder = convert(source)
    values, written = volume_of(folder / "labelsTr/FLARE22_Tr_0001.nii.gz")
    _, image = volume_of(folder / "imagesTr/FLARE22_Tr_0001_0000.nii.gz")
    assert written.GetSpacing() == image.GetSpacing() and written.GetOrigin() == image.GetOrigin()
    assert values.dtype == np.uint8


# --- body crop ---


def test_the_box_holds_the_body_with_a_margin_and_leaves_table_and_air() -> None:
    assert body_box(in_air(), (5.0, 2.0, 2.0)) == ((3, 17), (15, 45), (10, 40))


def test_the_box_ends_at_the_border_and_is_everything_where_there_is_no_body() -> None:
    assert body_box(in_air(), (1.0, 1.0, 1.0))[0] == (0, 20)
    air = np.full((4, 5, 6), -1000, np.int16)
    assert body_box(air, (1, 1, 1)) == ((0, 4), (0, 5), (0, 6))


def test_thinning_out_of_large_volumes_cuts_nothing_off() -> None:
    values = np.full((3, 600, 700), -1000, np.int16)
    values[:, 101:500, 203:644] = 0
    (_, (top, bottom), (left, right)) = body_box(values, (5.0, 5.0, 5.0))
    assert 101 - 7 <= top <= 101 - 2 and 500 + 2 <= bottom <= 500 + 7
    assert 203 - 7 <= left <= 203 - 2 and 644 + 2 <= right <= 644 + 7


@pytest.mark.parametrize("direction", [IDENTITY, NIFTI_USUAL], ids=["LPS", "turned"])
def test_cropped_images_and_labels_stay_where_they_were(direction: tuple[float, ...], tmp_path: Path) -> None:
    source = make_flare(tmp_path / "source", count=1)
    image_name, label_name = (pattern.format(1) for pattern in FLARE_SCHEMES["challenge"][:2])
    write_volume(source / image_name, in_air(), direction=direction, **GEOMETRY)
    labels = np.zeros((20, 60, 50), np.uint8)
    labels[8, 30, 20] = 1
    labels[19, 59, 49] = 13  # far from the body, and kept nevertheless
    write_volume(source / label_name, labels, direction=direction, **GEOMETRY)
    folder = convert(source, crop_body=True)
    original = sitk.ReadImage(str(source / label_name))
    _, image = volume_of(folder / "imagesTr/FLARE22_Tr_0001_0000.nii.gz")
    values, label = volume_of(folder / "labelsTr/FLARE22_Tr_0001.nii.gz")
    assert label.GetSize() == image.GetSize() != original.GetSize()
    assert (values > 0).sum() == 2
    for index, organ in (((20, 30, 8), 1), ((49, 59, 19), 13)):
        place = original.TransformIndexToPhysicalPoint(index)
        assert label[label.TransformPhysicalPointToIndex(place)] == organ
    check_integrity(folder)


@pytest.mark.skipif(not (SHARED / "flare_layout").is_dir(), reason="needs the FLARE22 layout beside the repository")
@pytest.mark.parametrize("crop_body", [False, True])
def test_a_real_case_goes_there_and_back(crop_body: bool, tmp_path: Path) -> None:
    folder = convert(SHARED / "flare_layout", crop_body=crop_body)
    check_integrity(folder)
    restore(folder / "labelsTr", 22, tmp_path / "restored", num_processes=1, progress=False)
    name = "FLARE22_Tr_0001.nii.gz"
    original = SHARED / "flare_layout/Training/FLARE22_LabeledCase50/labels" / name
    expected, before = volume_of(original)
    values, after = volume_of(tmp_path / "restored" / name)
    np.testing.assert_array_equal(values, expected)
    assert (before.GetOrigin(), before.GetDirection()) == (after.GetOrigin(), after.GetDirection())
