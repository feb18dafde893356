"""Checkpoints of mid-training: when they are written, what is in them, and that a restart neither loses nor repeats."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

from nnunet_semi.errors import WrongUse
from nnunet_semi.kept_checkpoints import kept_after, kept_name
from nnunet_semi.plugin_trainer import CHECKPOINT_KEY, PluginTrainer
from nnunet_semi.trainers.nnUNetTrainerCPS import nnUNetTrainerCPS
from nnunet_semi.trainers.nnUNetTrainerKeepCheckpoints import nnUNetTrainerKeepCheckpoints
from nnunet_semi.trainers.nnUNetTrainerMeanTeacher import nnUNetTrainerMeanTeacher
from short_training import differences, stop_workers, train
from tiny_trainer import make_trainer

EARLY, LATE = "checkpoint_036.pth", "checkpoint_066.pth"
# kept after epochs 2 and 3
SHORT = {"num_epochs": 4, "num_iterations_per_epoch": 1, "num_val_iterations_per_epoch": 1, "save_every": 1}


class Stopped(Exception):
    """What stops a training in a test."""


def stop_after(trainer: Any, epochs: int) -> None:
    """Trains so many epochs, and stops when everything of the last one is saved."""
    own = trainer.on_epoch_end

    def on_epoch_end() -> None:
        own()
        if trainer.current_epoch == epochs:
            raise Stopped

    trainer.on_epoch_end = on_epoch_end
    with pytest.raises(Stopped):
        train(trainer)


def kept(trainer: Any, name: str) -> dict[str, Any]:
    content = torch.load(Path(trainer.output_folder, name), weights_only=False)
    del content["init_args"]
    return content


@pytest.fixture(autouse=True)
def one_process(tiny_2d: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")


def test_names_are_percent_of_training() -> None:
    assert [kept_name(fraction) for fraction in (0.36, 1 / 3, 2 / 3, 0.05)] == [
        EARLY,
        "checkpoint_033.pth",
        "checkpoint_067.pth",
        "checkpoint_005.pth",
    ]


@pytest.mark.parametrize("fraction", [0, 1, -0.5, 36])
def test_other_fractions_are_refused(fraction: float, tiny_2d: Path) -> None:
    with pytest.raises(WrongUse, match="expected fractions of training between 0 and 1"):
        make_trainer(PluginTrainer, tiny_2d, keep_checkpoints=(fraction,))


@pytest.mark.parametrize(("num_epochs", "epochs"), [(1000, (360, 660)), (100, (36, 66)), (25, (9, 17)), (1, (1, 1))])
def test_they_are_written_at_the_first_epoch_that_reaches_the_fraction(
    num_epochs: int, epochs: tuple[int, int]
) -> None:
    assert tuple(kept_after((0.36, 0.66), num_epochs).values()) == epochs


@pytest.mark.parametrize("cls", [nnUNetTrainerKeepCheckpoints, nnUNetTrainerCPS])
def test_every_trainer_keeps_what_prediction_needs_and_no_more(cls: type, tiny_2d: Path) -> None:
    trainer = make_trainer(cls, tiny_2d, **SHORT)
    final = train(trainer)
    folder = Path(trainer.output_folder)
    for name, epoch in ((EARLY, 2), (LATE, 3)):
        content = kept(trainer, name)
        assert content["current_epoch"] == epoch
        assert content[CHECKPOINT_KEY] == {"seed": final[CHECKPOINT_KEY]["seed"]}
        assert differences(content["network_weights"], final["network_weights"]) != []
        assert not {"optimizer_state", "logging"} & content.keys()
        networks = 2 if cls is nnUNetTrainerCPS else 1
        size = (folder / name).stat().st_size / (folder / "checkpoint_final.pth").stat().st_size
        assert size < 0.6 / networks
    assert not list(folder.glob(".*"))


@pytest.mark.parametrize("cls", [nnUNetTrainerCPS, nnUNetTrainerMeanTeacher])
def test_the_kept_network_is_the_one_that_is_deployed(cls: type, tiny_2d: Path) -> None:
    trainer = make_trainer(cls, tiny_2d, **SHORT)
    stop_after(trainer, epochs=2)
    latest = kept(trainer, "checkpoint_latest.pth")
    assert differences(kept(trainer, EARLY)["network_weights"], latest["network_weights"]) == []


def test_nnunets_predictor_loads_them(tiny_2d: Path) -> None:
    trainer = make_trainer(nnUNetTrainerKeepCheckpoints, tiny_2d, **SHORT)
    train(trainer)
    predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(trainer.output_folder_base, ("all",), EARLY)
    assert differences(predictor.list_of_parameters[0], kept(trainer, EARLY)["network_weights"]) == []
    assert predictor.allowed_mirroring_axes == (0, 1)


def test_a_continued_training_neither_loses_nor_rewrites_them(tiny_2d: Path) -> None:
    first = make_trainer(nnUNetTrainerKeepCheckpoints, tiny_2d, **SHORT)
    stop_after(first, epochs=3)
    paths = [Path(first.output_folder, name) for name in (EARLY, LATE)]
    before = [(path.stat().st_mtime_ns, path.read_bytes()) for path in paths]
    second = make_trainer(nnUNetTrainerKeepCheckpoints, tiny_2d, **SHORT)
    second.load_checkpoint(str(Path(first.output_folder, "checkpoint_latest.pth")))
    train(second)
    assert [(path.stat().st_mtime_ns, path.read_bytes()) for path in paths] == before


def test_a_training_continued_from_before_the_fraction_writes_them_again(tiny_2d: Path) -> None:
    first = make_trainer(nnUNetTrainerKeepCheckpoints, tiny_2d, **{**SHORT, "save_every": 2})
    stop_after(first, epochs=3)
    expected = kept(first, LATE)
    for name in (EARLY, LATE):
        Path(first.output_folder, name).unlink()
    second = make_trainer(nnUNetTrainerKeepCheckpoints, tiny_2d, **SHORT)
    second.load_checkpoint(str(Path(first.output_folder, "checkpoint_latest.pth")))  # after epoch 2
    train(second)
    assert not Path(first.output_folder, EARLY).exists()  # who deletes a file may do without it
    assert differences(kept(second, LATE), expected) == []


def test_a_kill_after_the_checkpoint_to_go_on_from_has_kept_the_other(tiny_2d: Path) -> None:
    """Otherwise the continued training would be past the fraction, and the file would never be written."""
    trainer = make_trainer(nnUNetTrainerKeepCheckpoints, tiny_2d, **SHORT)
    own = trainer.save_checkpoint

    def save_checkpoint(filename: str) -> None:
        own(filename)
        if filename.endswith("checkpoint_latest.pth") and trainer.current_epoch + 1 == 2:
            raise Stopped

    trainer.save_checkpoint = save_checkpoint
    try:
        with pytest.raises(Stopped):
            train(trainer)
    finally:
        stop_workers(trainer)
    assert kept(trainer, EARLY)["current_epoch"] == 2


def test_none_are_kept_where_none_are_asked_for(tiny_2d: Path) -> None:
    trainer = make_trainer(PluginTrainer, tiny_2d, keep_checkpoints=(), **SHORT)
    train(trainer)
    assert sorted(path.name for path in Path(trainer.output_folder).glob("*.pth")) == [
        "checkpoint_best.pth",
        "checkpoint_final.pth",
    ]


def test_a_process_that_writes_no_checkpoints_keeps_none(tiny_2d: Path) -> None:
    trainer = make_trainer(nnUNetTrainerKeepCheckpoints, tiny_2d, **SHORT)
    trainer.disable_checkpointing = True
    trainer.initialize()
    trainer.save_checkpoint(str(Path(trainer.output_folder, EARLY)))
    assert not Path(trainer.output_folder, EARLY).exists()
