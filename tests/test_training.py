"""The way of a user, with the real commands: images into imagesUn, train, stop, continue, predict, hand on."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
from PIL import Image

from nnunet_semi.errors import UserError
from nnunet_semi.narrow import narrow
from nnunet_semi.stock import load_checkpoint
from nnunet_semi.trainers.nnUNetTrainerCPS import nnUNetTrainerCPS
from nnunet_semi.unlabeled.preprocessing import preprocess_unlabeled
from short_training import differences, read_checkpoint, train
from small_dataset import draw_case, environment, make_dataset, plan, write_image
from tiny_trainer import make_trainer

DATASET = "Dataset001_Tiny"
NAME, EPOCHS = "nnUNetTrainerCPS_4epochs_2iters_seed3", 4
LIMIT = 600  # seconds for one command; an idle machine needs a twentieth
Environment = Mapping[str, str]


# --- commands ---


def command(name: str) -> str:
    """A command of the installation that runs the tests."""
    found = shutil.which(name, path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    assert found, f"{name} is not installed"
    return found


def call(env: Environment, name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Runs a command to its end, whatever that is."""
    line = [command(name), *map(str, arguments)]
    return subprocess.run(line, env=dict(env), capture_output=True, text=True, timeout=LIMIT)


def run(env: Environment, name: str, *arguments: object) -> str:
    """What a command that works prints."""
    done = call(env, name, *arguments)
    assert done.returncode == 0, f"{name} {arguments}: {done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout + done.stderr


def training(*options: str, configuration: str = "2d_w4", trainer: str = NAME) -> list[str]:
    return ["nnUNetv2_train", "1", configuration, "0", "-tr", trainer, "-device", "cpu", *options]


def prediction(root: Path, output: Path, configuration: str, trainer: str) -> list[object]:
    images = root / "nnUNet_raw" / DATASET / "imagesTs"
    model = ["-d", 1, "-c", configuration, "-f", 0, "-tr", trainer]
    return ["nnUNetv2_predict", "-i", images, "-o", output, *model, "-device", "cpu", "-npp", 0, "-nps", 0]


def fold_folder(results: Path, configuration: str = "2d_w4", trainer: str = NAME) -> Path:
    return results / DATASET / f"{trainer}__nnUNetPlans__{configuration}" / "fold_0"


def dataset(root: Path, configuration: str = "2d", **settings: object) -> dict[str, str]:
    """A dataset that nnU-Net has planned, with a narrow configuration; gives the environment of commands on it."""
    with mock.patch.dict(os.environ, environment(root)):
        make_dataset(root, **settings)
        plan(1, (configuration,))
        narrow(1, configuration, width=4)
        return dict(os.environ)


