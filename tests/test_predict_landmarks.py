"""Prediction of landmarks by real nnU-Net models whose networks are known: points, ensembles, challenge, refusals.

The network of these models is one convolution that copies a channel per landmark, so that the heatmap's peak lies where
the dot of that channel lies, or, in fold 1, one voxel further. What comes out is then known below a voxel.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import tracemalloc
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import SimpleITK
import torch

from landmark_dataset import save
from nnunet_semi import landmark_files
from nnunet_semi.cli import main
from nnunet_semi.dataset_conversion.landmarks import draw_balls
from nnunet_semi.discovery import hook_folder
from nnunet_semi.errors import EnvironmentNotReady, UserError, WrongUse
from nnunet_semi.evaluation.landmarks import evaluate_landmarks
from nnunet_semi.geometry import Geometry
from nnunet_semi.landmark_files import Landmarks
from nnunet_semi.landmarks.calibration import SAMPLES, from_validation, samples
from nnunet_semi.landmarks.predicting import predict_landmarks
from nnunet_semi.orthodontics import NAMES, read_points
from small_dataset import environment, plan

TRAINER = "nnUNetTrainerCopy"
CODE = """
import torch
from nnunet_semi.trainers.nnUNetTrainerHeatmap import nnUNetTrainerHeatmap

class nnUNetTrainerCopy(nnUNetTrainerHeatmap):
    @staticmethod
    def build_network_architecture(plans_manager, configuration_manager, channels, outputs, enable_deep_supervision):
        convolution = torch.nn.Conv3d if len(configuration_manager.patch_size) == 3 else torch.nn.Conv2d
        return convolution(channels, outputs, 3, padding=1)
"""
EPOCH = 7
SIGMA = 2.0  # mm, of the trainer
GROUND, HEIGHT = 20, 200  # of a dot, whose logit is then 4, where that of the ground is -4
WIDE = 1.5  # mm, standard deviation of the dots
SHIFT = 1  # voxels of the network along x, by which fold 1 is wrong
SPACINGS = {2: ((0.8, 0.7), (0.5, 0.9)), 3: ((1.5, 0.8, 0.9), (1.2, 1.0, 0.7))}  # mm, array order
SHAPES = {2: (56, 64), 3: (24, 40, 36)}
CONFIGURATION = {2: "2d", 3: "3d_fullres"}


def draw(random, spacing, shape, count, missing=()):
    """Channels with a dot each on a grey ground with a border of zeros, and where the dots are (array order)."""
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    low = 4 * WIDE / np.array(spacing) + 4
    voxel = random.uniform(low, np.array(shape) - 1 - low, (count, len(shape)))
    voxel[list(missing)] = np.nan
    channels = np.zeros((count, *shape))
    for channel, point in zip(channels, voxel, strict=True):
        channel += GROUND
        if not np.isnan(point).any():
            channel += HEIGHT * np.exp(-0.5 * (((grid - point) * spacing / WIDE) ** 2).sum(-1))
        channel[:2] = channel[..., -3:] = 0
    return channels.astype(np.float32), voxel


def make_model(root: Path, dimension: int, names, channels: int, missing=(), pairs=None) -> Path:
    """A planned dataset with six training and two test cases, and a model of two folds; gives the model's folder."""
    random = np.random.default_rng(0)
    folder, ending = root / "nnUNet_raw" / "Dataset001_Dots", {2: ".mha", 3: ".nii.gz"}[dimension]
    for kind in ("imagesTr", "labelsTr", "landmarksTr", "imagesTs", "landmarksTs"):
        (folder / kind).mkdir(parents=True)
    for number in range(8):
        spacing, role = SPACINGS[dimension][number % 2], "Tr" if number < 6 else "Ts"
        images, voxel = draw(random, spacing, SHAPES[dimension], channels, missing if number == 7 else ())
        case, size = f"case_{number}", SHAPES[dimension][::-1]
        for channel, values in enumerate(images):
            save(folder / f"images{role}" / f"{case}_{channel:04d}{ending}", values, spacing)
        points = np.resize(voxel, (len(names), dimension))
        geometry = Geometry.of(size, spacing[::-1])
        landmark_files.write(folder / f"landmarks{role}" / f"{case}.json", Landmarks(tuple(names), points, geometry))
        if role == "Tr":
            named = dict(zip(names, (tuple(point[::-1]) for point in points), strict=True))
            save(folder / "labelsTr" / f"{case}{ending}", draw_balls(named, size, spacing[::-1]), spacing)
    description = {
        "channel_names": {str(channel): "noNorm" for channel in range(channels)},
        "labels": {"background": 0} | {name: label for label, name in enumerate(names, 1)},
        "numTraining": 6,
        "file_ending": ending,
        "landmarks": {"names": list(names), **({"left_right": pairs} if pairs else {})},
    }
    (folder / "dataset.json").write_text(json.dumps(description))
    with mock.patch.dict(os.environ, environment(root)):
        plans_file = plan(1, (CONFIGURATION[dimension],))
    model = root / "nnUNet_results" / "Dataset001_Dots" / f"{TRAINER}__nnUNetPlans__{CONFIGURATION[dimension]}"
    for fold in (0, 1):
        (model / f"fold_{fold}" / "validation").mkdir(parents=True)
        torch.save(
            checkpoint(dimension, channels, len(names), SHIFT * fold), model / f"fold_{fold}" / "checkpoint_final.pth"
        )
    (model / "plans.json").write_text(plans_file.read_text())
    (model / "dataset.json").write_text(json.dumps(description))
    (root / "trainers").mkdir()
    (root / "trainers" / "copies.py").write_text(CODE)
    return model


