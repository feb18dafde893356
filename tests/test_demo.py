"""The demo: its made images, its folder, its child processes, and once all of it by the real commands."""

from __future__ import annotations

import _thread
import json
import signal
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nnunet_semi.demo import commands, demo, progress, run
from nnunet_semi.demo.commands import environment, find_command, run_command
from nnunet_semi.demo.comparison import TRAINERS, case_means, dice, read, score, summary, table, trainer_names
from nnunet_semi.demo.dataset import LABELS, NAME, SIZE, draw_case, write_dataset
from nnunet_semi.demo.folder import STATE, DemoFolder, Settings, open_folder
from nnunet_semi.demo.pictures import COLOURS, contact_sheet
from nnunet_semi.demo.progress import TrainingProgress
from nnunet_semi.demo.steps import Step, all_steps
from nnunet_semi.errors import EnvironmentNotReady, UserError, WrongUse
from nnunet_semi.raw import FOLDERS

SMALL = Settings(seed=1, epochs=1, iterations=2, width=4, labeled=3, unlabeled=4, test=2)
COUNTS = {"Tr": 2, "Un": 5, "Ts": 3}


def cases(number: int, seed: int = 5) -> list[tuple[np.ndarray, np.ndarray]]:
    return [draw_case(np.random.default_rng([seed, index])) for index in range(number)]


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# --- the images ---


def test_every_case_shows_both_classes_in_eight_bits() -> None:
    for image, label in cases(40):
        assert image.shape == label.shape == (SIZE, SIZE)
        assert image.dtype == label.dtype == np.uint8
        assert image.min() >= 1  # nnU-Net crops to what is not 0
        assert set(np.unique(label)) == set(LABELS.values())
        assert all((label == value).sum() >= 30 for value in LABELS.values())


def test_labeled_images_are_clearer_than_the_others(tmp_path: Path) -> None:
    """The cavity stands out from the wall more, by the noise from one pixel to the next, in the worst of 20 images."""
    folder = write_dataset(tmp_path, 0, {"Tr": 20, "Un": 0, "Ts": 20})

    def worst(kind: str) -> float:
        ratios = []
        for path in sorted((folder / f"images{kind}").iterdir()):
            image = read(path).astype(float)
            label = read(folder / f"labels{kind}" / path.name.replace("_0000", ""))
            step = image[label == LABELS["cavity"]].mean() - image[label == LABELS["wall"]].mean()
            ratios.append(step / np.abs(np.diff(image, axis=1)).mean())
        return min(ratios)

    assert worst("Tr") > 3 * worst("Ts")


def test_no_threshold_segments_the_images() -> None:
    """Not even the best one or two thresholds of each image, chosen by looking at its label."""
    best_of_cases = []
    for image, label in cases(20):
        levels = np.percentile(image, np.arange(0, 101, 5))
        bands = [(image >= low) & (image <= high) for low in levels for high in levels if low < high]
        best_of_cases.append([max(dice(band, label == value) for band in bands) for value in (1, 2)])
    assert np.mean(best_of_cases) < 0.6


def test_brightness_varies_more_between_cases_than_between_classes() -> None:
    means = np.array([[image[label == value].mean() for value in LABELS.values()] for image, label in cases(40)])
    between_cases, between_classes = means.std(axis=0), np.ptp(means.mean(axis=0))
    assert between_cases.mean() > 0.25 * between_classes
    for darker, brighter in ((1, 0), (0, 2)):
        assert np.mean(means[:, darker].max() > means[:, brighter]) > 0.3  # the ranges overlap


def test_the_same_seed_gives_the_same_files_and_another_does_not(tmp_path: Path) -> None:
    first, second, third = (files(write_dataset(tmp_path / str(i), seed, COUNTS)) for i, seed in enumerate((3, 3, 4)))
    assert first == second
    assert first.keys() == third.keys()
    assert all(first[name] != third[name] for name in first if name.startswith("images"))


def test_more_cases_leave_the_others_as_they_are(tmp_path: Path) -> None:
    few = files(write_dataset(tmp_path / "few", 3, COUNTS))
    many = files(write_dataset(tmp_path / "many", 3, {"Tr": 2, "Un": 9, "Ts": 4}))
    del few["dataset.json"]
    assert few.items() <= many.items()


