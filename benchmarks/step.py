"""What CPS costs beyond what its two networks cost anyway: a training step, and the loading of its two streams.

Example:
    python benchmarks/step.py --device cuda --dimension 3 --workers 4

Training step, on one batch of B labeled and B unlabeled patches that stays on the device, mixed precision on CUDA:
    train_step  all of nnUNetTrainerCPS.train_step: two strong views, forward, pseudo labels, losses, backward,
                gradient clipping, two optimizer steps, curves
    bare        forward of both networks on all 2·B patches and backward from the sum of their outputs' means
    supervised  forward of both networks on all 2·B patches, nnU-Net's loss on the labeled half, backward, gradient
                clipping and optimizer step of both: what two supervised trainings would do
Loading, with the same number of workers each (0: in this process):
    own         batches of B labeled patches from nnUNetTrainer
    two-stream  batches of B labeled and B unlabeled patches from nnUNetTrainerCPS

Rounds take turns between what is compared, and medians over rounds are printed. On a CPU a step runs on one thread and
is timed, as loading in this process is, in seconds of CPU, which other programs on the machine do not lengthen.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parents[1] / "tests"
WIDTH = {"cpu": 8, "cuda": 32}
SIZE = {("cpu", 2): 128, ("cpu", 3): 48, ("cuda", 2): 256, ("cuda", 3): 128}
BATCH = {2: 12, 3: 2}
OWN, TWO_STREAMS = "nnUNetTrainer", "nnUNetTrainerCPS"


def make_plans(folder: Path, dimension: int, size: int, batch: int, width: int) -> tuple[dict[str, Any], str]:
    """Generates, plans and preprocesses a dataset with images of the patch size; gives its plans and configuration."""
    sys.path.insert(0, str(TESTS))
    from small_dataset import environment, make_dataset, plan

    os.environ.update(environment(folder))
    make_dataset(folder, dimension, labeled=8, unlabeled=8, test=0, shape=(size,) * dimension)
    configuration = "2d" if dimension == 2 else "3d_fullres"
    path = plan(1, [configuration])
    from batchgenerators.utilities.file_and_folder_operations import load_json

    from nnunet_semi.narrow import narrow
    from nnunet_semi.unlabeled.preprocessing import preprocess_unlabeled

    preprocess_unlabeled(1, [configuration], num_processes=1, progress=False)
    name = narrow(1, configuration, width)
    plans = load_json(str(path))
    plans["configurations"][name] |= {"batch_size": batch, "patch_size": [size] * dimension}
    return plans, name


def make_trainer(name: str, plans: dict[str, Any], configuration: str, device: str) -> Any:
    """The trainer, initialized."""
    import torch
    from batchgenerators.utilities.file_and_folder_operations import join, load_json
    from nnunetv2.paths import nnUNet_preprocessed
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    dataset_json = load_json(join(nnUNet_preprocessed, plans["dataset_name"], "dataset.json"))
    trainer_class = recursive_find_trainer_class_by_name(name)
    arguments = {**plans, "continue_training": False}, configuration, 0, dataset_json, torch.device(device)
    trainer = trainer_class(*arguments)
    trainer.initialize()
    return trainer


class Steps:
    """The three ways to spend a step, on the networks and optimizers of one CPS trainer and one batch."""

    def __init__(self, trainer: Any, batch: dict[str, Any]) -> None:
        import torch

        self.trainer, self.device = trainer, trainer.device
        targets = [target.to(self.device) for target in batch["target"]]
        images = {name: batch[name].to(self.device) for name in ("data", "unlabeled")}
        self.batch = {**batch, **images, "target": targets}
        self.images = torch.cat([images["data"], images["unlabeled"]])
        self.networks = [(trainer.network, trainer.optimizer), (trainer.network_2, trainer.optimizer_2)]

    def train_step(self) -> None:
        """The trainer's own step."""
        self.trainer.train_step(self.batch)

    def bare(self) -> None:
        """Forward and backward of both networks, and nothing else."""
        self._backward(lambda outputs: sum(output.float().mean() for output in outputs))

    def supervised(self) -> None:
        """Two supervised trainings on a batch of which half is labeled."""
        count, targets, scaler = len(self.batch["data"]), self.batch["target"], self.trainer.grad_scaler
        self._backward(lambda outputs: self.trainer.loss([output[:count] for output in outputs], targets))
        from torch import nn

        for network, optimizer in self.networks:
            if scaler is not None:
                scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(network.parameters(), 12)
            optimizer.step() if scaler is None else scaler.step(optimizer)
        if scaler is not None:
            scaler.update()

    def _backward(self, loss: Callable[[Sequence[Any]], Any]) -> None:
        from torch import autocast

        for _, optimizer in self.networks:
            optimizer.zero_grad(set_to_none=True)
        with autocast(self.device.type, enabled=self.device.type == "cuda"):
            total = sum(loss(network(self.images)) for network, _ in self.networks)
        (total if self.trainer.grad_scaler is None else self.trainer.grad_scaler.scale(total)).backward()


