"""What doctor says: one fact, its status and the remedy."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal, get_args

Status = Literal["ok", "warn", "FAIL"]
_NAME_WIDTH = 24  # of nnUNetTrainerCPSOriginal


@dataclass(frozen=True)
class Fact:
    """One line of the report; `remedy` says what to do, and is empty where all is well."""

    name: str
    status: Status
    text: str
    remedy: str = ""


def as_json(facts: Sequence[Fact]) -> str:
    """The facts for a script: a list of objects with name, status, text and remedy."""
    return json.dumps([asdict(fact) for fact in facts], indent=2)


def as_line(fact: Fact) -> str:
    """One line to read: status, name, what is, and behind an arrow what to do."""
    remedy = f" -> {fact.remedy}" if fact.remedy else ""
    return f"{fact.status:<4}  {fact.name:<{_NAME_WIDTH}}  {fact.text}{remedy}"


def summary(facts: Sequence[Fact]) -> str:
    """How many facts of each status."""
    return ", ".join(f"{sum(fact.status == status for fact in facts)} {status}" for status in get_args(Status))
