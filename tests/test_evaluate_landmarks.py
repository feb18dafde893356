"""`evaluate --landmarks`: numbers against a computation written out here, files, pictures, and what can be wrong."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
from PIL import Image

from nnunet_semi.cli import main
from nnunet_semi.errors import UserError, WrongUse
from nnunet_semi.evaluation.landmarks import LIMITS, MACRO, MICRO, evaluate_landmarks
from nnunet_semi.orthodontics import NAMES, points_as_json
from nnunet_semi.report.results import find_results
from nnunet_semi.report.scores import read_scores

SIZE, SPACING, ORIGIN = [60, 40], [0.5, 0.25], [3.0, -7.0]  # x, y
LANDMARKS = ("sella", "nasion", "menton")


def write(path: Path, voxels, names=LANDMARKS, **changes):
    """A file of landmarks, as dataset.json's neighbours in landmarksTr are."""
    entries = []
    for label, (name, voxel) in enumerate(zip(names, voxels, strict=True), 1):
        world = None if voxel is None else [o + s * v for o, s, v in zip(ORIGIN, SPACING, voxel, strict=False)]
        entries.append({"name": name, "label": label, "voxel": voxel, "world": world})
    content = {"size": SIZE, "spacing": SPACING, "origin": ORIGIN, "landmarks": entries, **changes}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def points(seed, cases=5):
    """Case → three landmarks (x, y) in pixels, some of them missing."""
    random = np.random.default_rng(seed)
    found = {}
    for number in range(cases):
        rows = random.uniform([5, 5], [50, 35], (3, 2)).round(2).tolist()
        rows[number % 3] = None if number in (seed, seed + 2) else rows[number % 3]
        found[f"case_{number}"] = rows
    return found


@pytest.fixture
def folders(tmp_path):
    """References in landmarksTs, with their images in imagesTs, and predictions a few pixels away."""
    random = np.random.default_rng(3)
    for case, rows in points(0).items():
        write(tmp_path / "landmarksTs" / f"{case}.json", rows)
        image = SimpleITK.GetImageFromArray(random.integers(0, 99, (40, 60)).astype(np.uint8))
        image.SetSpacing(SPACING)
        (tmp_path / "imagesTs").mkdir(exist_ok=True)
        SimpleITK.WriteImage(image, str(tmp_path / "imagesTs" / f"{case}_0000.mha"))
    for case, rows in points(1).items():
        write(tmp_path / "predictions" / f"{case}.json", rows)
    return tmp_path / "landmarksTs", tmp_path / "predictions"


def expected_errors():
    """Cases × landmarks, written out: millimetres, None where one of both is missing."""
    table = []
    for case, truth in points(0).items():
        row = []
        for a, b in zip(truth, points(1)[case], strict=True):
            if a is None or b is None:
                row.append(None)
            else:
                row.append(math.sqrt(((a[0] - b[0]) * SPACING[0]) ** 2 + ((a[1] - b[1]) * SPACING[1]) ** 2))
        table.append(row)
    return table


def test_means_and_shares_are_those_of_an_independent_computation(folders):
    found = evaluate_landmarks(*folders, progress=False).statistics
    rows = expected_errors()
    flat = [value for row in rows for value in row if value is not None]
    assert len(flat) < 15
    assert found["MRE"][MICRO].mean == pytest.approx(sum(flat) / len(flat))
    assert found["MRE"][MICRO].sd == pytest.approx(np.std(flat, ddof=1))
    columns = [[value for value in column if value is not None] for column in zip(*rows, strict=True)]
    assert found["MRE"][MACRO].mean == pytest.approx(np.mean([np.mean(column) for column in columns]))
    for label, column in enumerate(columns, 1):
        assert found["MRE"][str(label)].mean == pytest.approx(np.mean(column))
        assert found["MRE"][str(label)].sd == pytest.approx(np.std(column, ddof=1))
        for limit in LIMITS:
            share = sum(value < limit for value in column) / len(column)
            assert found[f"SDR {limit:g} mm"][str(label)].mean == pytest.approx(share)
    for limit in LIMITS:
        assert found[f"SDR {limit:g} mm"][MICRO].mean == pytest.approx(sum(v < limit for v in flat) / len(flat))


