"""Every kind of nnU-Net configuration trains: an epoch each, and a checkpoint that stock nnU-Net loads."""

from __future__ import annotations

import functools
import json
import math
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from nnunetv2.experiment_planning.plan_and_preprocess_api import plan_experiments
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_semi.compilation import compile_problem
from nnunet_semi.curves import SHARES
from nnunet_semi.plugin_trainer import CHECKPOINT_KEY
from nnunet_semi.trainers.nnUNetTrainerBCP import nnUNetTrainerBCP
from nnunet_semi.trainers.nnUNetTrainerCPS import nnUNetTrainerCPS, nnUNetTrainerCPSCutMix, nnUNetTrainerCPSOriginal
from nnunet_semi.trainers.nnUNetTrainerUniMatch import nnUNetTrainerUniMatch
from short_training import train, validate
from tiny_trainer import make_trainer

REGIONS = {"background": 0, "whole": (1, 2), "core": 2}
IGNORE = {"background": 0, "disc": 1, "square": 2, "ignore": 3}
REGIONS_AND_IGNORE = {**REGIONS, "ignore": 3}
ANISOTROPIC = {"dimension": 3, "shape": (8, 48, 48), "spacing": (6.0, 1.0, 1.0)}
SHORT = {"num_epochs": 2, "num_iterations_per_epoch": 1, "num_val_iterations_per_epoch": 1}

Make = Callable[..., Path]


@pytest.fixture(autouse=True)
def no_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loads batches in this process."""
    monkeypatch.setattr("short_training.one_thread", lambda device: (1, 0))


def check_training(trainer: Any, plans_file: Path, configuration: str = "2d") -> dict[str, Any]:
    """Trains; checks losses, curves and that a stock trainer takes the checkpoint; gives the checkpoint."""
    checkpoint = train(trainer)
    curves = checkpoint["logging"]
    for name in ("train_losses", "val_losses", *trainer.curves):
        assert len(curves[name]) == trainer.num_epochs, name
        assert all(math.isfinite(value) for value in curves[name]), name
    assert all(len(shares) == trainer.label_manager.num_segmentation_heads for shares in curves[SHARES])
    stock = make_trainer(
        nnUNetTrainer, plans_file, configuration, enable_deep_supervision=trainer.enable_deep_supervision
    )
    stock.load_checkpoint(str(Path(trainer.output_folder, "checkpoint_final.pth")))
    weights = stock.network.state_dict()
    assert weights.keys() == checkpoint["network_weights"].keys() == checkpoint[CHECKPOINT_KEY]["network_2"].keys()
    assert all(torch.equal(value, checkpoint["network_weights"][name]) for name, value in weights.items())
    return checkpoint


@pytest.mark.parametrize(
    "cls, configuration, dataset, attributes",
    [
        pytest.param(nnUNetTrainerCPS, "3d_fullres", {"dimension": 3}, {}, id="3D"),
        pytest.param(nnUNetTrainerCPSCutMix, "3d_fullres", {"dimension": 3}, {}, id="3D CutMix"),
        pytest.param(nnUNetTrainerCPS, "3d_fullres", ANISOTROPIC, {}, id="anisotropic"),
        pytest.param(nnUNetTrainerCPS, "2d", {"channels": 2}, {}, id="two channels"),
        pytest.param(nnUNetTrainerCPS, "2d", {"labels": REGIONS}, {}, id="regions"),
        pytest.param(nnUNetTrainerCPSOriginal, "2d", {"labels": REGIONS_AND_IGNORE}, {}, id="regions ignore Original"),
        pytest.param(nnUNetTrainerCPSCutMix, "2d", {"labels": REGIONS_AND_IGNORE}, {}, id="regions ignore CutMix"),
        pytest.param(nnUNetTrainerCPS, "2d", {"labels": IGNORE}, {}, id="ignore label"),
        pytest.param(nnUNetTrainerCPS, "2d", {}, {"enable_deep_supervision": False}, id="one resolution"),
        pytest.param(nnUNetTrainerCPSOriginal, "2d", {}, {"enable_deep_supervision": False}, id="one res. Original"),
        pytest.param(nnUNetTrainerCPSCutMix, "2d", {}, {"unlabeled_batch_size": 3}, id="more unlabeled"),
        pytest.param(nnUNetTrainerCPSCutMix, "2d", {}, {"unlabeled_batch_size": 1}, id="one unlabeled"),
        pytest.param(nnUNetTrainerCPSOriginal, "2d", {}, {"unlabeled_batch_size": 1}, id="one unlabeled Original"),
        pytest.param(nnUNetTrainerCPS, "2d", {}, {"fold": 0}, id="fold 0"),
    ],
)
def test_it_trains(
    cls: type, configuration: str, dataset: Mapping[str, Any], attributes: Mapping[str, Any], tiny: Make
) -> None:
    plans_file = tiny((configuration,), **dataset)
    check_training(make_trainer(cls, plans_file, configuration, **SHORT, **attributes), plans_file, configuration)


def test_anisotropic_patches_are_augmented_slice_by_slice(tiny: Make) -> None:
    """The test above is one of nnU-Net's dummy 2D augmentation only if the patches are flat enough."""
    trainer = make_trainer(nnUNetTrainerCPS, tiny(("3d_fullres",), **ANISOTROPIC), "3d_fullres")
    assert trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()[1]


def test_residual_encoders_train(tiny_2d: Path) -> None:
    plans = plan_experiments([1], "nnUNetPlannerResEncM")
    plans_file = tiny_2d.with_name(f"{plans}.json")
    trainer = make_trainer(nnUNetTrainerCPS, plans_file, **SHORT)
    check_training(trainer, plans_file)
    assert "ResidualEncoder" in type(trainer.network).__name__


