"""A training that was stopped and continued gives bit for bit what the unbroken training gives."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nnunet_semi.plugin_trainer import CHECKPOINT_KEY, PluginTrainer
from nnunet_semi.trainers.nnUNetTrainerCPS import nnUNetTrainerCPS, nnUNetTrainerCPSCutMix
from short_training import differences, saved, train
from tiny_trainer import make_trainer

# batchgenerators may end a worker while its thread still unpacks the worker's last batch
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")

SHORT = {"num_epochs": 3, "num_iterations_per_epoch": 2, "num_val_iterations_per_epoch": 1, "save_every": 1}


Stop = Callable[[Any, int], None]


class Stopped(Exception):
    """What stops a training in a test."""


def stop_after_epoch(trainer: Any, epoch: int) -> None:
    """Stops as soon as everything of this epoch is saved."""
    own = trainer.on_epoch_end

    def on_epoch_end() -> None:
        own()
        if trainer.current_epoch == epoch + 1:
            raise Stopped

    trainer.on_epoch_end = on_epoch_end


def stop_in_epoch(trainer: Any, epoch: int) -> None:
    """Stops in the middle of this epoch, of which nothing is saved."""
    own = trainer.train_step

    def train_step(batch: dict) -> dict:
        if trainer.current_epoch == epoch and trainer.iteration == 1:
            raise Stopped
        return own(batch)

    trainer.train_step = train_step


def unbroken(cls: type, plans_file: Path, **attributes: Any) -> dict[str, Any]:
    return train(make_trainer(cls, plans_file, **{**SHORT, **attributes}))


def continued(
    cls: type, plans_file: Path, stop: Stop, checkpoint: str = "checkpoint_latest.pth", **attributes: Any
) -> dict[str, Any]:
    """What a training gives that was stopped in or after epoch 1 and went on in a new trainer from a checkpoint."""
    first = make_trainer(cls, plans_file, **{**SHORT, **attributes})
    stop(first, 1)
    with pytest.raises(Stopped):
        train(first)
    second = make_trainer(cls, plans_file, **{**SHORT, **attributes})
    second.load_checkpoint(str(Path(first.output_folder, checkpoint)))
    return train(second)


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Sends the results of what follows to a folder of their own."""

    def choose(name: str) -> None:
        monkeypatch.setenv("nnUNet_results", str(tmp_path / name))

    return choose


@pytest.mark.parametrize("workers", ["1", "0"])
@pytest.mark.parametrize("cls", [nnUNetTrainerCPS, PluginTrainer])
def test_a_stopped_training_ends_as_the_unbroken_one(cls, workers, tiny_2d, results, monkeypatch):
    monkeypatch.setenv("nnUNet_n_proc_DA", workers)
    results("unbroken")
    expected = unbroken(cls, tiny_2d)
    results("continued")
    found = continued(cls, tiny_2d, stop_after_epoch)
    assert differences(expected, found) == []
    assert len(found["logging"]["train_losses"]) == SHORT["num_epochs"]
    assert ("network_2" in found[CHECKPOINT_KEY]) == (cls is nnUNetTrainerCPS)


def test_what_an_epoch_did_before_it_was_stopped_leaves_no_trace(tiny_2d, results):
    """CutMix draws on top of the strong views, and more unlabeled patches than labeled ones are sampled."""
    attributes = {"unlabeled_batch_size": 3}
    results("unbroken")
    expected = unbroken(nnUNetTrainerCPSCutMix, tiny_2d, **attributes)
    results("continued")
    assert differences(expected, continued(nnUNetTrainerCPSCutMix, tiny_2d, stop_in_epoch, **attributes)) == []


def test_it_goes_on_from_the_best_checkpoint_where_there_is_no_later_one(tiny_2d, results):
    """nnU-Net writes checkpoint_latest every 50 epochs only."""
    attributes = {"save_every": 50}
    results("unbroken")
    expected = unbroken(nnUNetTrainerCPS, tiny_2d, **attributes)
    results("continued")
    found = continued(nnUNetTrainerCPS, tiny_2d, stop_in_epoch, "checkpoint_best.pth", **attributes)
    assert differences(expected, found) == []


def test_a_seed_that_was_drawn_survives(tiny_2d, results):
    results("continued")
    found = continued(nnUNetTrainerCPS, tiny_2d, stop_after_epoch, seed=None)
    results("unbroken")
    assert differences(unbroken(nnUNetTrainerCPS, tiny_2d, seed=found[CHECKPOINT_KEY]["seed"]), found) == []


def test_every_training_without_a_seed_is_another_one(tiny_2d):
    first, second = (make_trainer(PluginTrainer, tiny_2d, seed=None) for _ in range(2))
    assert first.seed != second.seed


def test_a_worse_epoch_after_the_restart_is_not_taken_for_the_best(tiny_2d):
    """nnU-Net writes checkpoint_latest before it notes that the epoch was the best so far."""

    class FallingDice(PluginTrainer):
        def on_validation_epoch_end(self, val_outputs):
            dice = 0.9 - 0.2 * self.current_epoch
            for key, value in {"mean_fg_dice": dice, "dice_per_class_or_region": [dice], "val_losses": 0.0}.items():
                self.logger.log(key, value, self.current_epoch)

    trainer = make_trainer(FallingDice, tiny_2d, **SHORT)
    stop_after_epoch(trainer, 0)
    with pytest.raises(Stopped):
        train(trainer)
    again = make_trainer(FallingDice, tiny_2d, **SHORT)
    again.load_checkpoint(str(Path(trainer.output_folder, "checkpoint_latest.pth")))
    train(again)
    assert saved(again, "checkpoint_best.pth")["current_epoch"] == 1