def test_missing_landmarks_are_counted_as_rates_of_their_own(folders):
    truth, prediction = points(0), points(1)
    pairs = [(a, b) for case in truth for a, b in zip(truth[case], prediction[case], strict=True)]
    missed = [b is None for a, b in pairs if a is not None]
    invented = [b is not None for a, b in pairs if a is None]
    assert any(missed) and any(invented)
    found = evaluate_landmarks(*folders, progress=False).statistics
    assert found["missed"][MICRO].mean == pytest.approx(sum(missed) / len(missed))
    assert found["invented"][MICRO].mean == pytest.approx(sum(invented) / len(invented))


def test_landmarks_outside_of_the_image_count_as_missing(tmp_path):
    """None can be found there; those on the border belong to the image."""
    truth = [[-0.4, SIZE[1] - 0.6], [-0.6, 5.0], [5.0, SIZE[1] - 0.4]]
    write(tmp_path / "truth" / "a.json", truth)
    write(tmp_path / "found" / "a.json", [truth[0], [0.0, 5.0], None])
    tables = evaluate_landmarks(tmp_path / "truth", tmp_path / "found", progress=False).tables
    assert tables["MRE"] == pytest.approx(np.array([[0.0, math.nan, math.nan]]), nan_ok=True)
    assert tables["missed"] == pytest.approx(np.array([[0.0, math.nan, math.nan]]), nan_ok=True)
    assert tables["invented"] == pytest.approx(np.array([[math.nan, 1.0, 0.0]]), nan_ok=True)


def test_the_interval_is_a_bootstrap_over_cases(folders):
    found = evaluate_landmarks(*folders, progress=False).statistics["MRE"][MICRO]
    rows = expected_errors()
    random = np.random.default_rng(1)
    means = []
    for _ in range(4000):
        drawn = [value for index in random.integers(0, len(rows), len(rows)) for value in rows[index]]
        means.append(np.mean([value for value in drawn if value is not None]))
    # two samples of thousands of means of five cases: their 2.5 % quantiles agree to a few percent of the spread
    tolerance = 0.1 * (max(means) - min(means))
    assert [found.low, found.high] == pytest.approx(np.percentile(means, [2.5, 97.5]).tolist(), abs=tolerance)


def test_an_error_of_the_limit_itself_is_not_below_it(tmp_path):
    write(tmp_path / "r" / "a.json", [[0, 0], [0, 0], None])
    write(tmp_path / "p" / "a.json", [[4, 0], [3.9, 0], None])
    found = evaluate_landmarks(tmp_path / "r", tmp_path / "p", progress=False)
    assert found.tables["SDR 2 mm"][0, :2].tolist() == [0, 1]
    assert np.isnan([table[0, 2] for metric, table in found.tables.items() if metric != "invented"]).all()
    assert found.tables["invented"][0, 2] == 0


def test_three_dimensions_are_measured_along_all_axes(tmp_path):
    grid = {"size": [9, 9, 9], "spacing": [1.0, 2.0, 3.0], "origin": [0, 0, 0]}
    for folder, voxel in (("r", [1, 1, 1]), ("p", [2, 3, 2])):
        content = {**grid, "landmarks": [{"name": "tip", "label": 1, "voxel": voxel, "world": None}]}
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.json").write_text(json.dumps(content))
    found = evaluate_landmarks(tmp_path / "r", tmp_path / "p", progress=False)
    assert found.tables["MRE"][0, 0] == pytest.approx(math.sqrt(1 + 16 + 9))


def test_a_single_case_has_a_mean_but_no_interval(tmp_path):
    for folder in ("r", "p"):
        write(tmp_path / folder / "a.json", [[1, 1], [2, 2], [3, 3]])
    found = evaluate_landmarks(tmp_path / "r" / "a.json", tmp_path / "p" / "a.json", progress=False)
    assert found.statistics["MRE"]["1"].mean == 0 and math.isnan(found.statistics["MRE"]["1"].low)
    assert found.statistics["MRE"][MICRO].mean == 0
    assert math.isnan(found.statistics["MRE"][MICRO].low) and math.isnan(found.statistics["MRE"][MICRO].high)
    assert "mean of landmarks (macro)" in found.as_text()