# --- 2D, from beginning to end ---


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A training that nobody disturbed, of a dataset whose unlabeled images lie in imagesUn and nowhere else."""
    root = tmp_path_factory.mktemp("training")
    env = dataset(root)
    return SimpleNamespace(root=root, env=env, said=run(env, *training()), folder=fold_folder(root / "nnUNet_results"))


@pytest.mark.slow
def test_training_needs_nothing_but_images_in_the_folder(trained: SimpleNamespace) -> None:
    assert "preprocessing for nnUNetPlans_2d: 4 of 4 unlabeled cases (4 new)" in trained.said
    folder = trained.root / "nnUNet_preprocessed" / DATASET / "nnUNetPlans_2d_unlabeled"
    assert sorted(path.name for path in folder.glob("*.pkl")) == [f"un_{number:03d}.pkl" for number in range(4)]
    assert (trained.folder / "validation" / "summary.json").is_file()


@pytest.mark.slow
def test_training_tells_its_pace_and_draws_its_curves(trained: SimpleNamespace) -> None:
    assert re.search(r"first iteration \d+\.\d s", trained.said)
    assert len(re.findall(r"semi: loss_x .* shares 0\.\d", trained.said)) == EPOCHS
    with open(trained.folder / "progress_semi.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["epoch"]) for row in rows] == list(range(EPOCHS))
    for row in rows:
        values = {name: float(value) for name, value in row.items()}
        assert np.isfinite(list(values.values())).all()
        assert abs(sum(value for name, value in values.items() if name.startswith("share_")) - 1) < 1e-4
    weights, learned = ([float(row[f"semi_{name}"]) for row in rows] for name in ("weight", "learned"))
    assert weights[0] == 0 and all(0 <= worst <= 1 for worst in learned)  # of the class that is learned worst
    for weight, before in zip(weights[1:], learned, strict=False):
        assert weight < before if before else weight == 0
    with Image.open(trained.folder / "progress.png") as picture:
        assert picture.height > 5400  # of nnU-Net's own three panels


@pytest.mark.slow
def test_a_killed_training_continues_to_the_same_weights(trained: SimpleNamespace) -> None:
    env = {**trained.env, "nnUNet_results": str(trained.root / "killed")}
    folder = fold_folder(trained.root / "killed")
    kill_in_epoch(env, folder, 2)
    assert not (folder / "checkpoint_final.pth").exists()
    best, latest = (folder / f"checkpoint_{name}.pth" for name in ("best", "latest"))
    for path in [best, *([latest] if latest.exists() else [])]:
        assert read_checkpoint(path)["current_epoch"] in (1, 2)
    assert "network_weights" in load_checkpoint(folder / "checkpoint_036.pth")  # kept at the end of epoch 1
    said = run(env, *training("--c"))
    assert re.search(r"restored .*checkpoint_best\.pth: epoch [12], seed 3", said)
    expected, found = (read_checkpoint(place / "checkpoint_final.pth") for place in (trained.folder, folder))
    assert differences(expected, found) == []


def kill_in_epoch(env: Environment, folder: Path, epoch: int) -> None:
    """Starts the training and kills it with all its workers as soon as its log says that the epoch has begun."""
    line = [command("nnUNetv2_train"), *training()[1:]]
    with open(folder.parents[2].with_suffix(".txt"), "w+") as said:
        process = subprocess.Popen(line, env=dict(env), stdout=said, stderr=said, start_new_session=True)
        try:
            deadline = time.monotonic() + LIMIT
            while not any(re.search(rf"Epoch {epoch}\b", log.read_text()) for log in folder.glob("training_log_*.txt")):
                assert process.poll() is None, f"it ended before epoch {epoch}: {Path(said.name).read_text()[-3000:]}"
                assert time.monotonic() < deadline, f"epoch {epoch} did not begin"
                time.sleep(0.02)
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    assert process.returncode == -signal.SIGKILL


@pytest.mark.slow
def test_an_exported_model_predicts_the_same_without_the_plugin(trained: SimpleNamespace) -> None:
    here, there, archive = trained.root / "here", trained.root / "there", trained.root / "model.zip"
    run(trained.env, *prediction(trained.root, here, "2d_w4", NAME))
    run(trained.env, "nnunet_semi", "export", "-d", 1, "-c", "2d_w4", "-tr", NAME, "-f", 0, "-o", archive)
    stock = {**trained.env, "nnUNet_results": str(trained.root / "stock"), "NNUNET_SEMI_NO_HOOK": "1"}
    stock.pop("nnUNet_extTrainer", None)
    Path(stock["nnUNet_results"]).mkdir()
    run(stock, "nnUNetv2_install_pretrained_model_from_zip", archive)
    installed = fold_folder(trained.root / "stock", trainer="nnUNetTrainer") / "checkpoint_final.pth"
    assert list((trained.root / "stock").rglob("*.pth")) == [installed]
    assert installed.stat().st_size < 0.5 * (trained.folder / "checkpoint_final.pth").stat().st_size
    run(stock, *prediction(trained.root, there, "2d_w4", "nnUNetTrainer"))
    assert_same_label_maps(here, there)


@pytest.mark.slow
def test_a_teacher_begins_with_other_weights_and_is_validated_again(trained: SimpleNamespace, tmp_path: Path) -> None:
    """By the commands of README: -pretrained_weights, then --npz, --val and a prediction."""
    env = {**trained.env, "nnUNet_results": str(tmp_path)}
    trainer = "nnUNetTrainerUniMatchV2_1epochs_1iters_seed0"
    weights = str(trained.folder / "checkpoint_final.pth")
    said = run(env, *training("-pretrained_weights", weights, "--npz", trainer=trainer))
    assert "Loading pretrained weights" in said
    validation = fold_folder(tmp_path, trainer=trainer) / "validation"
    summary = (validation / "summary.json").read_bytes()
    probabilities = sorted(path.name for path in validation.glob("*.npz"))
    assert len(probabilities) == len(json.loads(summary)["metric_per_case"])
    shutil.rmtree(validation)
    run(env, *training("--val", trainer=trainer))
    assert (validation / "summary.json").read_bytes() == summary
    assert not list(validation.glob("*.npz"))
    run(env, *prediction(trained.root, tmp_path / "predicted", "2d_w4", trainer))
    assert len(list((tmp_path / "predicted").glob("*.png"))) == 2


def assert_same_label_maps(first: Path, second: Path) -> None:
    names = sorted(path.name for path in first.glob("*.png"))
    assert names == ["ts_000.png", "ts_001.png"]
    for name in names:
        with Image.open(first / name) as one, Image.open(second / name) as other:
            assert np.array_equal(np.array(one), np.array(other))


# --- 3D ---


@pytest.mark.slow
def test_volumes_are_trained_on_and_predicted(tmp_path: Path) -> None:
    env = dataset(tmp_path, "3d_fullres", dimension=3, test=1)
    trainer, configuration = "nnUNetTrainerCPSCutMix_1epochs_1iters_seed0", "3d_fullres_w4"
    run(env, *training(configuration=configuration, trainer=trainer))
    folder = fold_folder(tmp_path / "nnUNet_results", configuration, trainer)
    assert len(list((folder / "validation").glob("*.nii.gz"))) == 2
    run(env, *prediction(tmp_path, tmp_path / "predicted", configuration, trainer))
    assert (tmp_path / "predicted" / "ts_000.nii.gz").is_file()


# --- what stops a training ---


@pytest.fixture
def own_copy(tiny_2d: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A copy of the tiny dataset that a test may spoil."""
    root = tmp_path / "copy"
    shutil.copytree(tiny_2d.parents[2], root)
    for variable, value in environment(root).items():
        monkeypatch.setenv(variable, value)
    monkeypatch.setattr("short_training.one_thread", lambda device: (1, 0))
    plans_file = root / tiny_2d.relative_to(tiny_2d.parents[2])
    return SimpleNamespace(images=root / "nnUNet_raw" / DATASET / "imagesUn", plans_file=plans_file)