def milliseconds(work: Callable[[], object], device: str) -> float:
    """The time of one call; on the CPU that which this process worked, whatever else runs on the machine."""
    import torch

    clock = time.process_time if device == "cpu" else time.perf_counter
    if device == "cuda":
        torch.cuda.synchronize()
    started = clock()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return 1000 * (clock() - started)


def in_turns(works: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, float]:
    """Medians of what the works return, called in turns."""
    values: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            values[name].append(work())
    return {name: statistics.median(measured) for name, measured in values.items()}


def loaders(trainer: Any, workers: int) -> tuple[Any, Any]:
    """The trainer's training and validation loaders; this process stays on one thread, whatever the trainer chooses."""
    import torch

    os.environ["nnUNet_n_proc_DA"] = str(workers)
    made = trainer.get_dataloaders()
    torch.set_num_threads(1)
    return made


def compare_steps(trainer: Any, device: str, rounds: int) -> dict[str, float]:
    """Milliseconds per step, by name."""
    batch = next(loaders(trainer, 0)[0])
    trainer.on_train_epoch_start()
    steps = Steps(trainer, batch)
    works = {"train_step": steps.train_step, "bare": steps.bare, "supervised": steps.supervised}
    timed = {name: partial(milliseconds, work, device) for name, work in works.items()}
    in_turns(timed, 3)
    return in_turns(timed, rounds)


def patches_per_second(trainer: Any, workers: int, batches: int) -> float:
    """Patches, labeled and unlabeled, that the training loader gives per second once its queue has been emptied."""
    training, validation = loaders(trainer, workers)
    for _ in range(2 * max(6, workers) if workers else 1):
        next(training)
    clock = time.perf_counter if workers else time.process_time
    patches, started = 0, clock()
    for _ in range(batches):
        batch = next(training)
        patches += len(batch["data"]) + len(batch.get("unlabeled", ()))
    elapsed = clock() - started
    for augmenter in (training, validation) if workers else ():
        augmenter._finish()
    return patches / elapsed


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line, with the defaults that depend on device and dimension filled in."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dimension", type=int, choices=(2, 3), default=2)
    parser.add_argument("--batch", type=int, help="labeled patches per step; default 12 in 2D, 2 in 3D")
    parser.add_argument("--size", type=int, help="edge of a patch; default 128 and 48 on cpu, 256 and 128 on cuda")
    parser.add_argument("--width", type=int, help="channels of the first stage; default 8 on cpu, 32 on cuda")
    parser.add_argument("--repeats", type=int, default=20, help="rounds of steps; of loading a quarter of them")
    parser.add_argument("--batches", type=int, default=20, help="that a loader gives per round")
    parser.add_argument("--workers", type=int, default=0, help="augmentation workers")
    parser.add_argument("--compile", action="store_true", help="let nnU-Net compile the networks (cuda)")
    args = parser.parse_args(arguments)
    args.batch = args.batch or BATCH[args.dimension]
    args.size = args.size or SIZE[args.device, args.dimension]
    args.width = args.width or WIDTH[args.device]
    return args


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures both and prints them."""
    args = parse(arguments)
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(sys.stderr):  # nnU-Net talks much
        plans, configuration = make_plans(Path(folder), args.dimension, args.size, args.batch, args.width)
        os.environ["nnUNet_compile"] = "t" if args.compile else "f"
        trainers = {name: make_trainer(name, plans, configuration, args.device) for name in (OWN, TWO_STREAMS)}
        works = {name: partial(patches_per_second, t, args.workers, args.batches) for name, t in trainers.items()}
        loading = in_turns(works, max(1, args.repeats // 4))
        steps = compare_steps(trainers[TWO_STREAMS], args.device, args.repeats)
    report(args, steps, loading)


def report(args: argparse.Namespace, steps: dict[str, float], loading: dict[str, float]) -> None:
    """Prints milliseconds, patches per second and the ratios that have a goal."""
    import torch

    machine = torch.cuda.get_device_name() if args.device == "cuda" else "one CPU thread"
    patch = "×".join([str(args.size)] * args.dimension)
    print(f"\n{machine}, torch {torch.__version__}, 2 × {args.batch} patches of {patch}, width {args.width}")
    for name, value in steps.items():
        print(f"  {name:<12}{value:9.1f} ms")
    print(f"  train_step / bare       {steps['train_step'] / steps['bare']:.3f}   (goal: 1.05 or less)")
    print(f"  train_step / supervised {steps['train_step'] / steps['supervised']:.3f}")
    for name, value in (("own", loading[OWN]), ("two-stream", loading[TWO_STREAMS])):
        print(f"  {name:<12}{value:9.1f} patches/s, {args.workers} workers")
    print(f"  two-stream / own        {loading[TWO_STREAMS] / loading[OWN]:.3f}   (goal: 1.0 or more)")


if __name__ == "__main__":
    main()