# --- files ---


def test_json_and_csv_hold_every_value(folders, tmp_path):
    found = evaluate_landmarks(*folders, output=tmp_path / "out", progress=False)
    tree = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert tree["mean"]["2"]["MRE"] == pytest.approx(found.statistics["MRE"]["2"].mean)
    assert tree["nnunet_semi"]["classes"] == {"1": "sella", "2": "nasion", "3": "menton"}
    assert [Path(case["reference_file"]).stem for case in tree["metric_per_case"]] == sorted(points(0))
    rows = list(csv.DictReader((tmp_path / "out" / "cases.csv").open()))
    errors = [value for row in expected_errors() for value in row]
    assert len(rows) == len(errors)
    for row, error in zip(rows, errors, strict=True):
        assert (row["found"] == "both") == (error is not None)
        assert row["error_mm"] == "" if error is None else float(row["error_mm"]) == pytest.approx(error, abs=1e-6)
    with pytest.raises(UserError, match="exists; choose another -o, or pass --overwrite"):
        evaluate_landmarks(*folders, output=tmp_path / "out", progress=False)


def test_values_that_are_not_defined_are_null_and_the_report_knows_them(folders, tmp_path):
    found = evaluate_landmarks(*folders, output=tmp_path / "out", progress=False)
    text = (tmp_path / "out" / "summary.json").read_text()
    tree = json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    assert tree["metric_per_case"][0]["metrics"]["1"]["MRE"] is None  # the reference has it not
    scores = read_scores(find_results([tmp_path / "out"])[0])
    for metric, table in found.tables.items():
        assert scores.table(metric) == pytest.approx(table, nan_ok=True)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_the_file_of_the_challenge_holds_numbers_alone(value):
    rows = cl_points(0)
    rows[1][6] = (3.0, value)
    with pytest.raises(UserError, match="landmark 7 of image 2"):
        points_as_json(rows)


