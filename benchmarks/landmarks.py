"""Measures heatmap trainers on cephalograms: ISBI 2015, 19 landmarks, the mean of two readers as the reference.

python benchmarks/landmarks.py --data DATA --work WORK --labeled 25 75 150 --trainers nnUNetTrainerHeatmap \\
    --seeds 0 --longest 128 --epochs 16 --iterations 100

Of the 150 training images the first so many have landmarks, and the others lie in imagesUn. The 150 images of test1 are
the validation cases of fold 0, on which nothing is chosen: final checkpoint, no mirroring. Every run is a training by
nnUNetv2_train with the trainer's length and seed in its name; its errors are those of its own validation/summary.json.
`--tuning` trains on images 1 to 120 and validates on 121 to 150, to choose by. Runs that are there are not done again.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from children import environment, run_child
from landmark_data import errors_of_run, print_rows, write_landmark_dataset
from nnunet_semi import landmark_files
from nnunet_semi.errors import UserError
from prepare import processes, write_json

READERS = ("senior", "junior")
LIMITS = ("2", "2.5", "3", "4")
TUNING = 120  # training images; the other 30 are validated


@dataclass(frozen=True)
class Cephalogram:
    """An image with the points (19, 2) of both readers, x and y in its pixels."""

    name: str
    image: Path
    spacing: float
    readers: tuple[np.ndarray, np.ndarray]

    @property
    def points(self) -> np.ndarray:
        """The mean of the readers."""
        return np.mean(self.readers, axis=0)


def read_cephalograms(data: Path, part: str) -> list[Cephalogram]:
    """All images of train or test1, in the order of their numbers."""
    cases = json.loads((data / "ceph" / f"{part}.json").read_text(encoding="utf-8"))["cases"]
    return [
        Cephalogram(
            f"{part}_{number}",
            data / "ceph" / "images" / f"{number}.jpg",
            case["spacing_mm"],
            (np.array(case["senior"]), np.array(case["junior"])),
        )
        for number, case in sorted(cases.items())
    ]


class Benchmark:
    """The datasets and runs of a command line."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.configuration = f"2d_whole{args.longest}_w{args.width}"
        training = read_cephalograms(args.data, "train")
        self.validated = training[TUNING:] if args.tuning else read_cephalograms(args.data, "test1")

    def run(self, *command: str) -> None:
        """Runs a command to its end; its output goes into logs/landmarks.log."""
        run_child(command, environment(self.args.work), self.args.work.resolve() / "logs" / "landmarks.log")

    def dataset(self, labeled: int) -> str:
        """The dataset with so many labeled images."""
        if self.args.tuning:
            return f"Dataset{150 + labeled}_Ceph{labeled}tuning"
        return f"Dataset{400 + labeled}_Ceph{labeled}"

    def prepare(self, labeled: int) -> None:
        """Makes, plans and preprocesses a dataset, unless it is there."""
        dataset, training = self.dataset(labeled), read_cephalograms(self.args.data, "train")
        training = training[:TUNING] if self.args.tuning else training
        raw = self.args.work / "nnUNet_raw" / dataset
        if not (raw / "dataset.json").is_file():
            self._write(raw, [*training[:labeled], *self.validated], training[labeled:])
        splits = self.args.work / "nnUNet_preprocessed" / dataset / "splits_final.json"
        if not splits.is_file():
            number = dataset[7:10]
            self.run("nnUNetv2_extract_fingerprint", "-d", number, "-np", processes())
            self.run("nnUNetv2_plan_experiment", "-d", number)
            fold = {"train": [c.name for c in training[:labeled]], "val": [c.name for c in self.validated]}
            write_json(splits, [fold])
        if not (splits.parent / "dataset.json").is_file():
            write_json(splits.parent / "dataset.json", json.loads((raw / "dataset.json").read_text(encoding="utf-8")))
        if not (splits.parent / f"nnUNetPlans_2d_whole{self.args.longest}").is_dir():
            whole = f"2d_whole{self.args.longest}"
            self.run("nnunet_semi", "whole_image", "-d", dataset[7:10], "-c", "2d", "--longest", whole[8:])
            self.run("nnUNetv2_preprocess", "-d", dataset[7:10], "-c", whole, "-np", processes())
        width = str(self.args.width)
        self.run("nnunet_semi", "narrow", "-d", dataset[7:10], "-c", f"2d_whole{self.args.longest}", "--width", width)

    def _write(self, raw: Path, labeled: Sequence[Cephalogram], unlabeled: Sequence[Cephalogram]) -> None:
        names = [f"L{number:02d}" for number in range(1, 20)]
        with_points = (
            (c.name, read_image(c), dict(zip(names, map(tuple, c.points.tolist()), strict=True))) for c in labeled
        )
        without = ((c.name, read_image(c)) for c in unlabeled)
        write_landmark_dataset(raw, names, with_points, without, "X-ray", ".mha")

    def measure(self, trainer: str, labeled: int, seed: int) -> dict[str, Any]:
        """Trains, unless it is done, and gives the errors on the validation cases."""
        name = f"{trainer}_{self.args.epochs}epochs_{self.args.iterations}iters_seed{seed}"
        dataset = self.dataset(labeled)
        results = self.args.work / "nnUNet_results"
        folder, means = errors_of_run(self.run, results, dataset, self.configuration, name, self.args.device)
        errors = {f"SDR {limit} mm": means[f"SDR {limit} mm"] for limit in LIMITS}
        found = errors_of(folder, self.validated)
        readers = {f"MRE of {reader}": float(np.nanmean(found[reader])) for reader in READERS}
        row = {"trainer": trainer, "labeled": labeled, "seed": seed, "MRE": means["MRE"], **errors, **readers}
        return {**row, "in 90 % region": self.coverage(dataset, name)} if self.args.tuning else row

    def coverage(self, dataset: str, trainer: str) -> float:
        """The share of the landmarks of test1 that are not farther away than `predict_landmarks` says.

        The uncertainties are calibrated on the validation cases, which are training images.
        """
        raw, output = self.args.work.resolve() / "coverage" / "test1", self.args.work.resolve() / "coverage" / trainer
        test = read_cephalograms(self.args.data, "test1")
        if not raw.is_dir():
            raw.mkdir(parents=True)
            for cephalogram in test:
                sitk.WriteImage(read_image(cephalogram), raw / f"{cephalogram.name}_0000.mha")
        model = ("-d", dataset, "-c", self.configuration, "-f", "0", "-tr", trainer, "-device", self.args.device)
        self.run("nnunet_semi", "predict_landmarks", "-i", str(raw), "-o", str(output), *model, "--continue_prediction")
        files = [landmark_files.read(output / f"{cephalogram.name}.json") for cephalogram in test]
        radii = np.stack([landmarks.details["uncertainty_mm"] for landmarks in files])
        return float((errors_of(output, test)["mean"] <= radii).mean())