def test_no_image_occurs_twice_and_unlabeled_ones_have_no_label(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path, 3, COUNTS)
    images = [content for name, content in files(folder).items() if name.startswith("images")]
    assert len(set(images)) == len(images) == sum(COUNTS.values())
    assert not (folder / "labelsUn").exists()
    description = json.loads((folder / "dataset.json").read_text())
    assert description["numTraining"] == len(list((folder / "labelsTr").iterdir())) == COUNTS["Tr"]
    assert description["labels"] == LABELS


# --- the folder ---


def test_a_folder_with_something_else_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(WrongUse, match="not empty"):
            demo(tmp_path, "cpu", overwrite=overwrite)
    assert files(tmp_path) == {"thesis.txt": b"mine"}


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(WrongUse, match="is a file"):
        open_folder(tmp_path / "file", SMALL, overwrite=True)


def test_a_gpu_that_is_not_there_is_told_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(EnvironmentNotReady, match="got -device cuda, but PyTorch sees no GPU"):
        demo(tmp_path / "new", device="cuda")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("wrong", [{"epochs": 0}, {"seed": -1}, {"labeled": 0}, {"device": "tpu"}])
def test_impossible_settings_are_refused_before_anything_is_written(tmp_path: Path, wrong: dict) -> None:
    with pytest.raises(WrongUse, match=str(next(iter(wrong.values())))):
        demo(tmp_path / "new", **{"device": "cpu", **wrong})
    assert not (tmp_path / "new").exists()


def test_a_demo_with_other_settings_is_refused_unless_overwritten(tmp_path: Path) -> None:
    place = open_folder(tmp_path / "demo", SMALL, overwrite=False)
    place.mark_done("dataset", 1)
    (place.path / "nnUNet_raw").mkdir()
    (place.path / "notes.txt").write_text("mine")
    with pytest.raises(WrongUse, match="seed 1, but 2"):
        open_folder(place.path, replace(SMALL, seed=2), overwrite=False)
    anew = open_folder(place.path, replace(SMALL, seed=2), overwrite=True)
    assert not anew.is_done("dataset") and not anew.continued
    assert not (place.path / "nnUNet_raw").exists()
    assert (place.path / "notes.txt").read_text() == "mine"


def test_steps_that_are_done_stay_done(tmp_path: Path) -> None:
    open_folder(tmp_path, SMALL, overwrite=False).mark_done("dataset", 2.5)
    again = open_folder(tmp_path, SMALL, overwrite=False)
    assert again.continued and again.is_done("dataset") and not again.is_done("plan")
    assert again.seconds == 2.5


def test_a_broken_state_is_named(tmp_path: Path) -> None:
    (tmp_path / STATE).write_text("{")
    with pytest.raises(UserError, match=STATE):
        open_folder(tmp_path, SMALL, overwrite=False)


def test_without_a_folder_a_temporary_one_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    first, second = (open_folder(None, SMALL, overwrite=False).path for _ in range(2))
    assert first != second and first.parent == second.parent == tmp_path


# --- the steps ---


def test_a_step_that_failed_is_repeated_and_a_finished_one_is_not(tmp_path: Path) -> None:
    acted, shown = [], []

    def fail() -> None:
        acted.append("second")
        if len(acted) == 2:
            raise UserError("no luck")

    steps = [Step("first", "one", lambda: acted.append("first")), Step("second", "two", fail)]
    with pytest.raises(UserError, match="no luck"):
        run._run(steps, open_folder(tmp_path, SMALL, overwrite=False), shown.append)
    run._run(steps, open_folder(tmp_path, SMALL, overwrite=False), shown.append)
    assert acted == ["first", "second", "second"]
    assert "[1/2] done before: one" in shown


def test_both_trainers_get_the_same_configuration_length_and_seed(tmp_path: Path) -> None:
    place = DemoFolder(tmp_path, SMALL, {})
    shown = [step.shown for step in all_steps(place, "cpu", print) if "nnUNetv2_train" in step.shown]
    endings = {line.replace(trainer + "_1", "_1") for line, trainer in zip(shown, TRAINERS, strict=True)}
    assert endings == {"$ nnUNetv2_train 990 2d_w4 all -tr _1epochs_2iters_seed1 -device cpu"}


