"""Scores the network that a trainer with a teacher does not deploy, beside the one that it does.

python benchmarks/deployed.py ARGUMENTS

with the arguments of a call of protocol.py whose runs are done: of every run of a trainer with a teacher, the network
that is kept beside the deployed one in checkpoint_final predicts the held-out cases, too.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from children import available_cores
from nnunet_semi.errors import UserError
from nnunet_semi.plugin_trainer import CHECKPOINT_KEY
from protocol import parse, planned_runs
from results import read_rows
from runs import Run

NETWORKS = ("student", "teacher")


def other_network(model: Path, target: Path) -> str | None:
    """Copies a model with the network that is not deployed in the place of the other; gives its name, None without."""
    import torch

    checkpoint = torch.load(model / "fold_0" / "checkpoint_final.pth", map_location="cpu", weights_only=False)
    names = [name for name in NETWORKS if name in checkpoint[CHECKPOINT_KEY]]
    if not names:
        return None
    (target / "fold_0").mkdir(parents=True)
    for file in ("dataset.json", "plans.json"):
        shutil.copy(model / file, target)
    checkpoint["network_weights"] = checkpoint[CHECKPOINT_KEY][names[0]]
    torch.save(checkpoint, target / "fold_0" / "checkpoint_final.pth")
    return names[0]


def compare(run: Run) -> str | None:
    """A row of the table: trainer, labels, seed, and the Dice of student and teacher, the deployed one in bold."""
    identity = {name: str(value) for name, value in run.identity().items()}
    rows = read_rows(run.preparation.work / "results.csv")
    deployed = [row["dice"] for row in rows if {name: row.get(name) for name in identity} == identity]
    if not deployed:
        raise UserError(f"{run.trainer_name} is not in results.csv; run protocol.py with these arguments first")
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / run.model.name
        other = other_network(run.model, model)
        if other is None:
            return None
        scores = run.predict_and_score(model, f"{run.model.name}__{other}", available_cores())
    dice = {name: f"{scores['dice']:.4f}" if name == other else f"**{float(deployed[0]):.4f}**" for name in NETWORKS}
    return " | ".join(["", run.trainer, str(run.labeled), str(run.seed), dice["student"], dice["teacher"], ""]).strip()


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table; gives the exit code."""
    print("| trainer | labeled | seed | Dice of the student | of the teacher |\n|---|---|---|---|---|")
    try:
        for run in planned_runs(parse(arguments)):
            row = compare(run)
            if row is not None:
                print(row, flush=True)
    except UserError as problem:
        print(f"deployed.py: {problem}", file=sys.stderr)
        return problem.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
