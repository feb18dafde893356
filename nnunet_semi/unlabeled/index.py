"""What was preprocessed from which files: one JSON line per case, beside the folder of preprocessed unlabeled cases.

    {"skip_bad": true, "failure": null}
    {"case": "un_001", "sources": [["un_001_0000.nii.gz", 81234, 1700000000000000000]], "settings": "0f3c…",
     "shape": [20, 256, 256], "error": null}

Lines are only ever appended while cases are preprocessed, so a killed run loses nothing but its last, torn line; of
several lines about a case the last one counts. Ten thousand cases load in a fraction of a second.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from nnunet_semi.storage import atomic_path

Source = tuple[str, int, int]  # file name, size in bytes, time of the last change in nanoseconds
FILES_OF_A_CASE = (".pkl", "_seg.b2nd", ".b2nd")  # in the order in which they are put in place


def describe_sources(files: Iterable[str]) -> tuple[Source, ...]:
    """Name, size and time of change of each file; -1 for both where a file cannot be looked at, as a dead link."""
    sources = []
    for file in files:
        try:
            status = os.stat(file)
            sources.append((os.path.basename(file), status.st_size, status.st_mtime_ns))
        except OSError:
            sources.append((os.path.basename(file), -1, -1))
    return tuple(sources)


class UnlabeledCase(NamedTuple):
    """What the index knows of a case.

    Attributes:
        case: its id, the name of its preprocessed files.
        sources: the raw files it was made from, as they were then.
        settings: a hash of everything in the plans that preprocessing depends on.
        shape: spatial shape after preprocessing; None for a bad case.
        error: why it is bad, in a sentence; None for a good case.
    """

    case: str
    sources: tuple[Source, ...]
    settings: str
    shape: tuple[int, ...] | None
    error: str | None


class UnlabeledIndex:
    """The unlabeled cases of one data identifier.

    Attributes:
        path: the .jsonl file; it need not exist.
        folder: the preprocessed cases, to be given to nnUNetDatasetBlosc2 together with `good`.
        cases: case id → what is known of it.
        skip_bad: whether the user chose to train without the bad cases.
        failure: why the last run stopped before its end; None where it did not.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.folder = self.path.with_suffix("")
        self.cases: dict[str, UnlabeledCase] = {}
        self.skip_bad = False
        self.failure: str | None = None
        self._noted = False  # the file holds a line about the choice and the failure
        self._torn = False  # the last line has no end: a run was killed while it wrote
        self._outdated = False  # the file holds lines that no longer count

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> UnlabeledIndex:
        """The index at `path`; an empty one where there is none. Lines that cannot be read are passed over."""
        index = cls(path)
        if index.path.is_file():
            with open(path, encoding="utf-8", errors="replace") as lines:
                for line in lines:
                    index._read(line)
                    index._torn = not line.endswith("\n")
        return index

    def _read(self, line: str) -> None:
        try:
            record = json.loads(line)
            if "case" in record:
                shape = None if record["shape"] is None else tuple(record["shape"])
                sources = tuple((name, size, time) for name, size, time in record["sources"])
                case = UnlabeledCase(record["case"], sources, record["settings"], shape, record["error"])
                self._outdated |= case.case in self.cases
                if os.path.basename(case.case) == case.case:  # a name, never a path to elsewhere
                    self.cases[case.case] = case
            else:
                self._outdated |= self._noted
                self._noted = True
                self.skip_bad, self.failure = bool(record["skip_bad"]), record["failure"]
        except (ValueError, TypeError, KeyError):
            self._outdated = True  # torn by a killed run: its case is preprocessed again

    @property
    def good(self) -> list[str]:
        """The ids of the cases that training can use, sorted."""
        return sorted(case.case for case in self.cases.values() if case.error is None)

    @property
    def bad(self) -> dict[str, str]:
        """Case id → reason of the cases that training cannot use, sorted."""
        return {name: case.error for name, case in sorted(self.cases.items()) if case.error is not None}

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Case id → spatial shape after preprocessing, of the good cases."""
        return {name: case.shape for name, case in sorted(self.cases.items()) if case.shape is not None}

    def missing_files(self) -> list[str]:
        """The good cases of which a preprocessed file is gone, found by listing the folder once."""
        try:
            names = set(os.listdir(self.folder))
        except FileNotFoundError:
            names = set()
        return [case for case in self.good if any(case + ending not in names for ending in FILES_OF_A_CASE)]

    def add(self, case: UnlabeledCase) -> None:
        """Notes a case at once, in memory and as a line of the file."""
        self._outdated |= case.case in self.cases
        self.cases[case.case] = case
        self._append(case._asdict())

    def note(self, skip_bad: bool, failure: str | None = None) -> None:
        """Notes the user's choice about bad cases and why a run stopped, unless both are known already."""
        if self._noted and (skip_bad, failure) == (self.skip_bad, self.failure):
            return
        self._outdated |= self._noted
        self._noted = True
        self.skip_bad, self.failure = skip_bad, failure
        self._append(self._choices())

    def remove(self, case: str) -> None:
        """Takes a case out and removes its preprocessed files; `compact` takes it out of the file."""
        self._outdated |= self.cases.pop(case, None) is not None
        for ending in reversed(FILES_OF_A_CASE):
            (self.folder / (case + ending)).unlink(missing_ok=True)

    def keep_only(self, cases: Iterable[str]) -> None:
        """Forgets all other cases, in memory only."""
        self.cases = {case: self.cases[case] for case in cases if case in self.cases}

    def compact(self) -> None:
        """Writes the file anew, without the lines that no longer count; does nothing where there are none."""
        if not self._outdated:
            return
        with atomic_path(self.path) as temporary, open(temporary, "w", encoding="utf-8") as file:
            file.write(_line(self._choices()))
            file.writelines(_line(case._asdict()) for _, case in sorted(self.cases.items()))
        self._noted, self._torn, self._outdated = True, False, False

    def _choices(self) -> dict[str, Any]:
        return {"skip_bad": self.skip_bad, "failure": self.failure}

    def _append(self, record: Mapping[str, Any]) -> None:
        with open(self.path, "a", encoding="utf-8") as file:
            file.write("\n" * self._torn + _line(record))
        self._torn = False


def _line(record: Mapping[str, Any]) -> str:
    return json.dumps(record) + "\n"