def no_folder(images: Path) -> None:
    shutil.rmtree(images)
    preprocessed = images.parents[2] / "nnUNet_preprocessed" / DATASET / "nnUNetPlans_2d_unlabeled"
    shutil.rmtree(preprocessed)  # which would do
    preprocessed.with_suffix(".jsonl").unlink()


def empty_folder(images: Path) -> None:
    shutil.rmtree(images)
    images.mkdir()


def labeled_too(images: Path) -> None:
    shutil.copy(images.with_name("imagesTr") / "tr_000_0000.png", images)


def not_an_image(images: Path) -> None:
    (images / "un_001_0000.png").write_text("no image")


@pytest.mark.parametrize(
    "spoil, sentence",
    [
        (no_folder, r"imagesUn does not exist; put the unlabeled images there, named CASE_0000\.png"),
        (empty_folder, r"imagesUn is empty; put the unlabeled images there, named CASE_0000\.png"),
        (labeled_too, r"tr_000 is labeled \(imagesTr\) and unlabeled .* delete it from imagesUn"),
        (not_an_image, r"1 unlabeled case.*un_001.*`nnunet_semi preprocess -d 1 -c 2d --skip-bad`"),
    ],
)
def test_training_stops_with_a_sentence_before_it_begins(
    own_copy: SimpleNamespace, spoil: Callable[[Path], None], sentence: str
) -> None:
    spoil(own_copy.images)
    trainer = make_trainer(nnUNetTrainerCPS, own_copy.plans_file)
    with pytest.raises(UserError, match=sentence) as problem:
        train(trainer)
    assert "\n" not in str(problem.value)
    assert "Epoch 0" not in Path(trainer.log_file).read_text()


def test_training_goes_without_bad_cases_where_that_was_chosen(own_copy: SimpleNamespace) -> None:
    not_an_image(own_copy.images)
    preprocess_unlabeled(1, ["2d"], num_processes=1, skip_bad=True, progress=False)
    trainer = make_trainer(nnUNetTrainerCPS, own_copy.plans_file, batch_size=8)
    seen = []
    own = trainer.train_step

    def train_step(batch: dict) -> dict:
        seen.extend(batch["unlabeled_keys"])
        return own(batch)

    trainer.train_step = train_step
    train(trainer)
    assert set(seen) == {"un_000", "un_002", "un_003"}
    log = Path(trainer.log_file).read_text()
    assert re.search(r"training goes without 1 bad unlabeled case.*un_001", log)
    assert re.search(r"warning: there are fewer unlabeled cases \(3\) than the batch size", log)


def test_images_smaller_than_the_patch_are_padded(own_copy: SimpleNamespace) -> None:
    image, _ = draw_case(np.random.default_rng(0), (20, 40), 1)
    write_image(own_copy.images / "un_009_0000.png", image[0])
    trainer = make_trainer(nnUNetTrainerCPS, own_copy.plans_file)
    checkpoint = train(trainer)
    assert np.isfinite(checkpoint["logging"]["semi_loss_unlabeled"]).all()
    assert re.search(r"1 of 5 unlabeled cases are smaller than the patch.*un_009", Path(trainer.log_file).read_text())


@pytest.mark.slow
def test_the_sentence_is_the_last_thing_that_the_command_says(own_copy: SimpleNamespace) -> None:
    no_folder(own_copy.images)
    done = call(os.environ, "nnUNetv2_train", 1, "2d", 0, "-tr", NAME, "-device", "cpu")
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(f"nnunet_semi.errors.EnvironmentNotReady: {own_copy.images} does not exist; put ")