def checkpoint(dimension, channels, landmarks, shift):
    """Output l copies channel (l - 1) % channels, from `shift` voxels before; the background stays 0."""
    weight = torch.zeros(landmarks + 1, channels, *[3] * dimension)
    for landmark in range(landmarks):
        weight[(landmark + 1, landmark % channels, *[1] * (dimension - 1), 1 - shift)] = 8 / HEIGHT
    return {
        "network_weights": {"weight": weight, "bias": torch.tensor([0.0, *[-4 - 8 * GROUND / HEIGHT] * landmarks])},
        "trainer_name": TRAINER,
        "current_epoch": EPOCH,
        "init_args": {"configuration": CONFIGURATION[dimension]},
        "inference_allowed_mirroring_axes": None,
    }


@pytest.fixture(scope="session")
def _models(tmp_path_factory):
    return {"": tmp_path_factory.mktemp("copies")}


@pytest.fixture
def model(_models, monkeypatch):
    """Makes a model once per session and gives its folder; nnU-Net's folders are those around it."""

    def make(dimension=2, names=("sella", "nasion", "menton"), channels=3, **options):
        key = repr((dimension, names, channels, options))
        root = _models[""] / f"{len(_models)}"
        if key not in _models:
            _models[key] = make_model(root, dimension, names, channels, **options)
        folder = _models[key]
        for name, value in environment(folder.parents[2]).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("nnUNet_extTrainer", f"{folder.parents[2] / 'trainers'}{os.pathsep}{hook_folder()}")
        for path in folder.glob("fold_*/validation/*"):
            path.unlink()
        return folder

    return make


def test_images(model_folder):
    return model_folder.parents[2] / "nnUNet_raw" / "Dataset001_Dots" / "imagesTs"


test_images.__test__ = False  # type: ignore[attr-defined]


def predict(folder, output, folds=(0,), **options):
    options = {"trainer": TRAINER, "device": "cpu", "progress": False, **options}
    source, configuration = options.pop("source", test_images(folder)), folder.name.rpartition("__")[2]
    return predict_landmarks(source, output, 1, configuration, folds, **options)


def truth(folder, case):
    return landmark_files.read(test_images(folder).with_name("landmarksTs") / f"{case}.json")


# --- points ---


