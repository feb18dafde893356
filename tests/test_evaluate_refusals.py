"""`evaluate` on what does not fit, is no label map, or is damaged: refused in a sentence with the names, or noted."""

from __future__ import annotations

import gzip
import json
import math

import nibabel
import numpy as np
import pytest

from label_map_folders import declare, volumes, write
from label_map_folders import folders as folders
from nnunet_semi.errors import UserError, WrongUse
from nnunet_semi.evaluation.classes import classes_of, find_classes
from nnunet_semi.evaluation.run import evaluate
from nnunet_semi.labelmaps.files import read_label_map

# --- what can be wrong ---


def test_everything_that_does_not_fit_is_named_at_once(folders):
    reference, prediction = folders
    for case in ("case_3", "case_4", "case_5"):
        write(reference / f"{case}.nii.gz", volumes(0)["case_0"])
    write(prediction / "case_4.nii.gz", volumes(0, shape=(4, 7, 5))["case_0"])
    write(prediction / "case_5.nii.gz", volumes(0)["case_0"], spacing=(2.5, 0.8, 1.0))
    write(prediction / "case_1.nii.gz", volumes(0)["case_0"], direction=(-1, 0, 0, 0, 1, 0, 0, 0, 1))
    (prediction / "case_2.nii.gz").write_bytes(b"no nifti")
    with pytest.raises(UserError) as refused:
        evaluate(reference, prediction)
    said = str(refused.value)
    for part in (
        f"{prediction} lacks 1 of 6 cases: case_3",
        "case_4 (shape (4, 7, 6) against (4, 7, 5)",
        "case_5 (spacing (2.5, 0.8, 0.9) against (2.5, 0.8, 1.0)",
        "case_1 (another orientation",
        f"{prediction / 'case_2.nii.gz'} cannot be read",
    ):
        assert part in said
    assert "\n" not in said


def test_chill_leaves_out_what_is_not_predicted_and_says_so(folders):
    (folders[1] / "case_0.nii.gz").unlink()
    write(folders[1] / "other.nii.gz", volumes(0)["case_0"])
    found = evaluate(*folders, chill=True)
    assert [case.case for case in found.cases] == ["case_1", "case_2"]
    assert found.notes == [
        "1 references have no prediction and were left out",
        "1 predictions have no reference and were left out",
    ]
    assert all(note in found.as_text() for note in found.notes)


def test_chill_without_any_prediction_is_an_error(folders):
    for path in folders[1].iterdir():
        path.rename(path.with_name(f"x{path.name}"))
    with pytest.raises(UserError, match="lacks 3 of 3 cases"):
        evaluate(*folders, chill=True)


def test_a_nifti_that_was_cut_off_is_refused(folders):
    path = folders[1] / "case_1.nii.gz"
    whole = gzip.decompress(path.read_bytes())
    path.write_bytes(gzip.compress(whole[:-20]))
    with pytest.raises(UserError, match=r"1 of 3 cases cannot be scored: .*case_1\.nii\.gz cannot be read"):
        evaluate(*folders)


@pytest.mark.parametrize("ending", [".mha", ".nrrd", ".gipl", ".tif", ".png", ".nii"])
@pytest.mark.parametrize("share", [0.0, 0.6])
def test_files_that_were_cut_off_are_refused(tmp_path, ending, share):
    shape = (30, 40) if ending == ".png" else (4, 30, 40)
    path = write(tmp_path / f"a{ending}", volumes(0, shape=shape)["case_0"])
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(UserError, match="cannot be read") as refused:
        read_label_map(path)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("value", "said"),
    [(0.5, "holds fractions"), (-1.0, "values from -1"), (math.nan, "values from nan"), (math.inf, "to inf")],
)
def test_values_that_are_no_labels_are_refused(folders, value, said):
    array = volumes(1)["case_1"].astype(np.float32)
    array[0, 0, 0] = value
    image = nibabel.Nifti1Image(array.T, np.diag([0.9, 0.8, 2.5, 1]) @ np.diag([-1, -1, 1, 1]))
    nibabel.save(image, folders[1] / "case_1.nii.gz")
    with pytest.raises(UserError, match=said):
        evaluate(*folders)


def test_coloured_pictures_are_no_label_maps(tmp_path):
    rng = np.random.default_rng(0)
    for folder in "rp":
        write(tmp_path / folder / "a.png", rng.integers(0, 255, (4, 5, 3)).astype(np.uint8))
    with pytest.raises(UserError, match="coloured picture"):
        evaluate(tmp_path / "r", tmp_path / "p")


