"""What a conversion will do, decided before anything is written: steps, dataset.json, splits, and all problems."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nnunet_semi import __version__
from nnunet_semi.errors import Problem, UserError

Output = Callable[[Path], None] | None  # writes a file; None stands for the bytes of the source, unchanged
Work = Callable[..., Sequence[Output]]

LABELED, UNLABELED, TEST = "Tr", "Un", "Ts"  # the endings of nnU-Net's folders are the roles of a case
MOST_TOLD = 20


class SourceProblems(UserError):
    """The source cannot be converted as it is.

    Attributes:
        problems: all of them; the message tells the first ones.
    """

    def __init__(self, source: Path, problems: Sequence[Problem]) -> None:
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        more = len(problems) - MOST_TOLD
        lines = [f"  {problem.relative_to(source)}" for problem in problems[:MOST_TOLD]]
        lines += [f"  … and {more} more"] if more > 0 else []
        super().__init__("\n".join([f"{count} in {source}; nothing was written:", *lines]))
        self.problems = list(problems)


@dataclass(frozen=True)
class Step:
    """The files of one case that are made together.

    Attributes:
        files: pairs of a source and the file it becomes, the latter relative to the dataset.
        work: looks at the sources, in the order of `files`, and gives an output for each; raises `Unusable`. Must be
            picklable, and its `repr` must hold everything that decides about the outputs: it tells an interrupted run
            which of its files are still right.
    """

    files: tuple[tuple[Path, str], ...]
    work: Work

    @property
    def sources(self) -> tuple[Path, ...]:
        """Where the files come from."""
        return tuple(source for source, _ in self.files)


@dataclass
class Plan:
    """A whole dataset.

    Attributes:
        source: the folder it comes from, for messages.
        dataset_json: contents of dataset.json, complete but for `numTraining`.
        steps: one per case.
        problems: why it cannot be converted; the contents of most files are looked at later.
        splits: contents of splits_final.json, where there is a split to keep.
        notes: sentences that the user should read.
    """

    source: Path
    dataset_json: dict[str, Any]
    steps: list[Step] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    splits: list[dict[str, list[str]]] | None = None
    notes: list[str] = field(default_factory=list)

    def add(
        self, role: str, name: str, channels: Sequence[Path], work: Work, label: Path | None = None, **sidecars: Path
    ) -> None:
        """Adds a case: an image file per channel, its label map, and sidecars by the beginning of their folder.

        `add("Tr", "a", [image], work, label, landmarks=points)` writes imagesTr, labelsTr and landmarksTr/a.json.
        """
        if not name:
            self.problems.append(Problem(channels[0], "a name without ASCII letters or digits", "one to name a case"))
            return
        ending = self.dataset_json["file_ending"]
        files = [(path, f"images{role}/{name}_{channel:04d}{ending}") for channel, path in enumerate(channels)]
        if label is not None:
            files.append((label, f"labels{role}/{name}{ending}"))
        files += [(path, f"{folder}{role}/{name}.json") for folder, path in sidecars.items()]
        self.steps.append(Step(tuple(files), work))

    def count(self, role: str) -> int:
        """How many cases have a role."""
        return sum(step.files[0][1].startswith(f"images{role}/") for step in self.steps)

    def finish(self) -> Plan:
        """Fills in `numTraining`, and notes cases that would have the same name; gives itself."""
        self.dataset_json["numTraining"] = self.count(LABELED)
        self.problems += _collisions(self.steps)
        if not self.steps and not self.problems:
            self.problems.append(Problem(self.source, "no images", "at least one"))
        return self


def describe(
    challenge: str, channels: Iterable[str], labels: dict[str, int], ending: str, **more: Any
) -> dict[str, Any]:
    """The contents of dataset.json but for `numTraining`, which `Plan.finish` fills in."""
    return {
        "channel_names": {str(number): name for number, name in enumerate(channels)},
        "labels": labels,
        "numTraining": 0,
        "file_ending": ending,
        "converted_by": f"nnunet_semi {__version__} convert {challenge}",
        **more,
    }


def case_name(stem: str, prefix: str = "") -> str:
    """A case name that every file system, shell and nnU-Net itself accepts; "" where nothing is left of `stem`."""
    plain = re.sub(r"[^A-Za-z0-9_.-]+", "_", stem).strip("._-")
    if plain.endswith("_seg"):
        plain += "_"  # nnU-Net keeps names that end in _seg for itself
    return prefix + plain if plain else ""


def _collisions(steps: Iterable[Step]) -> list[Problem]:
    """Files that would overwrite each other, also where case does not matter; cases labeled and unlabeled at once."""
    first: dict[str, tuple[Path, str]] = {}
    problems = []
    for step in steps:
        source, target = step.files[0]
        key = target.replace("imagesUn/", "imagesTr/").casefold()
        other, other_target = first.setdefault(key, (source, target))
        if (other, other_target) != (source, target):
            found = f"the name {target}, though {other} becomes {other_target}"
            problems.append(Problem(source, found, "a case name of its own: rename one of the two"))
    return problems