@pytest.mark.parametrize("dimension", [2, 3])
def test_points_come_back_through_cropping_and_resampling_below_a_tenth_of_a_voxel(model, tmp_path, dimension):
    folder = model(dimension)
    written, _ = predict(folder, tmp_path / "out")
    assert written == tmp_path / "out"
    for case in ("case_6", "case_7"):
        found, expected = landmark_files.read(tmp_path / "out" / f"{case}.json"), truth(folder, case)
        # the resampling by cubic splines moves a dot of two voxels by some hundredths
        assert np.abs(found.voxel - expected.voxel).max() < 0.1, case
        assert found.world == pytest.approx(expected.world, abs=0.1)
        assert found.geometry.size == expected.geometry.size and found.names == expected.names
        assert found.geometry.spacing == pytest.approx(expected.geometry.spacing)  # NIfTI keeps it in single precision
        assert (found.details["presence"] > 0.5).all() and found.details["spread_mm"] == pytest.approx(
            np.zeros(3), abs=1e-9
        )


def test_folds_are_an_ensemble_whose_spread_is_said(model, tmp_path):
    folder = model()
    predict(folder, tmp_path / "out", (0, 1))
    predict(folder, tmp_path / "one", (1,))
    plans = json.loads((folder / "plans.json").read_text())
    shift = SHIFT * plans["configurations"]["2d"]["spacing"][1]  # mm
    for case in ("case_6", "case_7"):
        both, second, expected = (
            landmark_files.read(tmp_path / "out" / f"{case}.json"),
            landmark_files.read(tmp_path / "one" / f"{case}.json"),
            truth(folder, case),
        )
        assert second.world - expected.world == pytest.approx(np.full((3, 2), [shift, 0.0]), abs=0.08)
        assert both.world - expected.world == pytest.approx(np.full((3, 2), [shift / 2, 0.0]), abs=0.08)
        assert both.details["spread_mm"] == pytest.approx(np.full(3, shift / 2), abs=0.05)
        assert (both.details["uncertainty_mm"] > second.details["uncertainty_mm"]).all()


def test_mirrored_images_swap_left_and_right_and_find_the_same_points(model, tmp_path):
    folder = model(names=("left", "right", "middle"), pairs=[["left", "right"]])
    predict(folder, tmp_path / "plain", mirroring=False)
    predict(folder, tmp_path / "mirrored")
    plain, mirrored = (landmark_files.read(tmp_path / name / "case_6.json") for name in ("plain", "mirrored"))
    # this network copies the channel of `left` whatever the side, so that the mirrored image exchanges the two
    spread = mirrored.details["spread_mm"]
    apart = np.linalg.norm(plain.world[0] - plain.world[1]) / np.sqrt(2)  # from one of the two, which is taken
    assert spread[2] == pytest.approx(0, abs=0.02) and spread[:2] == pytest.approx([apart, apart], abs=0.05)


def test_a_model_that_does_not_mirror_sees_no_mirrored_images(model, tmp_path):
    folder = model(names=("left", "right", "middle"), pairs=[["left", "right"]])
    quiet = folder.with_name(folder.name.replace(TRAINER, f"{TRAINER}_nomirror"))
    shutil.copytree(folder, quiet)
    predict(folder, tmp_path / "plain", mirroring=False)
    predict(quiet, tmp_path / "quiet", trainer=f"{TRAINER}_nomirror")
    files = [tmp_path / name / "case_6.json" for name in ("plain", "quiet")]
    assert files[0].read_text() == files[1].read_text()
    shutil.rmtree(quiet)


def test_landmarks_that_are_not_there_are_written_as_missing(model, tmp_path):
    folder = model(missing=(1,))
    predict(folder, tmp_path / "out", threshold=0.5)
    found = landmark_files.read(tmp_path / "out" / "case_7.json")
    assert np.isnan(found.voxel).any(axis=1).tolist() == [False, True, False]
    assert found.details["presence"][1] < 0.2 < 0.8 < found.details["presence"][0]
    predict(folder, tmp_path / "all")  # no validation case says that landmarks may be missing
    assert not np.isnan(landmark_files.read(tmp_path / "all" / "case_7.json").voxel).any()