def test_folders_that_are_missing_empty_or_ambiguous(tmp_path, folders):
    with pytest.raises(UserError, match="is not a folder"):
        evaluate(tmp_path / "nowhere", folders[1])
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").touch()
    with pytest.raises(UserError, match="holds no label map.*tiff$"):
        evaluate(folders[0], tmp_path / "empty")
    (tmp_path / "empty" / "case_0.json").write_text("{}")
    with pytest.raises(UserError, match="holds no label map.*files of landmarks are for evaluate --landmarks"):
        evaluate(folders[0], tmp_path / "empty")
    write(folders[1] / "case_0.mha", volumes(0)["case_0"])
    with pytest.raises(UserError, match=r"two label maps of the case case_0 \(case_0.mha and case_0.nii.gz\)"):
        evaluate(*folders)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"metrics": ("dice", "f1")}, "f1"),
        ({"metrics": ()}, "none"),
        ({"tolerance": 0.0}, "tolerance"),
        ({"labels": [0]}, "above 0"),
        ({"labels": [1, 1]}, "each once"),
        ({"num_processes": 0}, "1 or more"),
        ({"milliseconds": 300.0}, "only fugc2025 scores"),
    ],
)
def test_arguments_that_cannot_mean_anything(folders, options, said):
    with pytest.raises(WrongUse, match=said):
        evaluate(*folders, **options)


def test_labels_that_no_class_has_are_noted(folders):
    declare(folders[0].parent, background=0, liver=1)
    (note,) = evaluate(*folders).notes
    assert note == "there are labels that no class has, they are not scored: 2 (in 3 of 3 cases), 3 (in 3 of 3 cases)"


@pytest.mark.parametrize("labels", [None, [1, 2], {}, {"background": 0, "liver": "one"}, {"liver": None}])
def test_a_dataset_json_with_other_labels_than_nnunets_is_refused(tmp_path, labels):
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": labels}))
    with pytest.raises(UserError, match="expected names with numbers"):
        classes_of(tmp_path / "dataset.json")


def test_dataset_json_is_found_with_the_reference_before_the_prediction(tmp_path):
    reference, prediction = tmp_path / "raw" / "labelsTr", tmp_path / "prediction"
    reference.mkdir(parents=True)
    prediction.mkdir()
    assert find_classes(reference, prediction).names is None
    declare(prediction, background=0, second=2)
    assert find_classes(reference, prediction).names == {2: "second"}
    declare(tmp_path / "raw", background=0, first=[1])
    assert find_classes(reference, prediction).names == {1: "first"}


# --- damaged files ---


def test_a_nifti_whose_compressed_bytes_are_damaged_is_named_and_not_scored(folders):
    path = folders[1] / "case_1.nii.gz"
    whole = bytearray(path.read_bytes())
    whole[-8] ^= 1  # in the checksum: the voxels may have changed in any way
    path.write_bytes(whole)
    with pytest.raises(UserError, match=r"case_1\.nii\.gz cannot be read"):
        evaluate(*folders)


def test_every_flipped_byte_of_a_compressed_nifti_is_noticed(folders):
    path = folders[1] / "case_1.nii.gz"
    whole, (expected, _) = path.read_bytes(), read_label_map(path)
    for position in np.linspace(12, len(whole) - 1, 40).astype(int):
        damaged = bytearray(whole)
        damaged[position] ^= 0x55
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="cannot be read"):
            read_label_map(path)
    path.write_bytes(whole)
    np.testing.assert_array_equal(read_label_map(path)[0], expected)


@pytest.mark.parametrize("spacing", [0.0, math.nan, math.inf])
def test_a_nifti_with_an_impossible_spacing_is_named(folders, spacing):
    path = folders[1] / "case_1.nii.gz"
    raw = bytearray(gzip.decompress(path.read_bytes()))
    raw[80:84] = np.float32(spacing).tobytes()  # pixdim[1]
    path.write_bytes(gzip.compress(bytes(raw)))
    with pytest.raises(UserError, match=r"case_1\.nii\.gz"):
        evaluate(*folders, metrics=("hd",))


def test_a_nifti_with_nan_in_its_direction_is_named(folders):
    for folder in folders:
        path = folder / "case_1.nii.gz"
        raw = bytearray(gzip.decompress(path.read_bytes()))
        raw[280:284] = np.float32(math.nan).tobytes()  # srow_x
        path.write_bytes(gzip.compress(bytes(raw)))
    with pytest.raises(UserError, match=r"case_1\.nii\.gz has NaN in the direction of its header; expected"):
        evaluate(*folders)


def test_a_header_that_points_to_other_files_is_refused(tmp_path):
    path = write(tmp_path / "a.nrrd", volumes(0)["case_0"])
    head, _, voxels = path.read_bytes().partition(b"\n\n")
    (tmp_path / "voxels.raw").write_bytes(voxels)
    path.write_bytes(head + b"\ndata file: voxels.raw\n\n")
    with pytest.raises(UserError, match="a header that points to other files"):
        read_label_map(path)