def test_the_verb_prints_a_table_and_json(folders, capsys):
    assert main(["evaluate", "--landmarks", *map(str, folders), "-q"]) == 0
    said = capsys.readouterr().out
    assert "SDR 2.5 mm" in said and "2 nasion" in said and "all points (micro)" in said
    assert main(["evaluate", "--landmarks", *map(str, folders), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["nnunet_semi"]["settings"]["landmarks"] is True


# --- pictures ---


def colours(page, wanted):
    values = np.asarray(page.convert("RGB")).astype(int)
    return np.argwhere(np.abs(values - wanted).max(axis=-1) < 40)


def test_pictures_show_the_reference_red_and_the_prediction_green_where_they_are(folders, tmp_path):
    evaluate_landmarks(*folders, pictures=tmp_path / "pictures", progress=False)
    assert sorted(path.name for path in (tmp_path / "pictures").iterdir()) == [f"{case}.png" for case in points(0)]
    page = Image.open(tmp_path / "pictures" / "case_4.png")
    # in mm the image is 30 × 10, drawn 1000 pixels wide
    assert page.size == (1000, 333)
    for rows, colour in ((points(0)["case_4"], (255, 64, 64)), (points(1)["case_4"], (64, 230, 90))):
        drawn = colours(page, colour)
        for x, y in (row for row in rows if row is not None):
            place = np.array([(y + 0.5) * 333 / 40 - 0.5, (x + 0.5) * 1000 / 60 - 0.5])
            assert np.linalg.norm(drawn - place, axis=1).min() < 3, (x, y)
    assert len(colours(page, (255, 225, 60)))


def test_pictures_of_volumes_show_three_sides(tmp_path):
    image = SimpleITK.GetImageFromArray(np.zeros((8, 16, 12), np.uint8))
    (tmp_path / "imagesTr").mkdir()
    SimpleITK.WriteImage(image, str(tmp_path / "imagesTr" / "a_0000.nii.gz"))
    grid = {"size": [12, 16, 8], "spacing": [1, 1, 1], "origin": [0, 0, 0]}
    for folder, voxel in (("landmarksTr", [3, 4, 5]), ("p", [4, 4, 5])):
        content = {**grid, "landmarks": [{"name": "tip", "label": 1, "voxel": voxel}]}
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.json").write_text(json.dumps(content))
    evaluate_landmarks(tmp_path / "landmarksTr", tmp_path / "p", pictures=tmp_path / "pictures", progress=False)
    page = Image.open(tmp_path / "pictures" / "a.png")
    assert page.width == 500 + 666 + 666 + 16
    drawn = colours(page, (64, 230, 90))
    # x and y from above; x and z, then y and z, with z upwards; a voxel is 41.6, 55.5 and 41.6 pixels large
    for place in ((4.5 * 41.6, 4.5 * 41.6), (2.5 * 55.5, 508 + 4.5 * 55.5), (2.5 * 41.6, 1182 + 4.5 * 41.6)):
        assert np.linalg.norm(drawn - place, axis=1).min() < 4, place


def test_pictures_are_not_replaced_silently_and_need_images(folders, tmp_path):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "case_1.png").touch()
    with pytest.raises(UserError, match=r"already holds case_1.png; choose another --pictures"):
        evaluate_landmarks(*folders, pictures=tmp_path / "pictures", progress=False)
    with pytest.raises(UserError, match="there is no image for case_0, case_1, case_2 and 2 more"):
        evaluate_landmarks(*folders, pictures=tmp_path / "other", images=tmp_path / "predictions", progress=False)
    assert not (tmp_path / "other").exists()
    with pytest.raises(WrongUse, match="only needed with --pictures"):
        evaluate_landmarks(*folders, images=tmp_path)


# --- CL-Detection 2023 ---


def cl_points(seed, images=3):
    random = np.random.default_rng(seed)
    return [[tuple(xy) for xy in random.uniform(0, 50, (38, 2)).round(1).tolist()] for _ in range(images)]


@pytest.fixture
def challenge(tmp_path):
    """train-gt.json with a scale for each image, orthodontic-landmarks.json, and the stack of images."""
    scales = ("0.1", "0.125", 0.096)
    listed = points_as_json(cl_points(0))
    for item in listed["points"]:
        item["scale"] = scales[item["point"][2] - 1]
        item["name"] = int(item["name"])
    (tmp_path / "train-gt.json").write_text(json.dumps(listed))
    (tmp_path / "orthodontic-landmarks.json").write_text(json.dumps(points_as_json(cl_points(1))))
    stack = SimpleITK.GetImageFromArray(np.full((3, 60, 60, 3), 77, np.uint8), isVector=True)
    SimpleITK.WriteImage(stack, str(tmp_path / "train_stack.mha"))
    return tmp_path / "train-gt.json", tmp_path / "orthodontic-landmarks.json"


def test_the_rule_of_cl_detection_is_followed_to_the_digit(challenge, tmp_path):
    found = evaluate_landmarks(*challenge, challenge="cl-detection2023", output=tmp_path / "out", progress=False)
    errors = []
    for truth, prediction, scale in zip(cl_points(0), cl_points(1), (0.1, 0.125, 0.096), strict=True):
        errors.append(np.sqrt(np.sum(np.square(np.array(truth) - np.array(prediction)), axis=1)) * scale)
    flat = np.concatenate(errors)
    published = json.loads((tmp_path / "out" / "summary.json").read_text())["nnunet_semi"]["challenge"]
    assert published["MRE"] == pytest.approx(flat.sum() / len(flat), rel=1e-12)
    for limit in LIMITS:
        assert published[f"SDR {limit:g} mm"] == pytest.approx((flat < limit).mean(), rel=1e-12)
    assert found.names == NAMES and len(found.cases) == 3


def test_the_verb_reads_the_files_of_cl_detection_and_draws_slices_of_the_stack(challenge, tmp_path, capsys):
    arguments = ["evaluate", *map(str, challenge), "--challenge", "cl-detection2023", "-q"]
    assert main([*arguments, "--pictures", str(tmp_path / "p"), "--images", str(tmp_path / "train_stack.mha")]) == 0
    assert "38 38" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "p").iterdir()) == [f"image_{n:03d}.png" for n in (1, 2, 3)]
    assert main([*arguments, "--pictures", str(tmp_path / "q")]) == 1
    assert "give it with --images" in capsys.readouterr().err