def test_uncertainties_are_calibrated_on_the_validation_cases(model, tmp_path):
    folder = model()
    _, reason = predict(folder, tmp_path / "raw")
    assert "summary.json does not tell how far off" in reason
    references = test_images(folder).with_name("landmarksTr")
    validated = []
    for number in range(6):  # as if the network had been 5 mm wrong in every validation case, with a perfect peak
        reference = landmark_files.read(references / f"case_{number}.json")
        details = {"peak": np.ones(3), "width": np.ones(3)}
        wrong = reference.geometry.voxel(reference.world + [5.0, 0.0])
        validated.append((reference, Landmarks(reference.names, wrong, reference.geometry, details)))
    summary = folder / "fold_0" / "validation" / "summary.json"
    summary.write_text(json.dumps({"nnunet_semi": {SAMPLES: samples(validated, EPOCH - 1)}}))
    _, reason = predict(folder, tmp_path / "other")
    assert f"about the network after epoch {EPOCH - 1}, and the checkpoint has epoch {EPOCH}; choose" in reason
    summary.write_text(json.dumps({"nnunet_semi": {SAMPLES: samples(validated, EPOCH)}}))
    _, reason = predict(folder, tmp_path / "calibrated")
    assert reason == ""
    found = landmark_files.read(tmp_path / "calibrated" / "case_6.json").details
    scale = np.sqrt(found["width_mm"] ** 2 / found["peak"])
    assert found["uncertainty_mm"] == pytest.approx(5.0 / SIGMA * scale, rel=0.02)


@pytest.mark.parametrize(
    "found",
    [{"names": ["other"] * 3}, {"peak": [[1.0]]}, {"width": "wide"}, {"error_mm": None}],
    ids=lambda it: next(iter(it)),
)
def test_errors_of_another_model_or_damaged_ones_calibrate_nothing(tmp_path, found):
    geometry = Geometry.of((9, 9), (1.0, 1.0))
    landmarks = Landmarks(("a", "b", "c"), np.ones((3, 2)), geometry, {"peak": np.ones(3), "width": np.ones(3)})
    summary = tmp_path / "summary.json"
    summary.write_text(json.dumps({"nnunet_semi": {SAMPLES: samples([(landmarks, landmarks)] * 20, EPOCH) | found}}))
    learned, reason = from_validation([summary], [EPOCH], landmarks.names, SIGMA, dim=2)
    assert learned is None and reason.startswith(str(summary)) and "--val" in reason


# --- files and the command line ---


def test_the_table_holds_what_the_files_hold(model, tmp_path):
    folder = model(missing=(1,))
    predict(folder, tmp_path / "out")
    rows = list(csv.DictReader((tmp_path / "out" / "landmarks.csv").open()))
    assert [(row["case"], row["name"]) for row in rows] == [
        (case, name) for case in ("case_6", "case_7") for name in ("sella", "nasion", "menton")
    ]
    for index, row in enumerate(rows):
        entry = json.loads((tmp_path / "out" / f"{row['case']}.json").read_text())["landmarks"][index % 3]
        expected = entry["voxel"] or ["", ""]
        assert [row["voxel_x"], row["voxel_y"]] == [str(value) for value in expected]
        assert float(row["uncertainty_mm"]) == pytest.approx(entry["uncertainty_mm"], abs=1e-4)


def test_the_verb_predicts_and_says_that_nothing_is_calibrated(model, tmp_path, capsys):
    folder = model()
    arguments = [
        "predict_landmarks",
        "-i",
        str(test_images(folder)),
        "-o",
        str(tmp_path / "out"),
        "-d",
        "1",
        "-c",
        "2d",
    ]
    assert main([*arguments, "-f", "0", "-tr", TRAINER, "-device", "cpu"]) == 0
    said = capsys.readouterr()
    assert said.out.strip() == str(tmp_path / "out") and "uncertainties are not calibrated" in said.err
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["case_6.json", "case_7.json", "landmarks.csv"]


