"""What landmarks cost: time, memory and loading of nnUNetTrainerHeatmap, by their number.

Example:
    python benchmarks/landmark_step.py --counts 19 100

Every count runs in a process of its own, on one thread of the CPU: noise as images, points anywhere in it, patches of
128×128, batches of 12, width 8.

    step    seconds of CPU of a training step on one batch, median
    load    seconds of CPU that the loader works for a batch, in this process, median
    batch   MB that a batch holds, which is what workers hand over
    peak    MB of memory of the whole process at its largest
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from nnunet_semi.dataset_conversion.landmarks import draw_balls
from nnunet_semi.geometry import Geometry
from nnunet_semi.landmark_files import Landmarks, write
from nnunet_semi.storage import write_json
from step import TESTS, make_trainer, milliseconds

SIZE, BATCH, WIDTH, CASES = 128, 12, 8, 8
TRAINER = "nnUNetTrainerHeatmap"


def make_dataset(root: Path, count: int) -> None:
    """Writes Dataset001_Points with that many landmarks."""
    folder, random = root / "nnUNet_raw" / "Dataset001_Points", np.random.default_rng(0)
    names = [f"point {number}" for number in range(1, count + 1)]
    for kind in ("imagesTr", "labelsTr", "landmarksTr"):
        (folder / kind).mkdir(parents=True)
    for case in (f"case_{number}" for number in range(CASES)):
        points = dict(zip(names, map(tuple, random.uniform(4, SIZE - 5, (count, 2))), strict=True))
        image = sitk.GetImageFromArray(random.normal(1, 0.2, (SIZE, SIZE)).astype(np.float32))
        sitk.WriteImage(image, folder / "imagesTr" / f"{case}_0000.mha")
        balls = draw_balls(points, (SIZE, SIZE), (1.0, 1.0))
        sitk.WriteImage(sitk.GetImageFromArray(balls), folder / "labelsTr" / f"{case}.mha")
        write(folder / "landmarksTr" / f"{case}.json", Landmarks.of(points, Geometry.of((SIZE, SIZE), (1, 1))))
    labels = {"background": 0, **{name: label for label, name in enumerate(names, 1)}}
    description = {"channel_names": {"0": "noise"}, "labels": labels, "numTraining": CASES, "file_ending": ".mha"}
    write_json(folder / "dataset.json", description)


def measure(count: int, repeats: int) -> dict[str, Any]:
    """The row of one count."""
    with tempfile.TemporaryDirectory() as folder:
        sys.path.insert(0, str(TESTS))
        from small_dataset import environment, plan

        os.environ.update(environment(Path(folder)) | {"nnUNet_n_proc_DA": "0"})
        make_dataset(Path(folder), count)
        path = plan(1, ["2d"])
        import torch

        from nnunet_semi.narrow import narrow

        configuration = narrow(1, "2d", WIDTH)
        plans = json.loads(path.read_text(encoding="utf-8"))
        plans["configurations"][configuration] |= {"batch_size": BATCH, "patch_size": [SIZE, SIZE]}
        trainer = make_trainer(TRAINER, plans, configuration, "cpu")
        trainer.on_train_start()
        trainer.on_train_epoch_start()
        torch.set_num_threads(1)
        loader = trainer.dataloader_train
        batch = next(loader)
        tensors = [value for value in batch.values() if isinstance(value, torch.Tensor)]
        trainer.train_step(batch)
        steps = [milliseconds(lambda: trainer.train_step(batch), "cpu") for _ in range(repeats)]
        loads = [milliseconds(lambda: next(loader), "cpu") for _ in range(repeats)]
    return {
        "landmarks": count,
        "step s": statistics.median(steps) / 1000,
        "load s": statistics.median(loads) / 1000,
        "batch MB": sum(tensor.numel() * tensor.element_size() for tensor in tensors) / 1e6,
        "peak MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000,
    }


def main() -> None:
    """Prints a row of a Markdown table for every count."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", nargs="+", type=int, default=[19, 100], metavar="N", help="landmarks")
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    if len(args.counts) == 1:
        row = measure(args.counts[0], args.repeats)
        print(
            "|", " | ".join(f"{value:.2f}" if isinstance(value, float) else str(value) for value in row.values()), "|"
        )
        return
    print("| landmarks | step s | load s | batch MB | peak MB |\n|---|---|---|---|---|", flush=True)
    for count in args.counts:
        command = [sys.executable, __file__, "--counts", str(count), "--repeats", str(args.repeats)]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        print(output.strip().splitlines()[-1], flush=True)


if __name__ == "__main__":
    main()
