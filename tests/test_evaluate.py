"""`evaluate` on folders: what is computed, the files that it writes, and the command."""

from __future__ import annotations

import csv
import errno
import json
import math
import os
from itertools import combinations

import numpy as np
import pytest
from nnunetv2.evaluation.evaluate_predictions import compute_metrics, load_summary_json
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

from label_map_folders import SPACING, declare, volumes, write
from label_map_folders import folders as folders
from nnunet_semi import pool
from nnunet_semi.cli import main
from nnunet_semi.errors import UserError
from nnunet_semi.evaluation import result
from nnunet_semi.evaluation.run import evaluate
from nnunet_semi.evaluation.surface import surface_distances

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


# --- the command ---


def test_the_command_prints_a_table(folders, capsys):
    declare(folders[0].parent, background=0, liver=1, spleen=2, rest=3)
    assert main(["evaluate", *map(str, folders), "--metrics", "dice,assd", "-q"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["Dice", "mean", "sd", "95", "%", "interval", "cases", "both", "empty", "one", "empty"]
    statistic = evaluate(*folders).statistics["Dice"][1]
    assert lines[1].startswith("1 liver") and f"{statistic.mean:.4f}" in lines[1]
    assert lines[4].startswith("mean of classes") and lines[6].startswith("ASSD in mm")


@pytest.mark.parametrize("more", [[], ["--compare", "{reference}"], ["--landmarks"]])
def test_a_folder_that_cannot_be_written_into_is_told_before_the_work(folders, tmp_path, capsys, monkeypatch, more):
    monkeypatch.setattr(result, "TemporaryFile", full_disk)
    more = [word.format(reference=folders[0]) for word in more]
    assert main(["evaluate", *map(str, folders), *more, "-o", str(tmp_path / "out"), "-q"]) == 1
    out, err = capsys.readouterr()
    assert out == "" and f"{tmp_path / 'out'}: No space left on device; make sure that there is free space" in err


def test_the_command_prints_what_it_cannot_write(folders, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(result, "write_json", full_disk)
    assert main(["evaluate", *map(str, folders), "-o", str(tmp_path / "out"), "-q"]) == 1
    out, err = capsys.readouterr()
    assert out.startswith("Dice ") and f"{tmp_path / 'out'}: No space left on device; make sure that" in err


def full_disk(*arguments, **options):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


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


def test_the_command_says_in_a_line_what_is_wrong(folders, capsys):
    (folders[1] / "case_0.nii.gz").unlink()
    assert main(["evaluate", *map(str, folders)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"nnunet_semi evaluate: {folders[1]} lacks 1 of 3 cases: case_0")
