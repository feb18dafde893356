"""`evaluate` on folders: labels, formats, files, statistics, comparison, and everything that can be wrong with them."""

from __future__ import annotations

import csv
import gzip
import json
import math
import os
from itertools import combinations

import nibabel
import numpy as np
import pytest
import SimpleITK
import tifffile
from nnunetv2.evaluation.evaluate_predictions import compute_metrics, load_summary_json
from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from PIL import Image
from scipy.stats import wilcoxon

from nnunet_semi import pool
from nnunet_semi.cli import main
from nnunet_semi.errors import UserError, WrongUse
from nnunet_semi.evaluation.classes import classes_of, find_classes
from nnunet_semi.evaluation.comparison import MEAN, evaluate_and_compare
from nnunet_semi.evaluation.run import evaluate
from nnunet_semi.evaluation.statistics import (
    compare,
    resampled_means,
    signed_rank,
    summarise,
    summarise_mean_of_classes,
)
from nnunet_semi.evaluation.surface import surface_distances
from nnunet_semi.labelmaps.files import read_grid, read_label_map, write_label_map

SPACING = (2.5, 0.8, 0.9)  # z, y, x


def write(path, array, spacing=SPACING, direction=None):
    """A label map with axes z, y, x (or y, x), in the format that the name of the file says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".png":
        Image.fromarray(array).save(path)
    elif path.suffix == ".tif":
        tifffile.imwrite(path, array, photometric="minisblack")
        if array.ndim == 3:
            path.with_suffix(".json").write_text(json.dumps({"spacing": spacing}))
    else:
        image = SimpleITK.GetImageFromArray(array)
        image.SetSpacing(spacing[::-1][: array.ndim])
        if direction is not None:
            image.SetDirection(direction)
        SimpleITK.WriteImage(image, str(path))
    return path


def volumes(seed, count=3, labels=4, shape=(4, 7, 6)):
    """{case: label map}"""
    rng = np.random.default_rng(seed)
    return {f"case_{number}": rng.integers(0, labels, shape).astype(np.uint8) for number in range(count)}


@pytest.fixture
def folders(tmp_path):
    """References in labelsTr and predictions beside it, three volumes each with the labels 0 to 3."""
    for name, seed in (("labelsTr", 0), ("predictions", 1)):
        for case, array in volumes(seed).items():
            write(tmp_path / name / f"{case}.nii.gz", array)
    return tmp_path / "labelsTr", tmp_path / "predictions"


def declare(folder, **labels):
    (folder / "dataset.json").write_text(json.dumps({"labels": labels, "file_ending": ".nii.gz"}))


# --- what is computed ---


@pytest.mark.parametrize(
    ("labels", "ignore"),
    [
        ({"background": 0, "a": 1, "b": 2, "c": 3}, None),
        ({"background": 0, "whole": [1, 2, 3], "core": [2, 3], "c": 3}, None),
        ({"background": 0, "a": 1, "b": 2, "ignore": 3}, 3),
    ],
)
def test_overlap_and_its_means_are_those_of_nnunet(folders, labels, ignore):
    declare(folders[0].parent, **labels)
    found = evaluate(*folders)
    expected_labels = [
        tuple(v) if isinstance(v, list) else v for n, v in labels.items() if n not in ("background", "ignore")
    ]
    assert list(found.names) == expected_labels
    theirs = [
        compute_metrics(str(case.reference), str(case.prediction), SimpleITKIO(), expected_labels, ignore)["metrics"]
        for case in found.cases
    ]
    assert [case.metrics for case in found.cases] == theirs
    tree = found.as_tree()
    for label in expected_labels:
        for metric, value in tree["mean"][str(label)].items():
            assert value == pytest.approx(np.mean([case[label][metric] for case in theirs])), (label, metric)
    means = [tree["mean"][str(label)]["IoU"] for label in expected_labels]
    assert tree["foreground_mean"]["IoU"] == pytest.approx(np.mean(means))


def test_surfaces_are_measured_in_mm_of_the_header_and_classes_are_named(folders):
    declare(folders[0].parent, background=0, liver=1, both=[1, 2], spleen=3)
    found = evaluate(*folders, metrics=("nsd", "hd", "hd95", "assd"), tolerance=0.85)
    assert found.unit == "mm" and found.names == {1: "liver", (1, 2): "both", 3: "spleen"}
    reference, prediction = volumes(0)["case_1"], volumes(1)["case_1"]
    for label, members in ((1, (1,)), ((1, 2), (1, 2))):
        whole = surface_distances(np.isin(reference, members), np.isin(prediction, members), SPACING)
        values = found.cases[1].metrics[label]
        measured = [values[name] for name in ("NSD", "HD", "HD95", "ASSD")]
        assert measured == pytest.approx(
            [whole.nsd(0.85), whole.hausdorff(), whole.hausdorff(95), whole.average()], rel=1e-6
        )
    assert list(found.means) == ["NSD", "HD", "HD95", "ASSD"]


def test_without_dataset_json_all_labels_that_occur_are_scored_in_every_case(tmp_path):
    write(tmp_path / "r" / "a.png", np.array([[0, 5], [5, 0]], np.uint8))
    write(tmp_path / "p" / "a.png", np.array([[0, 5], [0, 0]], np.uint8))
    write(tmp_path / "r" / "b.png", np.array([[0, 0], [7, 0]], np.uint8))
    write(tmp_path / "p" / "b.png", np.array([[0, 0], [7, 9]], np.uint8))
    found = evaluate(tmp_path / "r", tmp_path / "p", metrics=("dice", "hd"))
    assert list(found.names) == [5, 7, 9]
    assert found.values("Dice") == pytest.approx(np.array([[2 / 3, np.nan, np.nan], [np.nan, 1, 0]]), nan_ok=True)
    assert found.cases[0].metrics[9]["TN"] == 4
    assert [found.undefined(label) for label in (5, 7, 9)] == [(1, 0), (1, 0), (1, 1)]
    assert found.unit == "pixels"


def test_what_is_not_defined_is_left_out_of_means_and_counted(tmp_path):
    square = np.zeros((2, 9, 9), np.uint8)
    square[:, 2:5, 2:5] = 1
    pairs = {"both_empty": (0, 0), "one_empty": (1, 0), "other_empty": (0, 1), "same": (1, 1)}
    for case, factors in pairs.items():
        for folder, factor in zip("rp", factors, strict=True):
            write(tmp_path / folder / f"{case}.mha", square * np.uint8(factor))
    found = evaluate(tmp_path / "r", tmp_path / "p", metrics=("dice", "iou", "nsd", "hd", "hd95", "assd"))
    assert found.undefined(1) == (1, 2)
    for metric, statistics in found.statistics.items():
        overlap = metric in ("Dice", "IoU", "NSD")
        assert statistics[1].cases == (3 if overlap else 1)
        assert statistics[1].mean == pytest.approx(1 / 3 if overlap else 0)
    text = found.as_text()
    assert "both empty  one empty" in text and "HD95 in mm" in text and "NSD at 2 mm" in text


def test_files_without_any_label_leave_nothing_to_score(tmp_path):
    for folder in "rp":
        write(tmp_path / folder / "a.png", np.zeros((4, 5), np.uint8))
    with pytest.raises(UserError, match="no file holds any label but 0"):
        evaluate(tmp_path / "r", tmp_path / "p")
    assert math.isnan(evaluate(tmp_path / "r", tmp_path / "p", labels=[1]).overall["Dice"].mean)


def test_ignored_voxels_belong_to_no_surface(tmp_path):
    declare(tmp_path, background=0, organ=1, ignore=2)
    reference, prediction = np.zeros((2, 12, 12), np.uint8)
    reference[2:5, 2:5] = prediction[2:5, 2:5] = 1
    reference[8:, 8:], prediction[9:11, 9:11] = 2, 1  # predicted where nobody looked
    for folder, array in (("labelsTr", reference), ("p", prediction)):
        write(tmp_path / folder / "a.png", array)
    found = evaluate(tmp_path / "labelsTr", tmp_path / "p", metrics=("dice", "hd", "nsd"))
    assert found.cases[0].metrics[1]["HD"] == 0 and found.cases[0].metrics[1]["Dice"] == 1
    assert found.cases[0].voxels == 144 - 16


def test_a_volume_of_one_slice_is_measured_in_2d(tmp_path):
    arrays = [np.random.default_rng(seed).integers(0, 2, (1, 9, 8)).astype(np.uint8) for seed in (0, 1)]
    for folder, array in zip("rp", arrays, strict=True):
        write(tmp_path / folder / "a.nii.gz", array)
    found = evaluate(tmp_path / "r", tmp_path / "p", metrics=("assd",))
    flat = surface_distances(*(array[0] == 1 for array in arrays), SPACING[1:])
    assert found.cases[0].metrics[1]["ASSD"] == pytest.approx(flat.average(), rel=1e-6)


def test_labels_asked_for_keep_their_names(folders):
    declare(folders[0].parent, background=0, liver=1, spleen=2, rest=3)
    found = evaluate(*folders, labels=[2, (1, 3)])
    assert found.names == {2: "spleen", (1, 3): ""}
    assert not found.notes


def test_single_files_can_be_compared(folders):
    one = evaluate(folders[0] / "case_1.nii.gz", folders[1] / "case_1.nii.gz")
    assert one.cases[0].metrics == evaluate(*folders).cases[1].metrics


@pytest.mark.parametrize(("one", "other"), list(combinations((".nii.gz", ".mha", ".nrrd", ".tif"), 2)))
def test_formats_can_be_mixed(tmp_path, one, other):
    reference, prediction = volumes(0)["case_0"], volumes(1)["case_0"]
    write(tmp_path / "r" / f"a{one}", reference)
    write(tmp_path / "p" / f"a{other}", prediction)
    found = evaluate(tmp_path / "r", tmp_path / "p", metrics=("assd",))
    whole = surface_distances(reference == 2, prediction == 2, SPACING)
    assert found.cases[0].metrics[2]["ASSD"] == pytest.approx(whole.average(), rel=1e-6)
    assert found.unit == "mm"


def test_processes_change_nothing(folders, monkeypatch):
    monkeypatch.setattr(pool, "HEAD_START", 0.0)
    one = evaluate(*folders, metrics=("dice", "assd"), num_processes=1)
    two = evaluate(*folders, metrics=("dice", "assd"), num_processes=2)
    assert two.as_tree() == one.as_tree()


# --- reading and writing label maps ---


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".mha", ".nrrd", ".tif"])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32, np.uint16])
def test_labels_are_read_as_nnunet_reads_them_in_as_few_bytes_as_will_do(tmp_path, ending, dtype):
    path = write(tmp_path / f"a{ending}", volumes(0)["case_0"].astype(dtype))
    labels, grid = read_label_map(path)
    assert labels.dtype == np.uint8 and labels.flags.c_contiguous
    if ending in (".nii.gz", ".mha", ".nrrd"):
        theirs, properties = SimpleITKIO().read_seg(str(path))
        np.testing.assert_array_equal(labels, theirs[0])
        assert grid.spacing == pytest.approx(properties["spacing"], rel=1e-6)
    np.testing.assert_array_equal(labels, volumes(0)["case_0"])
    assert read_grid(path).difference(grid) == ""


def test_pictures_are_read_as_nnunet_reads_them(tmp_path):
    path = write(tmp_path / "a.png", volumes(0, shape=(9, 7))["case_0"])
    labels, grid = read_label_map(path)
    np.testing.assert_array_equal(labels, NaturalImage2DIO().read_seg(str(path))[0][0, 0])
    assert grid.shape == (9, 7) and grid.spacing is None


def test_pictures_of_every_kind(tmp_path):
    labels = volumes(0, labels=2, shape=(5, 4))["case_0"]
    grey = Image.fromarray(labels)
    palette = Image.new("P", grey.size)
    palette.putpalette([0, 0, 0, 200, 0, 0])
    palette.putdata(labels.ravel().tolist())
    kinds = {"grey": grey, "palette": palette, "alpha": Image.merge("LA", (grey, Image.new("L", grey.size, 255)))}
    kinds["bits"] = Image.fromarray(labels.astype(bool))
    kinds["deep"] = Image.fromarray(labels.astype(np.uint16))
    kinds["rgb"] = Image.merge("RGB", (grey, grey, grey))
    for kind, image in kinds.items():
        image.save(tmp_path / f"{kind}.png")
        np.testing.assert_array_equal(read_label_map(tmp_path / f"{kind}.png")[0], labels, err_msg=kind)


def test_binary_reading_takes_whatever_is_above_zero_in_any_channel(tmp_path):
    colours = np.zeros((2, 3, 4), np.uint8)
    colours[..., 3] = 255  # alpha does not count
    colours[0, 0, 2], colours[1, 2, 0] = 1, 200
    path = write(tmp_path / "a.png", colours)
    assert read_label_map(path, binary=True)[0].tolist() == [[1, 0, 0], [0, 0, 1]]


@pytest.mark.parametrize("ending", [".nii.gz", ".mha", ".tif", ".png"])
def test_a_label_map_is_written_on_the_grid_of_another(tmp_path, ending):
    shape = (9, 7) if ending == ".png" else (4, 7, 6)
    oblique = None if ending == ".png" else (0.8, 0.6, 0, -0.6, 0.8, 0, 0, 0, 1)
    like = write(tmp_path / f"like{ending}", volumes(0, shape=shape)["case_0"], direction=oblique)
    labels = volumes(1, shape=shape)["case_0"]
    write_label_map(tmp_path / f"new{ending}", labels, like)
    found, grid = read_label_map(tmp_path / f"new{ending}")
    np.testing.assert_array_equal(found, labels)
    assert read_grid(like).difference(grid) == "" and grid.spacing == read_grid(like).spacing
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]
    if ending in (".nii.gz", ".mha"):
        images = [SimpleITK.ReadImage(str(tmp_path / f"{name}{ending}")) for name in ("like", "new")]
        for what in ("GetOrigin", "GetDirection", "GetSpacing"):
            assert getattr(images[0], what)() == pytest.approx(getattr(images[1], what)())


def test_scaled_niftis_are_read_with_their_scale_and_written_without(tmp_path):
    image = nibabel.Nifti1Image(np.array([[[0, 2], [4, 6]]], np.int16), np.eye(4))
    image.header.set_slope_inter(0.5, 0)
    image.header["scl_slope"] = 0.5
    nibabel.save(image, tmp_path / "a.nii")
    labels, _ = read_label_map(tmp_path / "a.nii")
    write_label_map(tmp_path / "b.nii", labels, tmp_path / "a.nii")
    np.testing.assert_array_equal(read_label_map(tmp_path / "b.nii")[0], labels)


# --- files ---


def test_summary_json_is_readable_by_nnunet_and_the_csv_holds_the_same(folders, tmp_path):
    declare(folders[0].parent, background=0, whole=[1, 2, 3], core=[2, 3])
    found = evaluate(*folders, metrics=("dice", "hd95"), output=tmp_path / "new" / "scores")
    assert sorted(os.listdir(tmp_path / "new" / "scores")) == ["cases.csv", "summary.json"]
    theirs = load_summary_json(str(tmp_path / "new" / "scores" / "summary.json"))
    assert list(theirs["mean"]) == [(1, 2, 3), (2, 3)]
    assert theirs["metric_per_case"][2]["metrics"][2, 3] == found.cases[2].metrics[2, 3]
    assert theirs["metric_per_case"][2]["prediction_file"] == str(folders[1] / "case_2.nii.gz")
    assert theirs["foreground_mean"]["HD95"] == found.overall["HD95"].mean
    rows = list(csv.DictReader((tmp_path / "new" / "scores" / "cases.csv").open()))
    assert [(row["case"], row["name"]) for row in rows[:3]] == [
        ("case_0", "whole"),
        ("case_0", "core"),
        ("case_1", "whole"),
    ]
    assert float(rows[1]["HD95"]) == found.cases[0].metrics[2, 3]["HD95"]


def test_output_can_be_a_json_file_and_is_not_replaced_silently(folders, tmp_path):
    evaluate(*folders, output=tmp_path / "a.json")
    assert (tmp_path / "a.csv").is_file()
    before = (tmp_path / "a.json").read_bytes()
    with pytest.raises(UserError, match="pass --overwrite"):
        evaluate(*folders, metrics=("iou",), output=tmp_path / "a.json")
    assert (tmp_path / "a.json").read_bytes() == before
    evaluate(*folders, metrics=("iou",), output=tmp_path / "a.json", overwrite=True)
    assert (tmp_path / "a.json").read_bytes() != before


def test_nothing_is_written_without_output(folders, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    evaluate(*folders)
    assert sorted(tmp_path.rglob("*")) == before


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


@pytest.mark.parametrize("ending", [".mha", ".nrrd", ".tif", ".png", ".nii"])
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


# --- statistics ---


def test_mean_and_standard_deviation_by_hand():
    (first, second) = summarise(np.array([[1.0, np.nan], [3.0, np.nan], [np.nan, 4.0]]))
    assert (first.mean, first.sd, first.cases) == (2, math.sqrt(2), 2)
    assert (second.mean, second.cases) == (4, 1) and math.isnan(second.sd) and math.isnan(second.low)


def test_the_interval_is_that_of_the_bootstrap_and_the_same_every_time():
    values = np.random.default_rng(3).normal(0.8, 0.1, (40, 1))
    (found,) = summarise(values)
    assert found == summarise(values)[0]
    means = values[np.random.default_rng(9).integers(0, 40, (20_000, 40)), 0].mean(axis=1)
    assert (found.low, found.high) == pytest.approx(tuple(np.percentile(means, [2.5, 97.5])), abs=0.002)
    normal = 1.96 * found.sd / math.sqrt(40)
    assert (found.low, found.high) == pytest.approx((found.mean - normal, found.mean + normal), abs=0.005)


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    table = rng.normal(0.0, 1.0, (50, 300))  # 300 experiments of 50 cases
    hits = [found.low < 0 < found.high for found in summarise(table)]
    assert 0.90 < np.mean(hits) < 0.98


def test_resampling_draws_whole_cases_and_leaves_out_what_is_undefined():
    values = np.array([[1.0, 10.0], [2.0, 20.0], [3.0, np.nan]])
    means = resampled_means(values)
    assert means.shape == (10_000, 2)
    both = ~np.isnan(means).any(axis=1)
    assert 0.9 < both.mean() < 1  # sometimes only the third case is drawn
    assert set(np.round(means[both, 1], 6)) <= {10, 20, 15, round(40 / 3, 6), round(50 / 3, 6)}
    same = np.column_stack([values[:, 0]] * 2)
    np.testing.assert_array_equal(*resampled_means(same).T)


def test_the_mean_of_classes_is_nnunets_and_goes_without_classes_that_have_no_value():
    values = np.array([[1.0, 0.0, np.nan], [0.5, np.nan, np.nan]])
    assert summarise_mean_of_classes(values).mean == (0.75 + 0) / 2


def test_paired_differences_by_hand():
    first = np.array([[0.5, 0.2], [0.6, np.nan], [0.7, 0.4]])
    second = np.array([[0.6, 0.3], [0.8, 0.9], [np.nan, 0.4]])
    one, two, mean = compare(first, second)
    assert (one.cases, two.cases) == (2, 2)
    assert (one.first, one.second, one.mean) == pytest.approx((0.55, 0.7, 0.15))
    assert (two.first, two.second, two.mean) == pytest.approx((0.3, 0.35, 0.05))
    assert mean.cases == 3 and mean.mean == pytest.approx(((0.1 + 0.1) / 2 + 0.2 + 0.0) / 3)


def test_the_test_is_wilcoxons_and_knows_its_limits():
    differences = np.random.default_rng(0).normal(0.3, 1, 30)
    assert signed_rank(differences) == wilcoxon(differences).pvalue
    assert signed_rank(np.array([np.nan, *differences])) == signed_rank(differences)
    assert signed_rank(np.zeros(5)) == 1
    assert math.isnan(signed_rank(np.full(3, np.nan)))
    assert signed_rank(np.arange(1, 7) / 10) == 2 / 2**6  # all six in one direction


# --- comparison ---


@pytest.fixture
def three(tmp_path):
    """A reference and predictions of which the second differs less from it than the first, on ten images."""
    rng = np.random.default_rng(0)
    for number in range(10):
        reference = rng.integers(0, 3, (20, 20)).astype(np.uint8)
        write(tmp_path / "reference" / f"{number}.png", reference)
        for name, share in (("first", 0.4), ("second", 0.2), ("third", 0.4)):
            wrong = rng.random(reference.shape) < share
            write(
                tmp_path / name / f"{number}.png",
                np.where(wrong, rng.integers(0, 3, wrong.shape), reference).astype(np.uint8),
            )
    return tmp_path / "reference", [tmp_path / name for name in ("first", "second", "third")]


def test_comparison_is_with_the_first_case_by_case(three):
    reference, predictions = three
    found = evaluate_and_compare(reference, predictions, ("dice", "assd"))
    dice = [evaluate(reference, prediction).values("Dice") for prediction in predictions]
    second = found.differences["Dice"][str(predictions[1])]
    assert second[1].mean == pytest.approx((dice[1] - dice[0])[:, 0].mean())
    assert second[MEAN].p == pytest.approx(wilcoxon((dice[1] - dice[0]).mean(axis=1)).pvalue)
    assert second[MEAN].p < 0.01 < found.differences["Dice"][str(predictions[2])][MEAN].p
    assert second[MEAN].low > 0 and second[MEAN].cases == 10
    assert found.differences["ASSD"][str(predictions[1])][1].mean < 0
    text = found.as_text()
    assert (
        " ".join(text.split()).count("mean of classes second") == 2
        and "Wilcoxon" in text
        and f"to {predictions[0]}" in text
    )


def test_comparison_is_over_the_cases_that_all_have_and_all_classes(three):
    reference, predictions = three
    (predictions[1] / "3.png").unlink()
    for path in predictions[2].iterdir():
        write(path, np.zeros((20, 20), np.uint8))
    found = evaluate_and_compare(reference, predictions, chill=True)
    assert {len(evaluation.cases) for evaluation in found.evaluations.values()} == {9}
    assert found.differences["Dice"][str(predictions[2])][2].second == 0


def test_comparisons_are_written(three, tmp_path):
    reference, predictions = three
    found = evaluate_and_compare(reference, predictions, output=tmp_path / "out")
    tree = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert tree["differences"] == json.loads(json.dumps(found.rows()))
    rows = list(csv.DictReader((tmp_path / "out" / "comparison.csv").open()))
    assert len(rows) == 2 * 3 and float(rows[0]["p"]) == found.rows()[0]["p"]
    with pytest.raises(UserError, match="--overwrite"):
        evaluate_and_compare(reference, predictions, output=tmp_path / "out")


def test_a_prediction_is_not_compared_with_itself(three):
    reference, (first, *_) = three
    for predictions in ([first], [first, first]):
        with pytest.raises(WrongUse, match="two or more, each once"):
            evaluate_and_compare(reference, predictions)


# --- the command ---


def test_the_command_prints_a_table(folders, capsys):
    declare(folders[0].parent, background=0, liver=1, spleen=2, rest=3)
    assert main(["evaluate", *map(str, folders), "--metrics", "dice,assd", "-q"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["Dice", "mean", "sd", "95", "%", "interval", "cases", "both", "empty", "one", "empty"]
    statistic = evaluate(*folders).statistics["Dice"][1]
    assert lines[1].startswith("1 liver") and f"{statistic.mean:.4f}" in lines[1]
    assert lines[4].startswith("mean of classes") and lines[6].startswith("ASSD in mm")


def test_the_command_refuses_what_a_challenge_decides_itself(folders, capsys):
    own = ["--metrics", "hd95", "--tolerance", "1"]
    assert main(["evaluate", *map(str, folders), "--challenge", "flare22", *own]) == 2
    assert "got --metrics, --tolerance together with --challenge flare22" in capsys.readouterr().err


def test_the_command_prints_json_that_any_reader_takes(folders, capsys):
    assert main(["evaluate", *map(str, folders), "-l", "1", "9", "1,2", "--json", "-q"]) == 0

    def refuse(word):
        raise ValueError(word)

    tree = json.loads(capsys.readouterr().out, parse_constant=refuse)
    assert tree["mean"]["9"]["Dice"] is None and tree["mean"]["(1, 2)"]["Dice"] > 0


def test_the_command_compares(three, capsys):
    reference, predictions = three
    assert main(["evaluate", str(reference), str(predictions[0]), "--compare", *map(str, predictions[1:]), "-q"]) == 0
    assert "second" in capsys.readouterr().out


def test_the_command_says_in_a_line_what_is_wrong(folders, capsys):
    (folders[1] / "case_0.nii.gz").unlink()
    assert main(["evaluate", *map(str, folders)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"nnunet_semi evaluate: {folders[1]} lacks 1 of 3 cases: case_0")


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


def test_a_header_that_points_to_other_files_is_refused(tmp_path):
    path = write(tmp_path / "a.nrrd", volumes(0)["case_0"])
    head, _, voxels = path.read_bytes().partition(b"\n\n")
    (tmp_path / "voxels.raw").write_bytes(voxels)
    path.write_bytes(head + b"\ndata file: voxels.raw\n\n")
    with pytest.raises(UserError, match="a header that points to other files"):
        read_label_map(path)
