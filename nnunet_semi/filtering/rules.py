"""Rules that select unlabeled cases from a table of scores; a case stays that passes all of them."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from nnunet_semi.errors import UserError, WrongUse, cause_of
from nnunet_semi.filtering.table import Row
from nnunet_semi.log import Log, to_stderr
from nnunet_semi.raw import name_some


class Selected(NamedTuple):
    """The cases that stay, sorted, and the others with the reason; every row of the table is in one of the two."""

    cases: list[str]
    left_out: dict[str, str]


@dataclass(frozen=True)
class Rules:
    """What a case must fulfil; None and False stand for no such rule.

    Attributes:
        top: share of all cases of the table, those with the best scores, rounded up.
        threshold: the score must be above it.
        complete: every class must be in the prediction.
        components: a class may have so many connected components and no more.
        exclude: file with cases that are left out.
        include: file with cases; all others are left out.
        max: of the cases that fulfil all this, so many with the best scores.
    """

    top: float | None = None
    threshold: float | None = None
    complete: bool = False
    components: int | None = None
    exclude: Path | None = None
    include: Path | None = None
    max: int | None = None

    def __post_init__(self) -> None:
        if self.top is not None and not 0 < self.top <= 1:
            raise WrongUse(f"got --top {self.top}; expected a share above 0 and up to 1, such as .5")
        if self.threshold is not None and not 0 <= self.threshold < 1:
            raise WrongUse(f"got --threshold {self.threshold}; expected a score from 0 to below 1, such as .9")
        if not self.as_json():
            names = ", ".join(f"--{name}" for name in asdict(self))
            raise WrongUse(f"got no rule; expected one or more of {names}")

    def as_json(self) -> dict[str, Any]:
        """The rules that there are, by the names of their flags."""
        found = {name: value for name, value in asdict(self).items() if value is not None and value is not False}
        return {name: str(value) if isinstance(value, Path) else value for name, value in found.items()}

    def __str__(self) -> str:
        return ", ".join(name if value is True else f"{name} {value}" for name, value in self.as_json().items())

    @property
    def only_lists(self) -> bool:
        """Whether there are lists of a person and no rule about scores or predictions."""
        return self.as_json().keys() <= {"exclude", "include"}

    def number_at_top(self, total: int) -> int:
        """How many of so many cases are the top."""
        return total if self.top is None else math.ceil(round(self.top * total, 6))

    def __call__(self, rows: Sequence[Row], log: Log = to_stderr) -> Selected:
        """Applies the rules; the result does not depend on the order of the rows.

        Cases of the same score are ranked by name.

        Args:
            rows: of the table.
            log: is told of names in `exclude` that are not in the table, as of images that a person has deleted.

        Raises:
            UserError: a file names cases that are not in the table, or no case stays.
        """
        reasons: dict[str, list[str]] = {row.case: self._faults(row) for row in rows}
        ranked = [row.case for row in sorted(rows, key=lambda row: (-row.score, row.case))]
        if self.top is not None:
            count = self.number_at_top(len(ranked))
            for case in ranked[count:]:
                reasons[case].append(f"not among the {count} best of {len(ranked)} cases")
        self._apply_lists(reasons, log)
        left = [case for case in ranked if not reasons[case]]
        if self.max is not None:
            for case in left[self.max :]:
                reasons[case].append(
                    f"not among the {self.max} best of the {len(left)} cases that pass the other rules"
                )
        return self._selected(reasons)

    def of_cases(self, cases: Iterable[str], log: Log = to_stderr) -> Selected:
        """Applies the lists to cases without scores; see `__call__`."""
        reasons: dict[str, list[str]] = {case: [] for case in cases}
        self._apply_lists(reasons, log)
        return self._selected(reasons)

    def _selected(self, reasons: Mapping[str, list[str]]) -> Selected:
        selected = sorted(case for case, faults in reasons.items() if not faults)
        if not selected:
            raise UserError(f"no case of {len(reasons)} passes the rules ({self}); choose milder ones")
        return Selected(selected, {case: "; ".join(faults) for case, faults in sorted(reasons.items()) if faults})

    def _faults(self, row: Row) -> list[str]:
        """What is wrong with a case by itself."""
        faults = []
        if self.threshold is not None and not row.score > self.threshold:
            faults.append(f"score {row.score:.3f} is not above {self.threshold:g}")
        missing = [name for name, count in row.components.items() if not count]
        if self.complete and missing:
            faults.append(f"without {name_some(missing)}")
        if self.components is not None:
            many = [
                f"{name} in {count} components" for name, count in row.components.items() if count > self.components
            ]
            faults += [name_some(many)] if many else []
        return faults

    def _apply_lists(self, reasons: dict[str, list[str]], log: Log) -> None:
        if self.exclude is not None:
            for case in listed_cases(self.exclude, reasons, log):
                reasons[case].append(f"excluded by {self.exclude}")
        if self.include is not None:
            listed = {*listed_cases(self.include, reasons)}
            for case in reasons.keys() - listed:
                reasons[case].append(f"not in {self.include}")


def listed_cases(path: Path, known: Collection[str], log: Log | None = None) -> list[str]:
    """The known cases that a list names.

    Args:
        path: of the list.
        known: all unlabeled cases, or those that have a score.
        log: is told of other names; where it is None they are refused.

    Raises:
        UserError: the file cannot be read, or names unknown cases, or no others.
    """
    listed = read_list(path)
    found = [case for case in listed if case in known]
    if unknown := [case for case in listed if case not in known]:
        said = f"{path} names {len(unknown)} unknown case(s) ({name_some(unknown)})"
        if log is None or not found:
            raise UserError(
                f"{said}; expected names of unlabeled cases, scored ones where scores count, one a line; correct the "
                "file or score again"
            )
        log(f"note: {said}")
    return found


def read_list(path: Path) -> list[str]:
    """The cases in a text file, one a line; empty lines and those that begin with "# " are passed over.

    Raises:
        UserError: the file cannot be read as text.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read as a list of cases ({cause_of(error)}); expected text, one case a line"
        ) from error
    return [line.strip() for line in lines if line.strip() and not f"{line.strip()} ".startswith("# ")]
