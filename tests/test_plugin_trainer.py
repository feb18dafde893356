"""Class attributes, seeds, atomic checkpoints and shared cores, on the real nnUNetTrainer below."""

from __future__ import annotations

import json
import os
import signal
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.training.nnUNetTrainer.variants.optimizer.nnUNetTrainerAdam import nnUNetTrainerAdam

from nnunet_semi import __version__, plugin_trainer
from nnunet_semi.discovery.variants import variant
from nnunet_semi.errors import UserError
from nnunet_semi.plugin_trainer import CHECKPOINT_KEY, PluginTrainer, share_cores
from nnunet_semi.randomness import NumberedBatches, derive_seed, seed_everything
from tiny_trainer import make_trainer


class Draws:
    """A loader that shows the state of every random generator."""

    def __iter__(self):
        return self

    def __next__(self):
        return {"numpy": np.random.rand(), "torch": torch.rand(1).item()}


def test_class_attributes_win_over_nnunets_instance_defaults(tiny_2d):
    trainer = make_trainer(PluginTrainer, tiny_2d, num_epochs=7, initial_lr=0.5)
    assert (trainer.num_epochs, trainer.initial_lr, trainer.weight_decay) == (7, 0.5, 3e-5)


def test_names_set_length_and_seed_of_stock_trainers(tiny_2d):
    cls = variant("nnUNetTrainerAdam_7epochs_15iters_seed4")
    assert issubclass(cls, nnUNetTrainerAdam)
    trainer = make_trainer(cls, tiny_2d, num_epochs=7, num_iterations_per_epoch=15, seed=4)
    assert isinstance(trainer, PluginTrainer)
    assert vars(cls)["num_val_iterations_per_epoch"] == 3


def test_numbered_batches_depend_on_their_number_alone():
    first, second = NumberedBatches(Draws(), seed=5), NumberedBatches(Draws(), seed=5, first=2)
    unbroken = [next(first) for _ in range(4)]
    seed_everything(99)
    assert [next(second), next(second)] == unbroken[2:]
    assert len({batch["numpy"] for batch in unbroken}) == 4


def test_workers_draw_different_batches():
    batches = [NumberedBatches(Draws(), seed=5) for _ in range(2)]
    batches[1].set_thread_id(1)
    assert next(batches[0]) != next(batches[1])


def test_derived_seeds_differ_by_place():
    places = [(), (0,), (1,), (0, 0), (0, 1), (1, 0)]
    assert len({derive_seed(3, *place) for place in places}) == len(places)


def test_same_seed_same_network_other_seed_another(tiny_2d):
    def weights(seed: int) -> torch.Tensor:
        trainer = make_trainer(PluginTrainer, tiny_2d, seed=seed)
        trainer.initialize()
        return torch.cat([parameter.flatten() for parameter in trainer.network.parameters()])

    assert torch.equal(weights(3), weights(3))
    assert not torch.equal(weights(3), weights(4))


def test_checkpoint_is_a_stock_checkpoint_with_one_more_key(tiny_2d):
    trainer = make_trainer(PluginTrainer, tiny_2d, seed=11)
    trainer.initialize()
    path = Path(trainer.output_folder, "checkpoint_final.pth")
    trainer.save_checkpoint(str(path))
    stock = make_trainer(nnUNetTrainer, tiny_2d)
    stock.load_checkpoint(str(path))
    for name, value in stock.network.state_dict().items():
        assert torch.equal(value, trainer.network.state_dict()[name])
    assert torch.load(path, weights_only=False)[CHECKPOINT_KEY]["seed"] == 11