def test_a_training_with_a_checkpoint_is_continued(tmp_path: Path) -> None:
    place = DemoFolder(tmp_path, SMALL, {})
    trainer = trainer_names(SMALL)["nnUNetTrainerCPS"]
    results = tmp_path / "nnUNet_results" / NAME / f"{trainer}__nnUNetPlans__2d_w4" / "fold_all"
    results.mkdir(parents=True)
    (results / "checkpoint_best.pth").touch()
    shown = {step.name: step.shown for step in all_steps(place, "cpu", print)}
    assert shown[f"train_{trainer}"].endswith(" --c")
    assert not shown[f"train_{trainer_names(SMALL)['nnUNetTrainer']}"].endswith(" --c")


def test_children_work_inside_the_folder_and_our_own_variables_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nnUNet_raw", "/data/raw")
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    monkeypatch.setenv("NNUNET_SEMI_NO_HOOK", "1")
    variables = environment(Path("/demo"))
    assert [variables[name] for name in FOLDERS] == [str(Path("/demo") / name) for name in FOLDERS]
    assert "nnUNet_n_proc_DA" not in variables
    assert variables["nnUNet_extTrainer"]
    assert commands.os.environ["nnUNet_raw"] == "/data/raw"


def python(code: str, log: Path, **options: object) -> None:
    run_command([Path(sys.executable).name, "-c", code], dict(commands.os.environ), log, **options)  # type: ignore[arg-type]


def test_output_goes_to_the_log_and_to_the_watcher(tmp_path: Path) -> None:
    seen: list[str] = []
    python("print('hello')", tmp_path / "a.log", watch=seen.append)
    python("print('again')", tmp_path / "a.log", watch=seen.append)
    lines = (tmp_path / "a.log").read_text().splitlines()
    assert lines[0].startswith("$ ") and lines[1] == "hello" and lines[3] == "again"
    assert "".join(seen).split() == ["hello", "again"]


def test_a_failing_command_is_one_sentence_with_its_error_and_its_log(tmp_path: Path) -> None:
    code = "import sys; print('working'); print('ValueError: too dark'); print('bye'); sys.exit(3)"
    with pytest.raises(UserError) as caught:
        python(code, tmp_path / "a.log")
    message = str(caught.value)
    assert "exit code 3" in message and "ValueError: too dark" in message and str(tmp_path / "a.log") in message
    assert "\n" not in message


def test_an_error_of_an_earlier_run_in_the_same_log_is_not_quoted(tmp_path: Path) -> None:
    (tmp_path / "a.log").write_text("KeyError: old\n")
    with pytest.raises(UserError, match="and said: new"):
        python("print('new'); raise SystemExit(1)", tmp_path / "a.log")


@pytest.mark.skipif(sys.platform == "win32", reason="there are no signals to be killed by")
def test_a_killed_command_is_said_to_be_killed(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"killed by signal 9 \(most likely for want of memory\)"):
        python("import os; os.kill(os.getpid(), 9)", tmp_path / "a.log")


def test_an_unknown_command_says_what_to_install() -> None:
    with pytest.raises(EnvironmentNotReady, match="nnUNetv2_dream"):
        find_command("nnUNetv2_dream")


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Background jobs of a shell ignore interrupts, and so do the children that they start."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.skipif(sys.platform == "win32", reason="interrupts are delivered differently")
@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_ends_the_child_and_lets_it_clean_up(tmp_path: Path) -> None:
    code = "import time\ntry:\n    print('up', flush=True); time.sleep(60)\nfinally:\n    print('cleaned', flush=True)"
    seen: list[str] = []

    def interrupt_when_up(text: str) -> None:
        seen.append(text)
        if "up" in text:
            threading.Thread(target=_thread.interrupt_main).start()

    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        python(code, tmp_path / "a.log", watch=interrupt_when_up)
    assert time.monotonic() - started < 45
    assert "cleaned" in (tmp_path / "a.log").read_text()