def test_a_compiled_network_is_saved_under_its_own_names(tiny_2d: Path) -> None:
    """nnU-Net compiles on GPUs only; here the compiler is one that runs the network as it is."""

    class Compiled(nnUNetTrainerCPS):
        def _do_i_compile(self) -> bool:
            return True

    def eager(module: torch.nn.Module) -> Any:
        return compiler(module, backend="eager")

    compiler = torch.compile
    with mock.patch("torch.compile", eager):
        trainer = make_trainer(Compiled, tiny_2d, **SHORT)
        checkpoint = check_training(trainer, tiny_2d)
        assert hasattr(trainer.network, "_orig_mod") and hasattr(trainer.network_2, "_orig_mod")
        again = make_trainer(Compiled, tiny_2d, **SHORT)
        again.load_checkpoint(str(Path(trainer.output_folder, "checkpoint_final.pth")))
    for name, value in again.network_2._orig_mod.state_dict().items():
        assert torch.equal(value, checkpoint[CHECKPOINT_KEY]["network_2"][name])


@pytest.mark.parametrize("works", [False, True])
def test_training_goes_on_uncompiled_where_nothing_compiles(
    tiny_2d: Path, works: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """nnU-Net would compile; torch's own compiler for the CPU does not find the one of the system, and says so."""
    compile_problem.cache_clear()
    monkeypatch.setattr(nnUNetTrainer, "_do_i_compile", lambda trainer: True)
    if works:
        monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    with torch._inductor.config.patch({"cpp.cxx": (None, "/nowhere/g++")}):
        trainer = make_trainer(nnUNetTrainerCPS, tiny_2d, **SHORT)
        trainer.initialize()
    compile_problem.cache_clear()
    log = Path(trainer.log_file).read_text()
    assert hasattr(trainer.network, "_orig_mod") == hasattr(trainer.network_2, "_orig_mod") == works
    assert log.count("torch.compile does not work here") == log.count("/nowhere/g++") == (not works)


@pytest.mark.parametrize("deep", [True, False])
def test_validation_runs_without_a_training_before_it(tiny: Make, deep: bool) -> None:
    """As `nnUNetv2_train … --val` does; it gives what the validation after the training gave."""
    plans_file = tiny(channels=2, labeled=5)
    trainer = make_trainer(nnUNetTrainerCPS, plans_file, fold=0, enable_deep_supervision=deep, **SHORT)
    train(trainer)
    validate(trainer)
    folder = Path(trainer.output_folder, "validation")
    expected = json.loads((folder / "summary.json").read_text())
    folder.rename(folder.with_name("earlier"))
    again = make_trainer(nnUNetTrainerCPS, plans_file, fold=0, enable_deep_supervision=deep, **SHORT)
    again.load_checkpoint(str(Path(trainer.output_folder, "checkpoint_final.pth")))
    validate(again)
    assert json.loads((folder / "summary.json").read_text()) == expected
    assert len(expected["metric_per_case"]) == 1
    assert math.isfinite(expected["foreground_mean"]["Dice"])


def test_loaders_that_were_pickled_give_the_same_batches(tiny: Make) -> None:
    trainer = make_trainer(nnUNetTrainerCPS, tiny(labels=REGIONS_AND_IGNORE))
    trainer.initialize()
    with mock.patch("nnunet_semi.plugin_trainer.share_cores", return_value=(1, 0)):
        loader = trainer.get_dataloaders()[0].data_loader
    copied = pickle.loads(pickle.dumps(loader))
    first, second = next(loader), next(copied)
    assert torch.equal(first["unlabeled"], second["unlabeled"])
    assert torch.equal(first["data"], second["data"])


SPAWNING = """
import multiprocessing, pathlib, sys
from nnunet_semi.trainers.nnUNetTrainerCPS import nnUNetTrainerCPS
from tiny_trainer import make_trainer

if __name__ == "__main__":
    multiprocessing.set_start_method("spawn")
    trainer = make_trainer(nnUNetTrainerCPS, pathlib.Path(sys.argv[1]), num_epochs=1, num_iterations_per_epoch=1)
    trainer.run_training()
"""


@pytest.mark.slow
def test_it_trains_with_spawned_workers(tiny_2d: Path, tmp_path: Path) -> None:
    """As on macOS and Windows, where loaders are pickled for the workers."""
    script = tmp_path / "spawning.py"
    script.write_text(SPAWNING)
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    env = {**os.environ, "PYTHONPATH": path, "nnUNet_n_proc_DA": "1"}
    command = [sys.executable, str(script), str(tiny_2d)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "1 augmentation workers" in done.stdout
    assert len(list(Path(os.environ["nnUNet_results"]).rglob("checkpoint_final.pth"))) == 1


@pytest.mark.parametrize("cls", [nnUNetTrainerCPSCutMix, nnUNetTrainerUniMatch, nnUNetTrainerBCP])
def test_compiled_graphs_are_made_for_fixed_sizes(tiny_2d: Path, cls: type, monkeypatch: pytest.MonkeyPatch) -> None:
    """Although passes with and without gradient take turns, and their batches differ."""
    graphs = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        graphs.append([size for value in inputs for size in getattr(value, "shape", [value])])
        return graph.forward

    torch._dynamo.reset()
    monkeypatch.setattr(nnUNetTrainer, "_do_i_compile", lambda trainer: True)
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    with torch._dynamo.config.patch(automatic_dynamic_shapes=True, cache_size_limit=8):
        train(make_trainer(cls, tiny_2d, **SHORT))
        assert torch._dynamo.config.cache_size_limit == 32  # nnU-Net's loss needs more than 8 graphs
    torch._dynamo.reset()
    assert len(graphs) >= 2
    assert all(isinstance(size, int) for sizes in graphs for size in sizes)
