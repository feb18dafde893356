"""What a threshold per class changes: how much of each class of a pseudo label counts, and how much of that is right.

python benchmarks/thresholds.py --data DATA --task acdc2d_3mm --work WORK --labeled 1 --epochs 25 --iterations 50

Takes the network that protocol.py with the same WORK trained with nnUNetTrainer on the labeled cases, and trains it if
it is not there. Its pseudo labels of all unlabeled cases, undisturbed, are then counted: those at or above the fixed
threshold of nnUNetTrainerUniMatch, and those that nnUNetTrainerUniMatchClassAdaptive counts, with thresholds learned
from the same pseudo labels. True labels are used for this report only.
"""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Sequence

import numpy as np
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

from cases import TASKS, TESTS
from children import available_cores
from nnunet_semi.consistency.pseudo_label import pseudo_label, runner_up
from nnunet_semi.consistency.thresholds import ClassThresholds
from nnunet_semi.errors import UserError
from prepare import PLANS, Preparation
from results import SUPERVISED
from runs import Options, Run, label_names
from scores import arguments, write_table

BINS = 10_000  # of the confidence


class Histogram:
    """How many voxels have which true class, pseudo label, second most likely class and confidence."""

    def __init__(self, classes: int) -> None:
        self.counts = np.zeros((classes, classes, classes, BINS), np.int64)

    def add(self, true: np.ndarray, label: np.ndarray, second: np.ndarray, confidence: np.ndarray) -> None:
        """Counts the voxels of a case."""
        bins = np.minimum((confidence * BINS).astype(np.int64), BINS - 1)
        voxels = (true.ravel(), label.ravel(), second.ravel(), bins.ravel())
        place = np.ravel_multi_index(voxels, self.counts.shape)
        self.counts += np.bincount(place, minlength=self.counts.size).reshape(self.counts.shape)

    def at(self, thresholds: Sequence[float]) -> list[dict[str, float]]:
        """Of each class: the share of its pseudo label that counts, what of that is right, and what of it is reached.

        A voxel counts from the lower threshold of its pseudo label and its second most likely class on.

        `kept` and `right` are shares of voxels with this pseudo label, and of those of them that count; `reached` is
        the share of the voxels of the true class that count with the right label.
        """
        found = []
        for index, threshold in enumerate(thresholds):
            labeled, counting = self.counts[:, index].sum(axis=(1, 2)), np.zeros(len(thresholds), np.int64)
            for second, other in enumerate(thresholds):
                first = int(np.floor(min(threshold, other) * BINS))
                counting += self.counts[:, index, second, first:].sum(axis=1)
            right, true = counting[index], self.counts[index].sum()
            found.append(
                {
                    "kept": float(counting.sum() / max(1, labeled.sum())),
                    "right": float(right / counting.sum()) if counting.sum() else float("nan"),
                    "reached": float(right / max(1, true)),
                }
            )
        return found


def train(preparation: Preparation, options: Options, labeled: int) -> str:
    """The folder of the model, trained if need be."""
    run = Run(preparation, options, SUPERVISED, labeled, seed=0)
    model = preparation.folder("nnUNet_results", preparation.dataset(labeled)).resolve()
    model /= f"{run.trainer_name}__{PLANS}__{preparation.configuration}"
    if not (model / "fold_0" / "checkpoint_final.pth").is_file():
        preparation.prepare([labeled])
        run.execute(available_cores())
    return str(model)


def count(preparation: Preparation, labeled: int, predictor: nnUNetPredictor) -> tuple[Histogram, ClassThresholds]:
    """All pseudo labels, and the thresholds learned from them."""
    classes = len(label_names(preparation)) + 1
    histogram, thresholds = Histogram(classes), ClassThresholds(classes)
    for _, image, true in preparation.truth(labeled):
        logits = predictor.predict_sliding_window_return_logits(torch.from_numpy(image))
        logits = logits[None].cpu()
        label, confidence = pseudo_label(logits)
        thresholds.update(label, confidence)
        histogram.add(true, label.numpy(), runner_up(logits, label).numpy(), confidence.numpy())
    return histogram, thresholds


def main() -> int:
    """Does it all, and prints the table in Markdown; gives the exit code, as the commands of nnunet_semi do."""
    args = arguments(__doc__).parse_args()
    task = TASKS[args.task]
    preparation = Preparation(args.data, args.work, task, TESTS[0], args.width, task.batch_size)
    options = Options(args.epochs, args.iterations, args.device, None, False, args.mirroring, args.ending)
    try:
        model = train(preparation, options, args.labeled)
        with contextlib.redirect_stdout(io.StringIO()):  # nnU-Net prints while it loads and preprocesses
            predictor = nnUNetPredictor(
                use_mirroring=args.mirroring, device=torch.device(args.device), allow_tqdm=False
            )
            predictor.initialize_from_trained_model_folder(model, (0,), "checkpoint_final.pth")
            histogram, thresholds = count(preparation, args.labeled, predictor)
    except UserError as problem:
        print(f"thresholds.py: {problem}", file=sys.stderr)
        return problem.exit_code
    names, adaptive = ["background", *label_names(preparation)], thresholds.thresholds.tolist()
    fixed, learned = histogram.at([thresholds.threshold] * len(names)), histogram.at(adaptive)
    rows: list[dict[str, str | float]] = []
    for index, name in enumerate(names):
        true = histogram.counts[index].sum() / histogram.counts.sum()
        row: dict[str, str | float] = {"class": name, "true share": float(true)}
        row |= {f"{key}, fixed": value for key, value in fixed[index].items()}
        row |= {"threshold": adaptive[index]} | {f"{key}, per class": value for key, value in learned[index].items()}
        rows.append(row)
    write_table(rows, args.work / "thresholds.csv")
    return 0


if __name__ == "__main__":
    sys.exit(main())
