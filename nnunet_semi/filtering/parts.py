"""Scores as they come in: one JSON line per case in the file of its part, until all cases are there.

TABLE/provenance.json says what makes these scores; TABLE/part_0_of_2.jsonl holds lines such as

    {"provenance": "5d41…", "image": "9b1c…", "row": {"case": "un_001", "score": 0.93, …}}

A line counts where its provenance and the case's image are still the same. So a killed run loses the case it was at, a
further run adds what is new or changed, parts of one split and another join, and what an older model left is ignored.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nnunet_semi.errors import UserError, cause_of
from nnunet_semi.filtering.table import PREDICTIONS, Row, work_folder
from nnunet_semi.fingerprint import fingerprint
from nnunet_semi.locks import locked
from nnunet_semi.raw import load_json
from nnunet_semi.storage import write_json

PROVENANCE = "provenance.json"


class Parts:
    """The scores of one table so far.

    Args:
        table: the CSV that they will be joined to.
        provenance: everything that the scores depend on, beside the images.
    """

    def __init__(self, table: Path, provenance: Mapping[str, Any]) -> None:
        self.table = table
        self.folder = work_folder(table)
        self.provenance = dict(provenance)
        self.fingerprint = fingerprint(self.provenance)

    def check(self) -> None:
        """Looks whether scores of another provenance, or a table that is not from here, are in the way.

        Raises:
            UserError: they are.
        """
        before = self._before()
        if before != self.provenance and (before is not None or self.table.exists()):
            unknown = f"comes without {self.folder / PROVENANCE}, which says what made it"
            reason = unknown if before is None else self._difference(before)
            raise UserError(f"{self.table} {reason}; choose another file with -o, or pass --overwrite to start over")

    def begin(self) -> None:
        """Makes the folder, or turns one with scores of another provenance to this one.

        Raises:
            UserError: nothing can be written there.
        """
        try:
            if self._before() != self.provenance:
                self.folder.mkdir(parents=True, exist_ok=True)
                self.table.unlink(missing_ok=True)  # or it would lie beside predictions of another model
                write_json(self.folder / PROVENANCE, self.provenance)
            (self.folder / PREDICTIONS).mkdir(exist_ok=True)
        except OSError as error:
            raise UserError(
                f"{self.folder} cannot be written ({cause_of(error)}); choose another file with -o"
            ) from error

    def _before(self) -> dict[str, Any] | None:
        return provenance_of(self.table) or None

    def _difference(self, before: Mapping[str, Any]) -> str:
        for key, value in self.provenance.items():
            if before.get(key) != value:
                if key == "checkpoints":
                    changed = [file for file in value if before.get(key, {}).get(file) != value[file]]
                    return f"was made with other checkpoints ({', '.join(changed)} changed since)"
                return f"was made with {key} {before.get(key)!r}, and not {value!r}"
        return "was made with other settings"

    @contextmanager
    def writing(self, part_id: int, num_parts: int) -> Iterator[Path]:
        """Gives the file of a part, which no other process writes to meanwhile.

        Raises:
            UserError: another process does.
        """
        path = self.folder / f"part_{part_id}_of_{num_parts}.jsonl"
        with locked(self.folder / f".{path.stem}.lock") as mine:
            if not mine:
                raise UserError(
                    f"another process is working on {path}; wait for it, or split the work with -num_parts and -part_id"
                )
            yield path

    def append(self, path: Path, row: Row, image: str) -> None:
        """Notes a case at once, as a line of the file of a part."""
        record = {"provenance": self.fingerprint, "image": image, "row": row.as_json()}
        torn = path.is_file() and not path.read_bytes().endswith(b"\n")
        with path.open("a", encoding="utf-8") as file:
            file.write("\n" * torn + json.dumps(record) + "\n")

    def rows(self, images: Mapping[str, str]) -> dict[str, Row]:
        """Case → row, of the cases that need not be scored again.

        Args:
            images: case → a hash of its image, of all cases that there are.
        """
        found = {}
        for path in sorted(self.folder.glob("part_*.jsonl")):
            with path.open(encoding="utf-8", errors="replace") as lines:
                for line in lines:
                    row = self._row(line, images)
                    if row is not None:
                        found[row.case] = row
        return found

    def _row(self, line: str, images: Mapping[str, str]) -> Row | None:
        try:
            record = json.loads(line)
            if record["provenance"] != self.fingerprint:
                return None
            row = Row.from_json(record["row"])
        except (ValueError, KeyError, TypeError):
            return None  # torn by a killed run: its case is scored again
        return row if images.get(row.case) == record.get("image") else None


def provenance_of(table: Path) -> dict[str, Any]:
    """What a table was made with; empty where that is not known, because its folder did not come along."""
    path = work_folder(table) / PROVENANCE
    return load_json(path) if path.is_file() else {}
