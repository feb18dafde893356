"""Restored predictions: on exactly the grid of the original images, under their names, all or none."""

from __future__ import annotations

import gzip
import itertools
import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from conversion_sources import (
    FLARE_SCHEMES,
    QUIET,
    body,
    in_air,
    listing,
    make_flare,
    nnunet_folders,  # noqa: F401
    oblique,
    raw,
    signed_permutations,
    volume_of,
    write_volume,
)
from nnunet_semi.dataset_conversion import flare22
from nnunet_semi.dataset_conversion.plan import SourceProblems
from nnunet_semi.dataset_conversion.restore import restore
from nnunet_semi.errors import UserError, WrongUse

NIFTI_USUAL = (-1, 0, 0, 0, -1, 0, 0, 0, 1)  # x to the right, y to the front
GEOMETRY = {"spacing": (0.7, 0.8, 2.5), "origin": (-120.5, 33.25, 700.125)}


def convert(source: Path, **options: bool) -> Path:
    return flare22.convert(source, 22, writing=QUIET, **options).folder


def predictions_of(folder: Path, tmp_path: Path, role: str = "Ts") -> dict[str, np.ndarray]:
    """Writes a prediction for every image of a folder, as nnU-Net does; gives them by case."""
    found = {}
    for seed, path in enumerate(sorted((folder / f"images{role}").iterdir())):
        values, image = volume_of(path)
        prediction = np.random.default_rng(seed).integers(0, 14, values.shape, np.uint8)
        written = sitk.GetImageFromArray(prediction)
        written.CopyInformation(image)
        case = path.name.removesuffix("_0000.nii.gz")
        (tmp_path / "predictions").mkdir(exist_ok=True)
        sitk.WriteImage(written, str(tmp_path / f"predictions/{case}.nii.gz"))
        found[case] = prediction
    for name in ("dataset.json", "plans.json", "FLARETs_0001.npz"):
        (tmp_path / "predictions" / name).write_text("{}")
    return found


def header_without_type(path: Path) -> bytes:
    """The header of a NIfTI file but for what depends on the type of the values."""
    with gzip.open(path) as file:
        header = nibabel.Nifti1Header(file.read(348))
    for name in ("datatype", "bitpix", "cal_min", "cal_max", "scl_slope", "scl_inter"):
        header[name] = 0
    return header.binaryblock


