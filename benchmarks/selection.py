"""Measures what a selection is worth: CPS on all unlabeled cases, bad ones among them, and on those that it leaves.

python benchmarks/selection.py --data DATA --task la2d --work WORK --labeled 2 --unlabeled 20 --planted 3 \\
    --epochs 15 --iterations 50 --by networks --top .5 --seeds 0 1

The dataset is that of scores.py, whose work folder may be used again. One CPS training on all cases gives the scores
by which `nnunet_semi select` chooses. Then each seed trains on all cases, on those selected, and on those that belong,
which a person who screens them would keep. Dice of the held-out cases, with checkpoint_final of the deployed network.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Iterator

from children import environment, run_child
from nnunet_semi import raw
from nnunet_semi.errors import UserError
from nnunet_semi.unlabeled.selection import SELECTION
from planted import PREFIX
from runs import mean_dice
from scores import CPS, Benchmark, arguments_with_planted, write_table

ALL, SELECTED, BELONGING = KINDS = ("all", "selected", "those that belong")  # trained in fold 0, 1 and 2


class Selections(Benchmark):
    """The trainings of one call."""

    def choose(self, kind: str) -> tuple[int, int]:
        """Makes unlabeled_final.json, or removes it for all; gives how many cases that leaves, and how many are bad."""
        path, belonging = self.preprocessed / SELECTION, self.preparation.split(self.args.labeled).unlabeled
        path.unlink(missing_ok=True)
        if kind == ALL:
            planted = self.args.planted * 4
            return len(belonging) + planted, planted
        listed = self.args.work.resolve() / "tables" / "belonging.txt"
        listed.write_text("\n".join(belonging), encoding="utf-8")
        rule = ["--top", str(self.args.top)] if kind == SELECTED else ["--include", str(listed)]
        self.run("nnunet_semi", "select", "-d", self.dataset, "--table", str(self.table), *rule)
        cases = raw.load_json(path)["selected"]
        return len(cases), sum(case.startswith(PREFIX) for case in cases)

    def measure(self) -> Iterator[dict[str, str | float]]:
        """A row for every kind of selection, with the mean over the seeds."""
        self.prepare()
        self.train(CPS, (0,))
        self.table = self.score(CPS, self.args.by, (0,))
        for fold, kind in enumerate(KINDS):
            count, bad = self.choose(kind)
            dice = [self._dice(f"{CPS}_seed{seed}", fold) for seed in self.args.seeds]
            row: dict[str, str | float] = {
                "unlabeled": kind,
                "cases": count,
                "bad": bad,
                "dice": statistics.fmean(dice),
            }
            yield {**row, **{f"seed {seed}": value for seed, value in zip(self.args.seeds, dice, strict=True)}}

    def _dice(self, trainer: str, fold: int) -> float:
        """Trains unless that was done; predicts and scores the held-out cases."""
        self.train(trainer, (fold,))
        output = self.args.work.resolve() / "predictions" / self.dataset / f"{self.trainer(trainer)}_fold{fold}"
        cases = self.preparation.split(self.args.labeled).test
        images = (self.preparation.data / self.preparation.task.folder / "images").resolve()
        files = [str(images / f"{case}.nii.gz") for case in cases]
        settings = [str(output), self.args.device, str(self.args.mirroring)]
        log = self.args.work.resolve() / "logs" / "selection.log"
        run_child(["predict", str(self.model(trainer)), str(fold), *settings, *files], environment(self.args.work), log)
        dice = mean_dice(self.preparation, cases, output)["dice"]
        print(f"{trainer}, {KINDS[fold]}: Dice {dice:.3f}", file=sys.stderr, flush=True)
        return dice


def main() -> int:
    """Does it all, and prints the table in Markdown; gives the exit code, as the commands of nnunet_semi do."""
    parser = arguments_with_planted(__doc__)
    parser.add_argument("--by", default="networks", help="the estimator of the scores")
    parser.add_argument("--top", type=float, default=0.5, metavar="SHARE", help="of the cases that is selected")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1], metavar="S")
    args = parser.parse_args()
    try:
        write_table(list(Selections(args).measure()), args.work / "selection.csv")
    except UserError as problem:
        print(f"selection.py: {problem}", file=sys.stderr)
        return problem.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