def test_files_are_kept_replaced_or_completed_only_as_asked(model, tmp_path):
    folder = model()
    predict(folder, tmp_path / "out")
    with pytest.raises(UserError, match="already holds case_6, case_7"):
        predict(folder, tmp_path / "out")
    (tmp_path / "out" / "case_6.json").unlink()
    before = (tmp_path / "out" / "case_7.json").stat().st_mtime_ns
    predict(folder, tmp_path / "out", resume=True)
    assert (tmp_path / "out" / "case_7.json").stat().st_mtime_ns == before
    assert (tmp_path / "out" / "case_6.json").is_file()
    predict(folder, tmp_path / "out", overwrite=True)
    assert (tmp_path / "out" / "case_7.json").stat().st_mtime_ns > before


def test_a_damaged_file_and_one_with_other_landmarks_are_predicted_again(model, tmp_path):
    folder = model()
    predict(folder, tmp_path / "out")
    files = [tmp_path / "out" / f"case_{number}.json" for number in (6, 7)]
    whole = [file.read_text() for file in files]
    files[0].write_text(whole[0][:-40])
    files[1].write_text(whole[1].replace("sella", "elbow"))
    predict(folder, tmp_path / "out", resume=True)
    assert [file.read_text() for file in files] == whole
    assert "elbow" not in (tmp_path / "out" / "landmarks.csv").read_text()


def test_the_tables_of_predictions_and_of_their_evaluation_live_side_by_side(model, tmp_path):
    folder, output = model(), tmp_path / "out"
    predict(folder, output)
    predicted = (output / "landmarks.csv").read_text()
    references = test_images(folder).with_name("landmarksTs")
    evaluate_landmarks(references, output, output=output, progress=False)
    scores = (output / "cases.csv").read_text()
    assert (output / "landmarks.csv").read_text() == predicted
    predict(folder, output, overwrite=True)
    assert (output / "cases.csv").read_text() == scores


def test_a_table_without_its_cases_is_not_replaced_silently(model, tmp_path):
    folder = model()
    (tmp_path / "landmarks.csv").write_text("mine")
    with pytest.raises(UserError, match=r"already holds landmarks\.csv; choose another -o, pass --overwrite"):
        predict(folder, tmp_path)
    assert (tmp_path / "landmarks.csv").read_text() == "mine"


# --- CL-Detection 2023 ---


@pytest.fixture
def stack(tmp_path):
    """Three images with a dot each, in RGB, padded with zeros; and where the dots are, as (x, y)."""
    random = np.random.default_rng(5)
    images = np.zeros((3, 70, 90, 3), np.uint8)
    places = []
    for image in images:
        values, voxel = draw(random, (0.7, 0.7), (56, 64), 1)
        image[:56, :64] = values[0].round()[..., None].astype(np.uint8)
        places.append(voxel[0, ::-1])
    (tmp_path / "in").mkdir()
    picture = SimpleITK.GetImageFromArray(images, isVector=True)
    SimpleITK.WriteImage(picture, str(tmp_path / "in" / "stack.mha"))
    return tmp_path / "in", places


def test_the_challenge_gets_its_file_with_all_points_of_all_images(model, stack, tmp_path):
    folder = model(names=NAMES, channels=1)
    written, _ = predict(folder, tmp_path / "out", source=stack[0], challenge="cl-detection2023")
    assert written == tmp_path / "out" / "orthodontic-landmarks.json"
    content = json.loads(written.read_text())
    assert list(content) == ["name", "type", "points", "version"]
    assert (content["name"], content["type"]) == ("Orthodontic landmarks", "Multiple points")
    assert content["version"] == {"major": 1, "minor": 0} and len(content["points"]) == 3 * 38
    assert all(list(point) == ["name", "point"] and isinstance(point["name"], str) for point in content["points"])
    found, problems = read_points(written, (90, 70, 3), scaled=False)
    assert problems == [] and sorted(found) == [1, 2, 3]
    for number, place in enumerate(stack[1], 1):
        for point in found[number].points:
            assert point == pytest.approx(place.tolist(), abs=0.1)


