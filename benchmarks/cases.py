"""Which cases a protocol trains on with labels, which without, and on which it is scored."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_semi.errors import WrongUse

ALL = "all"  # instead of a number of labeled cases: every training case is labeled
TESTS = ("development", "tuning")


@dataclass(frozen=True)
class Task:
    """A benchmark: real data, an nnU-Net configuration, and who is held out.

    Attributes:
        folder: of the data; it holds images/, labels/ and protocol.json.
        configuration: of nnU-Net, from which the narrow one inherits.
        batch_size: labeled patches per step.
        labeled: key in protocol.json of the cases, or patients, that may be labeled, in the order in which they are.
        tuning: number of training cases held out instead of the test cases where hyperparameters are chosen.
        dataset_id: the first of the hundred dataset ids that this task uses.
        spacing: of coarser pixels in mm, in patches of at most `longest` pixels, which a CPU can train on; 0 keeps
            nnU-Net's plan.
        longest: side of these patches.
    """

    folder: str
    configuration: str
    batch_size: int
    labeled: str
    tuning: int
    dataset_id: int
    spacing: float = 0
    longest: int = 128

    @property
    def patients(self) -> bool:
        """Whether labeled counts are patients, each with several cases, and not cases."""
        return self.labeled.endswith("_patients")


TASKS = {
    "la2d": Task("la", "2d", 8, "labeled_16", 12, 700),
    "la3d": Task("la", "3d_fullres", 2, "labeled_16", 12, 500, spacing=2.5, longest=56),
    "hippocampus3d": Task("hippocampus", "3d_fullres", 2, "labeled_10", 20, 800),
    "acdc2d": Task("acdc", "2d", 8, "labeled_7_patients", 10, 900),
    "acdc2d_3mm": Task("acdc", "2d", 8, "labeled_7_patients", 10, 600, spacing=3),
}


@dataclass(frozen=True)
class Split:
    """Case names, no one twice."""

    labeled: tuple[str, ...]
    unlabeled: tuple[str, ...]
    test: tuple[str, ...]


def read_protocol(data: Path, task: Task) -> dict[str, Any]:
    """The task's protocol.json below the data folder.

    Raises:
        WrongUse: it is not there.
    """
    path = data / task.folder / "protocol.json"
    if not path.is_file():
        raise WrongUse(f"got --data {data}; expected the file {path}; give the folder that holds {task.folder}/")
    return json.loads(path.read_text(encoding="utf-8"))


def split_cases(protocol: Mapping[str, Any], task: Task, labeled: int | str, test: str = "development") -> Split:
    """Divides the cases of a task.

    Args:
        labeled: the first so many cases or patients that may be labeled have labels, the other training cases none;
            or `ALL`.
        test: 'development' scores on the cases in development_test. 'tuning' never looks at them: it scores on
            training cases that are not labeled at any labeled count, and takes them out of the training cases. They
            are spread evenly over the list, since neighbours in it are alike: ACDC's is in the order of the diseases.

    Raises:
        WrongUse: more labeled ones are asked for than the protocol lists.
    """
    candidates = protocol[task.labeled]
    training = protocol["train"] if "train" in protocol else [*candidates, *protocol["unlabeled"]]

    def owner_of(case: str) -> str:
        return case.split("_")[0] if task.patients else case

    def of(owners: Sequence[str]) -> tuple[str, ...]:
        return tuple(case for owner in owners for case in training if owner_of(case) == owner)

    if test == "tuning":
        owners = list(dict.fromkeys(owner_of(case) for case in training if owner_of(case) not in candidates))
        count = max(1, round(task.tuning * len(owners) / len(of(owners))))
        held_out = of([owners[(2 * number + 1) * len(owners) // (2 * count)] for number in range(count)])
        training = [case for case in training if case not in held_out]
    else:
        held_out = tuple(protocol["development_test"])
    if labeled == ALL:
        return Split(tuple(training), (), held_out)
    if not 1 <= int(labeled) <= len(candidates):
        raise WrongUse(f"got --labeled {labeled}; expected 1 to {len(candidates)}, as many as {task.labeled} lists")
    chosen = of(candidates[: int(labeled)])
    return Split(chosen, tuple(case for case in training if case not in chosen), held_out)


def dataset_name(task: Task, labeled: int | str, test: str) -> str:
    """The nnU-Net dataset with these labels; every count and test has one of its own."""
    number = task.dataset_id + (49 if labeled == ALL else int(labeled)) + 50 * TESTS.index(test)
    return f"Dataset{number:03d}_{task.folder}_{labeled}" + ("_tuning" if test == "tuning" else "")