def test_progress_counts_epochs_also_of_a_continued_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_SECONDS_BETWEEN_LINES", 0)
    shown: list[str] = []
    with TrainingProgress(10, shown.append) as counter:
        counter.watch("2026-01-01 10:00:00.123456:\nUsing device\n2026-01-01 10:00:01.000000: Ep")
        assert counter.done is None
        counter.watch("och 7 \n2026-01-01 10:00:02.000000: Current learning rate: 0.003\n")
        counter.watch("2026-01-01 10:00:03.000000: Epoch time: 1.0 s\n")
        counter.watch("2026-01-01 10:00:04.000000: Epoch 8 \nx: Epoch time: 1.0 s\n")
        counter.watch("")
        counter.watch("x: Epoch 9\nx: Epoch time: 1.0 s\n")
    assert counter.done == 10
    assert [line.split(" done")[0].strip() for line in shown] == ["epoch 8 of 10", "epoch 9 of 10"]


# --- the comparison ---


def test_dice_of_known_masks() -> None:
    mask = np.array([[True, True], [False, False]])
    assert dice(mask, mask) == 1
    assert dice(mask, ~mask) == 0
    assert dice(mask, np.array([[True, False], [False, False]])) == pytest.approx(2 / 3)
    assert np.isnan(dice(mask & False, mask & False))


def test_scores_are_per_class_and_case() -> None:
    references = {"a": np.array([[0, 1, 2]]), "b": np.array([[1, 1, 2]])}
    predictions = {"a": np.array([[0, 1, 1]]), "b": np.array([[1, 1, 2]])}
    scores = score(predictions, references)
    assert scores == {"wall": [pytest.approx(2 / 3), 1.0], "cavity": [0.0, 1.0]}
    assert case_means(scores) == pytest.approx([1 / 3, 1])


def test_the_table_holds_a_row_per_trainer_and_the_mean() -> None:
    lines = table({"A": {"wall": [0.5, 0.7], "cavity": [0.2, 0.2]}}, {"A": "4 labeled"})
    assert lines[0].split() == ["trained", "on", "wall", "cavity", "mean"]
    assert lines[1].split() == ["A", "4", "labeled", "0.600", "0.200", "0.400"]


def test_the_summary_counts_the_images_with_a_clear_difference(tmp_path: Path) -> None:
    place = open_folder(tmp_path / "demo", replace(SMALL, test=4), overwrite=False)
    plain, semi = [0.5, 0.5, 0.5, 0.5], [0.6, 0.52, 0.4, 0.56]
    scores = {name: {"wall": dice, "cavity": dice} for name, dice in zip(TRAINERS, (plain, semi), strict=True)}
    assert "nnUNetTrainerCPS is better by 0.05 or more on 2 of the 4 images, and worse on 1." in summary(place, scores)


def test_the_pictures_show_every_class_in_its_colour(tmp_path: Path) -> None:
    image, label = cases(1)[0]
    contact_sheet(tmp_path / "a.png", [image, image], {"reference": [label, label]}, {}, {1: "wall", 2: "cavity"}, "t")
    with Image.open(tmp_path / "a.png") as sheet:
        pixels = np.asarray(sheet.convert("RGB")).reshape(-1, 3).astype(int)
    for colour in COLOURS.values():
        wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
        assert (np.abs(pixels - wanted).max(axis=1) < 12).sum() > 100


# --- all of it ---


@pytest.mark.slow
def test_the_demo_runs_the_real_commands_and_continues(tmp_path: Path) -> None:
    small = {name: value for name, value in vars(SMALL).items() if name != "seed"}
    shown: list[str] = []
    before = dict(commands.os.environ)
    result = demo(tmp_path / "demo", "cpu", 1, report=shown.append, **small)
    assert dict(commands.os.environ) == before
    assert result.dice.keys() == set(TRAINERS)
    assert all(len(values) == SMALL.test for of_class in result.dice.values() for values in of_class.values())
    assert json.loads((result.folder / "scores.json").read_text())["dice"] == result.dice
    assert result.pictures.is_file()
    assert "nnUNetTrainerCPS  3 labeled, 4 unlabeled" in shown[-1]
    assert str(result) in shown[-1]
    shown.clear()
    again = demo(tmp_path / "demo", "cpu", 1, report=shown.append, **small)
    assert again == result
    assert sum("done before" in line for line in shown) == 8
