"""Where sentences about what is going on go, unless a caller has a log of its own."""

from __future__ import annotations

import sys
from collections.abc import Callable

Log = Callable[[str], None]


def to_stderr(sentence: str) -> None:
    """Prints a sentence at once."""
    print(sentence, file=sys.stderr, flush=True)


def silent(sentence: str) -> None:
    """A log for those who want to see results and errors only."""


def log_of(quiet: bool) -> Log:
    """The log of a verb that was called with -q, or without."""
    return silent if quiet else to_stderr
