"""One run of a benchmark: train, predict the held-out cases with the final checkpoint, score."""

from __future__ import annotations

import csv
import os
import platform
import re
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

import nnunet_semi
from cases import read_protocol
from children import environment, run_child
from prepare import PLANS, Preparation


@dataclass(frozen=True)
class Options:
    """How every run of a call is trained and predicted."""

    epochs: int
    iterations: int
    device: str
    workers: int | None
    compiled: bool
    mirroring: bool
    ending: str = ""


@dataclass(frozen=True)
class Run:
    """One training and its score."""

    preparation: Preparation
    options: Options
    trainer: str
    labeled: int | str
    seed: int

    @property
    def trainer_name(self) -> str:
        """The trainer with ending, length and seed, as nnU-Net is given it."""
        options = self.options
        return f"{self.trainer}{options.ending}_{options.epochs}epochs_{options.iterations}iters_seed{self.seed}"

    def identity(self) -> dict[str, Any]:
        """What tells this run from others in the results."""
        return {
            "task": self.preparation.task.folder,
            "test": self.preparation.test,
            "configuration": self.preparation.configuration,
            "epochs": self.options.epochs,
            "iterations": self.options.iterations,
            "device": self.options.device,
            "mirroring": self.options.mirroring,
            "ending": self.options.ending,
            "trainer": self.trainer,
            "labeled": self.labeled,
            "seed": self.seed,
        }

    def execute(self, cores: Sequence[int]) -> dict[str, Any]:
        """Trains, predicts and scores; gives the row of the results.

        Raises:
            UserError: training or prediction failed.
        """
        trained = self._train(cores)
        started = time.monotonic()
        scores = self.predict_and_score(self.model, self.model.name, cores)
        predicted = {"predict_seconds": round(time.monotonic() - started, 1)}
        return {**self.identity(), **scores, **trained, **predicted, **surroundings()}

    @property
    def dataset(self) -> str:
        """In which it is trained."""
        return self.preparation.dataset(self.labeled)

    @property
    def model(self) -> Path:
        """Its folder in nnUNet_results."""
        name = f"{self.trainer_name}__{PLANS}__{self.preparation.configuration}"
        return self.preparation.folder("nnUNet_results", self.dataset).resolve() / name

    @property
    def checkpoint(self) -> Path:
        """With which it is scored."""
        return self.model / "fold_0" / "checkpoint_final.pth"

    @property
    def log(self) -> Path:
        """What its commands print."""
        name = f"{self.dataset}_{self.trainer_name}_{self.preparation.configuration}.log"
        return self.preparation.work.resolve() / "logs" / name

    def _train(self, cores: Sequence[int]) -> dict[str, Any]:
        """Trains unless the final checkpoint is there; gives seconds and memory, as the logs tell them."""
        log = self.log
        if not self.checkpoint.is_file():
            log.unlink(missing_ok=True)
            started = time.monotonic()
            command = ["nnUNetv2_train", self.dataset, self.preparation.configuration, "0", "-tr", self.trainer_name]
            run_child([*command, "-device", self.options.device], self._environment(), log, cores)
            with log.open("a", encoding="utf-8") as file:
                file.write(f"trained in {time.monotonic() - started:.1f} s\n")
        said = log.read_text(encoding="utf-8") if log.is_file() else ""
        epochs = [float(seconds) for seconds in re.findall(r"Epoch time: ([\d.]+) s", said)]
        return {
            "train_seconds": "".join(re.findall(r"^trained in ([\d.]+) s$", said, re.MULTILINE)[-1:]),
            "epoch_seconds": round(statistics.median(epochs), 2) if epochs else "",
            "gpu_mib": "".join(re.findall(r"^peak GPU memory: (\d+) MiB", said, re.MULTILINE)[:1]),
            "gpu": "".join(re.findall(r"^peak GPU memory: \d+ MiB of (.+)$", said, re.MULTILINE)[:1]),
            "workers": "" if self.options.workers is None else self.options.workers,
            "compiled": self.options.compiled,
        }

    def predict_and_score(self, model: Path, name: str, cores: Sequence[int]) -> dict[str, Any]:
        """Predicts the held-out cases with fold 0 of a model folder, into a folder of that name, and scores them."""
        preparation, cases = self.preparation, self.preparation.split(self.labeled).test
        images = (preparation.data / preparation.task.folder / "images").resolve()
        output = preparation.work.resolve() / "predictions" / self.dataset / name
        settings = [self.options.device, str(self.options.mirroring)]
        paths = [str(images / f"{case}.nii.gz") for case in cases]
        run_child(["predict", str(model), "0", str(output), *settings, *paths], self._environment(), self.log, cores)
        return mean_dice(preparation, cases, output)

    def _environment(self) -> dict[str, str]:
        return environment(self.preparation.work, self.options.workers, self.options.compiled)


def mean_dice(preparation: Preparation, cases: Sequence[str], predictions: Path) -> dict[str, Any]:
    """Mean Dice of each class over the cases, and their mean; the cases' own Dice goes into dice.csv."""
    labels, references = label_names(preparation), preparation.data / preparation.task.folder / "labels"
    table = []
    for case in cases:
        scores = dice_of_files(predictions / f"{case}.nii.gz", references / f"{case}.nii.gz", labels)
        table.append({"case": case, **scores})
    with (predictions / "dice.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, table[0])
        writer.writeheader()
        writer.writerows(table)
    means = {name: float(np.nanmean([row[name] for row in table])) for name in labels}
    rounded = {f"dice_{name}": round(mean, 5) for name, mean in means.items()}
    return {"cases": len(table), **rounded, "dice": round(statistics.fmean(means.values()), 5)}


def label_names(preparation: Preparation) -> dict[str, int]:
    """The foreground classes of the task."""
    labels = read_protocol(preparation.data, preparation.task)["labels"]
    return {name: value for name, value in labels.items() if value != 0}


def dice_of_files(prediction: Path, reference: Path, labels: Mapping[str, int]) -> dict[str, float]:
    """Dice of every class between two label maps on the same grid."""
    import SimpleITK as sitk

    first, second = (sitk.GetArrayFromImage(sitk.ReadImage(str(path))) for path in (prediction, reference))
    return {name: dice(first == value, second == value) for name, value in labels.items()}


def dice(prediction: np.ndarray, reference: np.ndarray) -> float:
    """2·|A ∩ B| / (|A| + |B|) of two masks of one shape; NaN, which means leave out, where both are empty."""
    assert prediction.shape == reference.shape
    size = int(prediction.sum()) + int(reference.sum())
    return 2 * int((prediction & reference).sum()) / size if size else float("nan")


def surroundings() -> dict[str, str]:
    """Versions and the machine."""
    return {
        "nnunet_semi": nnunet_semi.__version__,
        "nnunetv2": version("nnunetv2"),
        "torch": version("torch"),
        "python": platform.python_version(),
        "cores": str(os.cpu_count()),
    }