def test_memory_does_not_grow_with_the_stack(model, tmp_path):
    folder = model(names=NAMES, channels=1)
    peaks = []
    for count in (2, 12):
        images = np.zeros((count, 70, 90, 3), np.uint8)
        images[:, :56, :64] = 20
        images[:, 20, 20] = 200
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(images, isVector=True), str(tmp_path / f"{count}.mha"))
        del images
        tracemalloc.start()
        options = {"source": tmp_path / f"{count}.mha", "challenge": "cl-detection2023"}
        predict(folder, tmp_path / f"{count}.json", **options)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.3 * peaks[0] + 300_000  # the points of ten more images are small, their 190 kB each are not


def test_a_network_that_finds_no_number_writes_no_file_for_the_challenge(model, stack, tmp_path):
    folder = model(names=NAMES, channels=1)

    def broken(self, data, properties):
        voxel = np.ones((38, 2))
        voxel[6] = np.nan
        return Landmarks(NAMES, voxel, Geometry.of((9, 9), (1.0, 1.0)))

    with (
        mock.patch("nnunet_semi.landmarks.prediction.LandmarkPredictor.predict_array", broken),
        pytest.raises(UserError, match=r"landmark 7 of image 1 was found at \(nan, nan\)"),
    ):
        predict(folder, tmp_path / "out", source=stack[0], challenge="cl-detection2023")
    assert not (tmp_path / "out" / "orthodontic-landmarks.json").exists()


def test_other_landmarks_are_refused_for_the_challenge(model, stack, tmp_path):
    folder = model()
    with pytest.raises(UserError, match="expected the 38 landmarks of cl-detection2023"):
        predict(folder, tmp_path / "out", source=stack[0], challenge="cl-detection2023")
    (stack[0] / "other.mha").touch()
    with pytest.raises(UserError, match=r"holds 2 \.mha files; expected one stack"):
        predict(folder, tmp_path / "out", source=stack[0], challenge="cl-detection2023")


# --- what is refused ---


def test_models_and_images_that_are_not_there_are_named(model, tmp_path):
    folder = model()
    with pytest.raises(EnvironmentNotReady, match=r"fold_3/checkpoint_final\.pth does not exist"):
        predict(folder, tmp_path / "out", (3,))
    with pytest.raises(EnvironmentNotReady, match="there is nnUNetTrainerCopy__nnUNetPlans__2d"):
        predict(folder, tmp_path / "out", trainer="nnUNetTrainerHeatmap")
    with pytest.raises(UserError, match="is not a folder; give -i"):
        predict(folder, tmp_path / "out", source=tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"holds no image; expected files such as CASE_0000\.mha"):
        predict(folder, tmp_path / "out", source=tmp_path / "empty")
    with pytest.raises(WrongUse, match="got the challenge 'x'"):
        predict(folder, tmp_path / "out", challenge="x")
    for flag, option in (("--threshold", {"threshold": 0.2}), ("--continue_prediction", {"resume": True})):
        with pytest.raises(WrongUse, match=f"got {flag} together with cl-detection2023"):
            predict(folder, tmp_path / "out", challenge="cl-detection2023", **option)
    assert not (tmp_path / "out").exists()


def test_a_missing_channel_and_a_damaged_image_are_named(model, tmp_path):
    folder, source = model(), tmp_path / "in"
    source.mkdir()
    for path in test_images(folder).glob("case_6_*"):
        (source / path.name).write_bytes(path.read_bytes())
    (source / "case_6_0001.mha").rename(tmp_path / "aside")
    with pytest.raises(UserError, match="case_6 in .* has not 3 channels"):
        predict(folder, tmp_path / "out", source=source)
    (source / "case_6_0001.mha").write_bytes(b"NDims = 2")
    with pytest.raises(UserError, match=r"case_6_0000\.mha cannot be predicted \((?!Exception thrown in SimpleITK)"):
        predict(folder, tmp_path / "out", source=source)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_model_of_label_maps_is_refused(model, tmp_path, monkeypatch):
    folder = model()
    other = folder.with_name(folder.name.replace(TRAINER, "nnUNetTrainerCPS"))
    if not other.exists():
        other.symlink_to(folder)
    with pytest.raises(UserError, match="nnUNetTrainerCPS trains no heatmaps"):
        predict(folder, tmp_path / "out", trainer="nnUNetTrainerCPS")
    other.unlink()