@pytest.mark.parametrize("crop_body", [False, True])
@pytest.mark.parametrize("seed", range(12))
def test_restored_predictions_lie_exactly_where_the_images_lay(seed: int, crop_body: bool, tmp_path: Path) -> None:
    direction = oblique(seed) @ signed_permutations()[4 * seed]
    source = make_flare(tmp_path / "source", count=2, direction=direction.ravel(), **GEOMETRY)
    for number in (1, 2):
        path = source / FLARE_SCHEMES["challenge"][3].format(number)
        write_volume(path, in_air(), direction=direction.ravel(), **GEOMETRY)
    folder = convert(source, crop_body=crop_body)
    predictions = predictions_of(folder, tmp_path)
    done = restore(tmp_path / "predictions", 22, tmp_path / "restored", num_processes=1, progress=False)
    assert done.files == ["FLARETs_0001.nii.gz", "FLARETs_0002.nii.gz"] == listing(tmp_path / "restored")
    for number in (1, 2):
        original_path = source / FLARE_SCHEMES["challenge"][3].format(number)
        restored_path = tmp_path / f"restored/FLARETs_{number:04d}.nii.gz"
        assert header_without_type(restored_path) == header_without_type(original_path)
        _, original = volume_of(original_path)
        values, restored = volume_of(restored_path)
        for fact in ("Size", "Spacing", "Origin", "Direction"):
            assert getattr(restored, f"Get{fact}")() == getattr(original, f"Get{fact}")()
        prediction = predictions[f"FLARETs_{number:04d}"]
        assert np.bincount(values.ravel())[1:].tolist() == np.bincount(prediction.ravel())[1:].tolist()
        _, small = volume_of(folder / f"imagesTs/FLARETs_{number:04d}_0000.nii.gz")
        for index in itertools.product(*[(0, length // 2, length - 1) for length in small.GetSize()]):
            place = small.TransformIndexToPhysicalPoint(index)
            assert restored[original.TransformPhysicalPointToIndex(place)] == prediction[index[::-1]]


def test_restoring_the_labels_gives_the_original_labels(tmp_path: Path) -> None:
    source = make_flare(tmp_path / "source", direction=NIFTI_USUAL)
    folder = convert(source, crop_body=True)
    restore(folder / "labelsTr", folder.name, tmp_path / "restored", num_processes=1, progress=False)
    for number in (1, 2):
        name = FLARE_SCHEMES["challenge"][1].format(number)
        expected, _ = volume_of(source / name)
        np.testing.assert_array_equal(volume_of(tmp_path / "restored" / Path(name).name)[0], expected)


@pytest.mark.parametrize("order", ["<", ">"])
def test_headers_of_either_byte_order_are_kept(order: str, tmp_path: Path) -> None:
    source = make_flare(tmp_path / "source", count=1)
    path = source / FLARE_SCHEMES["challenge"][3].format(1)
    header = nibabel.Nifti1Header(endianness=order)
    header.set_data_dtype(np.dtype(np.int16).newbyteorder(order))
    header["descrip"] = b"scanner 7"
    values = body(3).transpose()
    image = nibabel.Nifti1Image(values, np.diag([-1.5, 2, 3, 1]), header)
    nibabel.save(image, path)
    folder = convert(source)
    predictions = predictions_of(folder, tmp_path)
    restore(tmp_path / "predictions", 22, tmp_path / "restored", num_processes=1, progress=False)
    restored = nibabel.load(tmp_path / "restored/FLARETs_0001.nii.gz")
    assert restored.header["descrip"] == b"scanner 7"
    np.testing.assert_array_equal(restored.affine, image.affine)
    turned = np.flip(predictions["FLARETs_0001"].transpose(), 1)  # x runs to the left already, y to the front
    np.testing.assert_array_equal(np.asarray(restored.dataobj), turned)
    assert restored.get_data_dtype() == np.uint8


def test_unlabeled_cases_get_their_own_names_back(tmp_path: Path) -> None:
    folder = convert(make_flare(tmp_path / "source", "seed 2", count=1))
    predictions_of(folder, tmp_path, "Un")
    done = restore(tmp_path / "predictions", 22, tmp_path / "restored", num_processes=1, progress=False)
    assert done.files == ["train_001.nii.gz"]


def test_a_name_of_two_images_on_other_grids_is_refused(tmp_path: Path) -> None:
    folder = convert(make_flare(tmp_path / "source", count=1))
    predictions_of(folder, tmp_path)
    known = json.loads((folder / "geometryTs/FLARETs_0001.json").read_text())
    other = folder / "geometryUn/FLARETs_0001.json"
    other.write_text(json.dumps(known))
    assert restore(tmp_path / "predictions", 22, tmp_path / "restored", num_processes=1, progress=False).files
    other.write_text(json.dumps(known | {"flipped": [True, False, False]}))
    with pytest.raises(SourceProblems) as refusal:
        restore(tmp_path / "predictions", 22, tmp_path / "again", num_processes=1, progress=False)
    assert "FLARETs_0001.nii.gz: got the name of several images" in str(refusal.value)
    assert "(in geometryTs and geometryUn)" in str(refusal.value)


def spoil(what: str, folder: Path, predictions: Path) -> None:
    """Breaks the prediction or the geometry of FLARETs_0001."""
    path, sidecar = predictions / "FLARETs_0001.nii.gz", folder / "geometryTs/FLARETs_0001.json"
    if what == "size":
        write_volume(path, np.zeros((2, 2, 2), np.uint8))
    elif what == "truncated":
        path.write_bytes(path.read_bytes()[:-40])
    elif what == "fractions":
        write_volume(path, np.full((6, 8, 7), 0.5))
    elif what == "name":
        path.rename(predictions / "other.nii.gz")
    elif what == "no JSON":
        sidecar.write_text("{}")
    else:
        file = {"path": "../../escaped.nii.gz", "ending": "escaped.txt", "number": 5}[what]
        sidecar.write_text(json.dumps(json.loads(sidecar.read_text()) | {"file": file}))


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("size", "the size (2, 2, 2); expected (7, 8, 6) as the image in the dataset"),
        ("truncated", "a damaged file"),
        ("fractions", "the labels 0.5; expected whole numbers"),
        ("name", "a case that Dataset022_FLARE22 does not have"),
        ("no JSON", "a geometry that cannot be understood"),
        ("path", "the file name '../../escaped.nii.gz'; expected a name without folders"),
        ("ending", "the file name 'escaped.txt'; expected a name without folders that ends in .nii.gz"),
        ("number", "the file name '5'; expected a name"),
    ],
)
def test_one_bad_prediction_keeps_all_from_being_restored(what: str, said: str, tmp_path: Path) -> None:
    folder = convert(make_flare(tmp_path / "source"))
    predictions_of(folder, tmp_path)
    spoil(what, folder, tmp_path / "predictions")
    with pytest.raises(SourceProblems) as refusal:
        restore(tmp_path / "predictions", 22, tmp_path / "restored", num_processes=1, progress=False)
    assert said in str(refusal.value)
    assert not (tmp_path / "restored").exists() or listing(tmp_path / "restored") == []
    assert not list(tmp_path.glob("**/escaped*"))


def test_nothing_is_replaced_unless_asked_for(tmp_path: Path) -> None:
    folder = convert(make_flare(tmp_path / "source"))
    predictions_of(folder, tmp_path)
    output = tmp_path / "restored"
    restore(tmp_path / "predictions", 22, output, num_processes=1, progress=False)
    with pytest.raises(WrongUse, match="--overwrite"):
        restore(tmp_path / "predictions", 22, output, num_processes=1, progress=False)
    restore(tmp_path / "predictions", 22, output, overwrite=True, num_processes=1, progress=False)
    with pytest.raises(WrongUse, match="expected two folders"):
        restore(tmp_path / "predictions", 22, tmp_path / "predictions")


def test_a_folder_without_predictions_and_a_dataset_without_geometry_are_told(tmp_path: Path) -> None:
    folder = convert(make_flare(tmp_path / "source"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceProblems, match=r"predictions for Dataset022_FLARE22, ending in \.nii\.gz"):
        restore(tmp_path / "empty", 22, tmp_path / "restored")
    for role in ("Tr", "Un", "Ts"):
        (folder / f"geometry{role}").rename(raw() / f"moved{role}")
    with pytest.raises(UserError, match="holds no geometry"):
        restore(folder / "labelsTr", 22, tmp_path / "restored")
