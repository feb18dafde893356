"""What nnUNetTrainerCPSUIF costs beyond nnUNetTrainerCPS: counting in every step, and predicting unseen cases.

Example:
    python benchmarks/refresh.py --device cpu --dimension 3

    step      a training step of nnUNetTrainerCPS, on one batch that stays on the device
    counting  what is counted of its pseudo labels, on top
    patch     one patch of a refresh: read from disk, two strong views, predicted by both networks, counted
    most      the largest share of the time of training: a refresh predicts at most `refresh_cost` patches for each
              patch of a step, all of them only where that many cases were not seen

On a CPU everything runs on one thread and is timed in seconds of CPU, which other programs do not lengthen.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from step import in_turns, make_plans, make_trainer, milliseconds, parse

NAME = "nnUNetTrainerCPSUIF"


def measure(trainer: Any, device: str, rounds: int) -> dict[str, float]:
    """Milliseconds of a step without counting, of counting, and of a patch of a refresh."""
    import torch

    from nnunet_semi.trainers.nnUNetTrainerCPSUIF import patches_of

    os.environ["nnUNet_n_proc_DA"] = "0"
    training, _ = trainer.get_dataloaders()
    torch.set_num_threads(1)
    batch = next(training)
    trainer.on_train_epoch_start()
    stream = trainer.stream.streams[1]
    keys = [str(key) for key in batch["unlabeled_keys"]]
    shape = (len(keys), 1, *trainer.configuration_manager.patch_size)
    pseudo = torch.randint(0, trainer.label_manager.num_segmentation_heads, shape, device=trainer.device)

    def counting() -> None:
        trainer._see(keys, pseudo, pseudo)
        trainer._take_over()

    def refresh() -> None:
        images = trainer._to_device(patches_of(keys, stream))
        with torch.no_grad(), trainer._autocast():
            outputs = [network(trainer.strong_view(images)) for network, _ in trainer.trained()]
            labels = [trainer._pseudo_label(output)[0] for output in outputs]
        trainer._see(keys, *labels)
        trainer._take_over()

    works: dict[str, Callable[[], object]] = {
        "step": partial(trainer.train_step, batch),
        "counting": counting,
        "refresh": refresh,
    }
    timed = {name: partial(milliseconds, work, device) for name, work in works.items()}
    in_turns(timed, 3)
    found = in_turns(timed, rounds)
    patches = len(batch["data"]) + len(keys)
    step = found["step"] - found["counting"]
    patch = found["refresh"] / len(keys)
    most = (found["counting"] + trainer.refresh_cost * patches * patch) / step
    return {"step": step, "counting": found["counting"], "patch": patch, "most": most}


def main() -> None:
    """Measures and prints."""
    args = parse()
    with tempfile.TemporaryDirectory() as folder:
        plans, configuration = make_plans(Path(folder), args.dimension, args.size, args.batch, args.width)
        found = measure(make_trainer(NAME, plans, configuration, args.device), args.device, args.repeats)
    setting = f"{args.dimension}D, patch {args.size}, 2 · {args.batch} patches, width {args.width}, {args.device}"
    print(
        f"{setting}: step {found['step']:.0f} ms, counting {found['counting']:.1f} ms, patch {found['patch']:.1f} ms, "
        f"most {100 * found['most']:.1f} %"
    )


if __name__ == "__main__":
    main()