def test_an_interrupted_write_keeps_the_earlier_checkpoint(tiny_2d, monkeypatch):
    trainer = make_trainer(PluginTrainer, tiny_2d)
    trainer.initialize()
    path = Path(trainer.output_folder, "checkpoint_latest.pth")
    trainer.save_checkpoint(str(path))
    before = path.read_bytes()

    def torn(checkpoint, target):
        if isinstance(target, (str, os.PathLike)):
            Path(target).write_bytes(b"half")
            raise KeyboardInterrupt
        return save(checkpoint, target)

    save = torch.save
    monkeypatch.setattr(torch, "save", torn)
    with pytest.raises(KeyboardInterrupt):
        trainer.save_checkpoint(str(path))
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.glob("*checkpoint*")] == [path.name]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_kill_in_the_middle_of_a_write_keeps_the_earlier_checkpoint(tiny_2d):
    trainer = make_trainer(PluginTrainer, tiny_2d)
    trainer.initialize()
    path = Path(trainer.output_folder, "checkpoint_latest.pth")
    trainer.save_checkpoint(str(path))
    before = path.read_bytes()
    save = torch.save

    def torn(checkpoint, target):
        save(checkpoint, target)
        if isinstance(target, (str, os.PathLike)):
            os.truncate(target, len(before) // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if child == 0:
        try:
            torch.save = torn
            trainer.save_checkpoint(str(path))
        finally:
            os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert path.read_bytes() == before
    (left,) = (file for file in path.parent.iterdir() if "checkpoint" in file.name and file != path)
    assert left.stat().st_size == len(before) // 2
    left.unlink()
    make_trainer(PluginTrainer, tiny_2d).load_checkpoint(str(path))


def test_a_training_starts_without_what_a_killed_one_left(tiny_2d, monkeypatch):
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    trainer = make_trainer(PluginTrainer, tiny_2d)
    trainer.initialize()
    folder = Path(trainer.output_folder)
    trainer.save_checkpoint(str(folder / "checkpoint_latest.pth"))
    for name in ("checkpoint_latest.pth", "progress.png", "progress_semi.csv"):
        (folder / f".0123abcd_{name}").write_bytes(b"half")
    trainer.on_train_start()
    assert not list(folder.glob(".*"))
    assert (folder / "checkpoint_latest.pth").stat().st_size > 1000
    written = json.loads((folder / "debug.json").read_text())["versions"]  # by nnU-Net
    assert written == f"nnunet_semi {__version__}, nnunetv2 {version('nnunetv2')}"


def test_a_checkpoint_restores_the_seed(tiny_2d):
    trainer = make_trainer(PluginTrainer, tiny_2d, seed=None)
    trainer.initialize()
    path = os.path.join(trainer.output_folder, "checkpoint_latest.pth")
    trainer.save_checkpoint(path)
    other = make_trainer(PluginTrainer, tiny_2d, seed=None)
    assert other.seed != trainer.seed
    other.load_checkpoint(path)
    assert other.seed == trainer.seed


@pytest.mark.parametrize("workers", ["0", "1"])
def test_loaders_give_the_same_batches_again(tiny_2d, monkeypatch, workers):
    monkeypatch.setenv("nnUNet_n_proc_DA", workers)

    def batches(epoch: int) -> list[torch.Tensor]:
        trainer = make_trainer(PluginTrainer, tiny_2d)
        trainer.initialize()
        trainer.current_epoch = epoch
        loaders = trainer.get_dataloaders()
        drawn = [next(loaders[0])["data"] for _ in range(3)] + [next(loaders[1])["data"]]
        for loader in loaders:
            getattr(loader, "_finish", lambda: None)()
        return drawn

    unbroken, again, continued = batches(0), batches(0), batches(1)
    assert all(torch.equal(a, b) for a, b in zip(unbroken, again, strict=True))
    assert torch.equal(unbroken[2], continued[0])  # an epoch is 2 iterations
    assert not torch.equal(unbroken[0], unbroken[1])


def test_threads_and_workers_share_the_cores(monkeypatch):
    monkeypatch.setattr(plugin_trainer, "usable_cores", lambda: 8)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.delenv("nnUNet_n_proc_DA", raising=False)
    assert share_cores(torch.device("cpu")) == (6, 2)
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    assert share_cores(torch.device("cpu")) == (8, 0)
    monkeypatch.setenv("nnUNet_n_proc_DA", "8")
    assert share_cores(torch.device("cpu")) == (1, 8)
    assert share_cores(torch.device("cuda"))[1] == 8


def test_too_few_labeled_cases_for_folds_are_told(tiny):
    plans_file = tiny(labeled=3)
    with pytest.raises(UserError, match="fold 0 of 3 labeled case.s. cannot be made.*; train on fold all, or write"):
        make_trainer(PluginTrainer, plans_file, fold=0).do_split()
    assert len(make_trainer(PluginTrainer, plans_file, fold="all").do_split()[0]) == 3
    splits = plans_file.with_name("splits_final.json")
    splits.write_text('[{"train": ["tr_000", "tr_001"], "val": ["tr_002"]}]')
    assert make_trainer(PluginTrainer, plans_file, fold=0).do_split() == (["tr_000", "tr_001"], ["tr_002"])
    splits.unlink()


def test_a_fold_that_does_not_exist_is_warned_of(tiny_2d, capsys):
    trainer = make_trainer(PluginTrainer, tiny_2d, fold=0)
    trainer.do_split()
    assert "!!! WARNING" not in capsys.readouterr().out
    trainer.fold = 9
    trainer.do_split()
    assert "fold 9 is not one of the 5 folds" in capsys.readouterr().out
