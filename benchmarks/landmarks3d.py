"""Measures heatmap trainers in 3D: five landmarks derived from the masks of the hippocampus volumes.

python benchmarks/landmarks3d.py --data DATA --work WORK --labeled 10 --epochs 10 --iterations 50 --seeds 0 \\
    --trainers nnUNetTrainerHeatmap nnUNetTrainerHeatmapMeanTeacher

The first so many cases have landmarks, the other training cases lie in imagesUn, and the 40 cases of the development
test are the validation cases of fold 0, on which nothing is chosen: final checkpoint, no mirroring. The first line is
what a constant gets: each landmark at its mean place in the labeled cases, as a fraction of the image.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from scipy import ndimage

from cases import TASKS, read_protocol, split_cases
from children import environment, run_child
from landmark_data import errors_of_run, print_rows, write_landmark_dataset
from nnunet_semi.errors import UserError
from prepare import processes, write_json

TASK = TASKS["hippocampus3d"]
NAMES = ("anterior centre", "posterior centre", "border centre", "front tip", "rear tip")


def landmarks_of(mask: np.ndarray) -> dict[str, tuple[float, ...]]:
    """Name → x, y, z in voxels, of a mask (z, y, x) with the anterior part 1 and the posterior part 2.

    The tips are the centres of the two outermost coronal slices of either part; y grows towards the front.
    """
    anterior, posterior = np.argwhere(mask == 1), np.argwhere(mask == 2)
    border = np.argwhere((mask == 1) & ndimage.binary_dilation(mask == 2))
    front = anterior[anterior[:, 1] >= anterior[:, 1].max() - 1]
    rear = posterior[posterior[:, 1] <= posterior[:, 1].min() + 1]
    groups = (anterior, posterior, border, front, rear)
    return {name: tuple(voxels.mean(0)[::-1].tolist()) for name, voxels in zip(NAMES, groups, strict=True)}


class Benchmark:
    """The datasets and runs of a command line."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.configuration = f"3d_fullres_w{args.width}"

    def run(self, *command: str) -> None:
        """Runs a command to its end; its output goes into logs/landmarks3d.log."""
        run_child(command, environment(self.args.work), self.args.work.resolve() / "logs" / "landmarks3d.log")

    def cases(self, names: tuple[str, ...]) -> Iterator[tuple[str, sitk.Image, dict[str, tuple[float, ...]]]]:
        """Name, image and landmarks of cases."""
        source = self.args.data / TASK.folder
        for name in names:
            image, mask = (sitk.ReadImage(str(source / kind / f"{name}.nii.gz")) for kind in ("images", "labels"))
            yield name, image, landmarks_of(sitk.GetArrayFromImage(mask))

    def prepare(self, labeled: int) -> str:
        """Makes, plans and preprocesses a dataset, unless it is there; gives its name."""
        dataset = f"Dataset{340 + labeled}_HippocampusPoints{labeled}"
        split = split_cases(read_protocol(self.args.data, TASK), TASK, labeled)
        folder = self.args.work / "nnUNet_raw" / dataset
        preprocessed = self.args.work / "nnUNet_preprocessed" / dataset
        if not (folder / "dataset.json").is_file():
            unlabeled = ((name, image) for name, image, _ in self.cases(split.unlabeled))
            cases = self.cases((*split.labeled, *split.test))
            write_landmark_dataset(folder, NAMES, cases, unlabeled, "MRI", ".nii.gz")
        if not (preprocessed / "splits_final.json").is_file():
            command = ("nnUNetv2_plan_and_preprocess", "-d", dataset[7:10], "-c", "3d_fullres")
            self.run(*command, "-npfp", processes(), "-np", processes())
            self.run("nnunet_semi", "narrow", "-d", dataset[7:10], "-c", "3d_fullres", "--width", str(self.args.width))
            write_json(preprocessed / "splits_final.json", [{"train": list(split.labeled), "val": list(split.test)}])
        return dataset

    def constant(self, labeled: int) -> dict[str, Any]:
        """The error of the mean place, as a row."""
        split = split_cases(read_protocol(self.args.data, TASK), TASK, labeled)

        def places(names: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
            found = [([*points.values()], image.GetSize()) for _, image, points in self.cases(names)]
            return np.array([points for points, _ in found]), np.array([size for _, size in found])

        known, sizes = places(split.labeled)
        points, test_sizes = places(split.test)
        guess = (known / sizes[:, None]).mean(0) * test_sizes[:, None]
        errors = np.linalg.norm(guess - points, axis=2)  # spacing is 1 mm
        rates = {f"SDR {limit} mm": float((errors < float(limit)).mean()) for limit in ("2", "4")}
        return {"trainer": "mean place", "labeled": labeled, "seed": "", "MRE": float(errors.mean()), **rates}

    def measure(self, dataset: str, trainer: str, labeled: int, seed: int) -> dict[str, Any]:
        """Trains, unless it is done, and gives the errors on the validation cases."""
        name = f"{trainer}_{self.args.epochs}epochs_{self.args.iterations}iters_seed{seed}"
        results = self.args.work / "nnUNet_results"
        _, means = errors_of_run(self.run, results, dataset, self.configuration, name, self.args.device)
        rates = {f"SDR {limit} mm": means[f"SDR {limit} mm"] for limit in ("2", "4")}
        return {"trainer": trainer, "labeled": labeled, "seed": seed, "MRE": means["MRE"], **rates}


def main() -> int:
    """Does it all and prints a table in Markdown; gives the exit code, as the commands of nnunet_semi do."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder that holds hippocampus/")
    parser.add_argument("--work", type=Path, required=True, help="folder for datasets, models and logs")
    parser.add_argument("--trainers", nargs="+", default=["nnUNetTrainerHeatmap"], metavar="NAME")
    parser.add_argument("--labeled", nargs="+", type=int, default=[10], metavar="N", help="cases with landmarks")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], metavar="S")
    parser.add_argument("--width", type=int, default=8, help="channels of the first stage of the network")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--iterations", type=int, default=50, help="per epoch")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    args = parser.parse_args()
    benchmark, rows = Benchmark(args), []
    try:
        for labeled in args.labeled:
            rows.append(benchmark.constant(labeled))
            dataset = benchmark.prepare(labeled)
            rows += [benchmark.measure(dataset, name, labeled, s) for name in args.trainers for s in args.seeds]
    except UserError as problem:
        print(f"landmarks3d.py: {problem}", file=sys.stderr)
        return problem.exit_code
    finally:
        print_rows(rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
