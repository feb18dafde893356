"""What a trainer costs beyond what its passes cost anyway: a training step, and the loading of its two streams.

Example:
    python benchmarks/step.py --device cuda --dimension 3 --workers 4
    python benchmarks/step.py --trainer nnUNetTrainerUniMatch

Training step, on one batch of B labeled and B unlabeled patches that stays on the device, mixed precision on CUDA:
    train_step  all of the trainer's train_step: views, forward, pseudo labels, losses, backward, gradient clipping,
                optimizer steps, curves
    bare        the same passes of the same networks on patches of the same number and shape, and backward from the
                sum of the means of the outputs that need it
    supervised  as bare with nnU-Net's loss on the labeled patches, gradient clipping and optimizer steps: what as many
                supervised trainings would do
Loading, with the same number of workers each (0: in this process):
    own         batches of B labeled patches from nnUNetTrainer
    two-stream  batches of B labeled and B unlabeled patches from the trainer

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
OWN = "nnUNetTrainer"


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
    """The three ways to spend a step, on the networks and optimizers of one trainer and one batch."""

    def __init__(self, trainer: Any, batch: dict[str, Any]) -> None:
        self.trainer, self.device = trainer, trainer.device
        targets = [target.to(self.device) for target in batch["target"]]
        images = {name: batch[name].to(self.device) for name in ("data", "unlabeled")}
        self.batch = {**batch, **images, "target": targets}
        self.passes = self._passes()

    def _passes(self) -> list[tuple[Any, Any, bool]]:
        """Network, images and whether gradients are needed, of every pass of a train_step."""
        import torch
        from torch import nn

        passes: list[tuple[Any, Any, bool]] = []

        def record(network: Any, inputs: Any) -> None:
            passes.append((network, inputs[0].detach().clone(), torch.is_grad_enabled()))

        networks = {id(value): value for value in vars(self.trainer).values() if isinstance(value, nn.Module)}
        networks = {
            key: value for key, value in networks.items() if hasattr(getattr(value, "module", value), "decoder")
        }
        hooks = [network.register_forward_pre_hook(record) for network in networks.values()]
        self.train_step()
        for hook in hooks:
            hook.remove()
        return passes

    def train_step(self) -> None:
        """The trainer's own step."""
        self.trainer.train_step(self.batch)

    def bare(self) -> None:
        """Forward and backward, and nothing else."""
        self._backward(lambda outputs: sum(output.float().mean() for output in outputs))

    def supervised(self) -> None:
        """Supervised trainings on batches of which a part is labeled."""
        count, targets, scaler = len(self.batch["data"]), self.batch["target"], self.trainer.grad_scaler
        self._backward(lambda outputs: self.trainer.loss([output[:count] for output in outputs], targets))
        from torch import nn

        for network, optimizer in self.trainer.trained():
            if scaler is not None:
                scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(network.parameters(), 12)
            optimizer.step() if scaler is None else scaler.step(optimizer)
        if scaler is not None:
            scaler.update()

    def _backward(self, loss: Callable[[Sequence[Any]], Any]) -> None:
        from torch import autocast, no_grad

        for _, optimizer in self.trainer.trained():
            optimizer.zero_grad(set_to_none=True)
        total: Any = 0
        with autocast(self.device.type, enabled=self.device.type == "cuda"):
            for network, images, needs_gradient in self.passes:
                if needs_gradient:
                    total = total + loss(network(images))
                    continue
                with no_grad():
                    network(images)
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
    trainer.current_epoch = trainer.num_epochs // 2  # in the middle of the training, past what a method does first
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
    parser.add_argument("--trainer", default="nnUNetTrainerCPS", help="class name; default nnUNetTrainerCPS")
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
        trainers = {name: make_trainer(name, plans, configuration, args.device) for name in (OWN, args.trainer)}
        works = {name: partial(patches_per_second, t, args.workers, args.batches) for name, t in trainers.items()}
        loading = in_turns(works, max(1, args.repeats // 4))
        steps = compare_steps(trainers[args.trainer], args.device, args.repeats)
    report(args, steps, loading)


def report(args: argparse.Namespace, steps: dict[str, float], loading: dict[str, float]) -> None:
    """Prints milliseconds, patches per second and the ratios that have a goal."""
    import torch

    machine = torch.cuda.get_device_name() if args.device == "cuda" else "one CPU thread"
    patch = "×".join([str(args.size)] * args.dimension)
    print(f"\n{args.trainer}, {machine}, torch {torch.__version__}")
    print(f"2 × {args.batch} patches of {patch}, width {args.width}")
    for name, value in steps.items():
        print(f"  {name:<12}{value:9.1f} ms")
    goal = "1.05 or less for CPS, 1.10 for others"
    print(f"  train_step / bare       {steps['train_step'] / steps['bare']:.3f}   (goal: {goal})")
    print(f"  train_step / supervised {steps['train_step'] / steps['supervised']:.3f}")
    for name, value in (("own", loading[OWN]), ("two-stream", loading[args.trainer])):
        print(f"  {name:<12}{value:9.1f} patches/s, {args.workers} workers")
    print(f"  two-stream / own        {loading[args.trainer] / loading[OWN]:.3f}   (goal: 1.0 or more)")


if __name__ == "__main__":
    main()