def errors_of(folder: Path, cephalograms: Sequence[Cephalogram]) -> dict[str, np.ndarray]:
    """Distances in mm, (images, landmarks), of predicted landmarks to the mean of the readers and to each of them."""
    found = np.stack([landmark_files.read(folder / f"{c.name}.json").voxel[:, ::-1] for c in cephalograms])
    references = {"mean": [c.points for c in cephalograms]}
    references |= {reader: [c.readers[index] for c in cephalograms] for index, reader in enumerate(READERS)}
    spacing = np.array([c.spacing for c in cephalograms])[:, None]
    return {name: np.linalg.norm(found - np.stack(points), axis=2) * spacing for name, points in references.items()}


def read_image(cephalogram: Cephalogram) -> sitk.Image:
    """The grey image with its spacing in mm."""
    image = sitk.ReadImage(str(cephalogram.image))
    if image.GetNumberOfComponentsPerPixel() > 1:
        image = sitk.VectorIndexSelectionCast(image, 0)
    image.SetSpacing([cephalogram.spacing] * 2)
    return image


def between_readers(cephalograms: Sequence[Cephalogram]) -> dict[str, Any]:
    """How far the readers are from each other, as the errors of a run."""
    errors = np.concatenate([np.linalg.norm(np.subtract(*c.readers), axis=1) * c.spacing for c in cephalograms])
    rates = {f"SDR {limit} mm": float((errors < float(limit)).mean()) for limit in LIMITS}
    return {"trainer": "between the two readers", "labeled": "", "seed": "", "MRE": float(errors.mean()), **rates}


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder that holds ceph/")
    parser.add_argument("--work", type=Path, required=True, help="folder for datasets, models and logs")
    parser.add_argument("--trainers", nargs="+", default=["nnUNetTrainerHeatmap"], metavar="NAME")
    parser.add_argument("--labeled", nargs="+", type=int, default=[150], metavar="N", help="images with landmarks")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], metavar="S")
    parser.add_argument("--longest", type=int, default=128, help="pixels along the longer side of the whole image")
    parser.add_argument("--width", type=int, default=8, help="channels of the first stage of the network")
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--iterations", type=int, default=100, help="per epoch")
    parser.add_argument("--tuning", action="store_true", help="validate on training images instead of test1")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Does it all and prints a table in Markdown; gives the exit code, as the commands of nnunet_semi do."""
    args = parse(arguments)
    benchmark = Benchmark(args)
    rows = [between_readers(benchmark.validated)]
    try:
        for labeled in args.labeled:
            benchmark.prepare(labeled)
            rows += [benchmark.measure(name, labeled, seed) for name in args.trainers for seed in args.seeds]
    except UserError as problem:
        print(f"landmarks.py: {problem}", file=sys.stderr)
        return problem.exit_code
    finally:
        print_rows(rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