def test_points_that_a_prediction_lacks_are_missed_and_images_that_it_lacks_are_named(challenge):
    listed = json.loads(challenge[1].read_text())
    listed["points"] = [item for item in listed["points"] if item["name"] != "7"]
    challenge[1].write_text(json.dumps(listed))
    found = evaluate_landmarks(*challenge, challenge="cl-detection2023", progress=False).statistics
    assert found["missed"]["7"].mean == 1 and found["missed"][MICRO].mean == pytest.approx(1 / 38)
    listed["points"] = [item for item in listed["points"] if item["point"][2] != 2]
    challenge[1].write_text(json.dumps(listed))
    with pytest.raises(UserError, match=r"orthodontic-landmarks\.json lacks 1 of 3 images: 2"):
        evaluate_landmarks(*challenge, challenge="cl-detection2023", progress=False)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"point": ["a", 1, 1]}, "point 1 with the entry {'name': '1', 'point': ['a', 1, 1]"),
        ({"point": [1, 1]}, "point 1 with the entry {'name': '1', 'point': [1, 1]"),
        ({"point": [1, 1, math.inf]}, "the image inf"),
        ({"point": [math.nan, 1, 1]}, "position (nan, 1)"),
        ({"point": [1, 1, 0]}, "the image 0"),
        ({"name": "39"}, "the name '39'"),
        ({"name": "2"}, "2 more than once"),
    ],
)
def test_broken_points_of_a_prediction_are_told(challenge, change, said):
    listed = json.loads(challenge[1].read_text())
    listed["points"][0].update(change)
    challenge[1].write_text(json.dumps(listed))
    with pytest.raises(UserError) as refused:
        evaluate_landmarks(*challenge, challenge="cl-detection2023", progress=False)
    assert said in str(refused.value) and "orthodontic-landmarks.json" in str(refused.value)


# --- what can be wrong ---


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--compare", "x"], "got --compare together with --landmarks"),
        (["-l", "1"], "got -l together with --landmarks"),
        (["--metrics", "nsd"], "got --metrics together with --landmarks"),
        (["--tolerance", "1"], "got --tolerance together with --landmarks"),
    ],
)
def test_flags_for_label_maps_are_refused(folders, capsys, arguments, said):
    assert main(["evaluate", "--landmarks", *map(str, folders), *arguments]) == 2
    assert said in capsys.readouterr().err


def test_pictures_need_landmarks(folders, capsys):
    assert main(["evaluate", *map(str, folders), "--pictures", "x"]) == 2
    assert "without --landmarks" in capsys.readouterr().err


def test_cases_without_prediction_are_named_or_left_out(folders):
    (folders[1] / "case_1.json").unlink()
    with pytest.raises(UserError, match="lacks 1 of 5 cases .*case_1"):
        evaluate_landmarks(*folders, progress=False)
    found = evaluate_landmarks(*folders, chill=True, progress=False)
    assert len(found.cases) == 4 and found.notes == ("1 references have no prediction and were left out",)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"size": [61, 40]}, "not about the same image (size"),
        ({"spacing": [0.5, 0.3]}, "(spacing"),
        ({"origin": [0.0, 0.0]}, "(origin"),
        ({"landmarks": []}, "not those of"),
        ({"landmarks": 3}, "no list 'landmarks'"),
    ],
)
def test_what_does_not_fit_is_told_with_the_file(folders, change, said):
    path = folders[1] / "case_2.json"
    content = json.loads(path.read_text())
    if "size" in change or "landmarks" in change or "spacing" in change or "origin" in change:
        content["landmarks"] = [{**entry, "world": None} for entry in content["landmarks"]]
    path.write_text(json.dumps({**content, **change}))
    with pytest.raises(UserError) as refused:
        evaluate_landmarks(*folders, progress=False)
    assert said in str(refused.value) and "case_2.json" in str(refused.value)


def test_folders_without_landmarks_are_told(folders, tmp_path):
    with pytest.raises(UserError, match="holds no landmarks"):
        evaluate_landmarks(tmp_path / "imagesTs", folders[1])
    with pytest.raises(UserError, match="is not a folder"):
        evaluate_landmarks(tmp_path / "nowhere", folders[1])
    with pytest.raises(WrongUse, match="got the challenge 'flare22'"):
        evaluate_landmarks(*folders, challenge="flare22")
