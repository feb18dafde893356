"""Measures the estimators of `nnunet_semi score`: do they know which predictions are good, and which cases are bad?

python benchmarks/scores.py --data DATA --task la2d --work WORK --labeled 2 --unlabeled 20 --planted 3 \\
    --epochs 15 --iterations 50

Trains nnUNetTrainerKeepCheckpoints in three folds that see the same labeled cases, and nnUNetTrainerCPS once; scores
some unlabeled cases of the task, and bad ones planted among them (images of another kind, heavy noise, a crop without
the organ, blank). For every estimator: rank correlation (Spearman) between score and true Dice of the prediction over
the cases that belong, and the area under the ROC curve that tells these from the planted ones. True labels are used
for this report only. What is there already is not done again.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import blosc2
import numpy as np
from scipy.stats import rankdata, spearmanr

from cases import TASKS
from children import environment, run_child
from nnunet_semi.errors import UserError
from nnunet_semi.filtering.estimators import dice_per_class, mean_of_present
from nnunet_semi.filtering.table import PREDICTIONS, Row, read_table, work_folder
from planted import KINDS, PREFIX, PlantedPreparation
from prepare import PLANS, write_json
from runs import label_names

SUPERVISED, CPS = "nnUNetTrainerKeepCheckpoints", "nnUNetTrainerCPS"
MEASURED = [  # trainer, estimator, folds
    (SUPERVISED, "checkpoints", (0,)),
    (SUPERVISED, "entropy", (0,)),
    (SUPERVISED, "mirrors", (0,)),
    (SUPERVISED, "folds", (0, 1, 2)),
    (CPS, "checkpoints", (0,)),
    (CPS, "entropy", (0,)),
    (CPS, "mirrors", (0,)),
    (CPS, "networks", (0,)),
]


def arguments(description: str) -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder that holds la/, hippocampus/ and acdc/")
    parser.add_argument("--task", choices=TASKS, required=True)
    parser.add_argument("--work", type=Path, required=True, help="folder for datasets, models, logs and tables")
    parser.add_argument("--labeled", type=int, default=2, metavar="N", help="cases (acdc2d: patients)")
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--iterations", type=int, default=50, help="per epoch")
    parser.add_argument("--width", type=int, default=8, help="channels of the first stage of the network")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--ending", default="", help="of the name of every trainer, such as _nomirror")
    parser.add_argument("--mirroring", action="store_true", help="predict with nnU-Net's mirrored copies")
    return parser


def arguments_with_planted(description: str) -> argparse.ArgumentParser:
    """The command line of a benchmark with bad cases planted."""
    parser = arguments(description)
    parser.add_argument("--unlabeled", type=int, default=20, metavar="N", help="cases that belong")
    parser.add_argument("--planted", type=int, default=3, metavar="N", help="bad cases of each of the four kinds")
    return parser


class Benchmark:
    """One call: a dataset, its trainings and its tables."""

    def __init__(self, args: argparse.Namespace) -> None:
        task = TASKS[args.task]
        self.args = args
        self.preparation = PlantedPreparation(
            args.data, args.work, task, "development", args.width, task.batch_size, args.unlabeled, args.planted
        )
        self.dataset = self.preparation.dataset(args.labeled)
        self.preprocessed = self.preparation.folder("nnUNet_preprocessed", self.dataset).resolve()

    def prepare(self) -> None:
        """Makes the dataset; its three folds see the same cases, so that they differ by their random numbers."""
        self.preparation.prepare([self.args.labeled])
        splits = self.preprocessed / "splits_final.json"
        labeled = list(self.preparation.split(self.args.labeled).labeled)
        write_json(splits, [{"train": labeled, "val": labeled[:1]}] * 3)

    def run(self, *command: str) -> None:
        """Runs a command in the folders of the benchmark; its output goes into scores.log."""
        run_child(command, environment(self.args.work), self.args.work.resolve() / "logs" / "scores.log")

    def trainer(self, name: str) -> str:
        """The trainer with its length. If the name has no seed, one is drawn, so that the folds differ."""
        return f"{name}{self.args.ending}_{self.args.epochs}epochs_{self.args.iterations}iters"

    def model(self, trainer: str) -> Path:
        """The folder of a model."""
        name = f"{self.trainer(trainer)}__{PLANS}__{self.preparation.configuration}"
        return self.preparation.folder("nnUNet_results", self.dataset).resolve() / name

    def train(self, trainer: str, folds: Sequence[int]) -> None:
        """Trains the folds that are missing."""
        for fold in folds:
            if not (self.model(trainer) / f"fold_{fold}" / "checkpoint_final.pth").is_file():
                command = ("nnUNetv2_train", self.dataset, self.preparation.configuration, str(fold))
                self.run(*command, "-tr", self.trainer(trainer), "-device", self.args.device)

    def score(self, trainer: str, by: str, folds: Sequence[int]) -> Path:
        """The table of an estimator."""
        table = self.args.work.resolve() / "tables" / f"{self.dataset}_{self.trainer(trainer)}_{by}.csv"
        table.parent.mkdir(exist_ok=True)
        options = ["-device", self.args.device, "-o", str(table)]
        options += [] if self.args.mirroring or by == "mirrors" else ["--disable_tta"]
        names = ["-d", self.dataset, "-c", self.preparation.configuration, "-tr", self.trainer(trainer)]
        self.run("nnunet_semi", "score", *names, "-f", *map(str, folds), "--by", by, *options)
        return table

    def true_dice(self, table: Path) -> dict[str, float]:
        """Case → mean Dice of its prediction, of the cases that belong; on the grid of the network."""
        classes = {name: (value,) for name, value in label_names(self.preparation).items()}
        dice = {}
        for case, _, reference in self.preparation.truth(self.args.labeled):
            prediction = blosc2.open(str(work_folder(table) / PREDICTIONS / f"{case}.b2nd"), mode="r")[:]
            dice[case] = mean_of_present(dice_per_class(prediction, reference, classes))
        return dice


def measured(rows: Sequence[Row], dice: dict[str, float]) -> dict[str, float]:
    """Rank correlation with the true Dice, and areas under the ROC curve: of all planted cases, and of each kind."""
    scores = {row.case: row.score for row in rows}
    belonging = [scores[case] for case in dice]
    found = {"spearman": float(spearmanr(belonging, list(dice.values())).statistic)}
    for name, prefix in {"all": PREFIX, **{kind: f"{PREFIX}{kind}" for kind in KINDS}}.items():
        found[f"auc_{name}"] = roc_auc(belonging, [scores[case] for case in scores if case.startswith(prefix)])
    return found


def roc_auc(good: Sequence[float], bad: Sequence[float]) -> float:
    """The share of pairs in which the good case has the higher score; a tie counts half."""
    ranks = rankdata([*good, *bad])[: len(good)].sum()
    return float((ranks - len(good) * (len(good) + 1) / 2) / (len(good) * len(bad)))


def main() -> int:
    """Does it all, and prints the table in Markdown; gives the exit code, as the commands of nnunet_semi do."""
    args = arguments_with_planted(__doc__).parse_args()
    try:
        results = list(measure(Benchmark(args)))
    except UserError as problem:
        print(f"scores.py: {problem}", file=sys.stderr)
        return problem.exit_code
    write_table(results, args.work / "scores.csv")
    return 0


def write_table(results: Sequence[Mapping[str, str | float]], path: Path) -> None:
    """Writes rows as CSV and prints them as Markdown."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, results[0])
        writer.writeheader()
        writer.writerows(results)
    print("|", " | ".join(results[0]), "|\n|", " | ".join("---" for _ in results[0]), "|")
    for row in results:
        print(
            "|", " | ".join(f"{value:.3f}" if isinstance(value, float) else str(value) for value in row.values()), "|"
        )


def measure(benchmark: Benchmark) -> Iterator[dict[str, str | float]]:
    """A row for every trainer and estimator."""
    benchmark.prepare()
    for trainer, by, folds in MEASURED:
        if by == "mirrors" and "_nomirror" in benchmark.args.ending:
            continue  # nothing to compare
        benchmark.train(trainer, folds)
        table = benchmark.score(trainer, by, folds)
        dice = benchmark.true_dice(table)
        row: dict[str, str | float] = {"trainer": trainer, "by": by, "true_dice": float(np.mean(list(dice.values())))}
        print(row, measured(read_table(table), dice), file=sys.stderr, flush=True)
        yield {**row, **measured(read_table(table), dice)}


if __name__ == "__main__":
    sys.exit(main())
