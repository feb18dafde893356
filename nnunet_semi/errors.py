"""The errors a user can cause: one sentence each, and the exit code that the command line gives them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path


class UserError(Exception):
    """Work that failed for a reason the user can mend; the message is one sentence that says how."""

    exit_code = 1


class WrongUse(UserError):
    """A command or a setting that cannot mean anything, such as an unknown trainer or a negative width."""

    exit_code = 2


class EnvironmentNotReady(UserError):
    """Something the work needs is not there yet: a folder variable, plans, a preprocessed dataset."""

    exit_code = 3


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with what the user gave: which file, what is wrong, and what was expected."""

    file: Path
    found: str
    expected: str

    def relative_to(self, folder: Path) -> Problem:
        """The same with a shorter path, where the file lies in the folder."""
        inside = self.file != folder and self.file.is_relative_to(folder)
        return replace(self, file=self.file.relative_to(folder)) if inside else self

    def __str__(self) -> str:
        return f"{self.file}: got {self.found}; expected {self.expected}"


class Unusable(UserError):
    """A file that cannot be used as it is; its one argument is the `Problem`."""

    @property
    def problem(self) -> Problem:
        """What is wrong."""
        return self.args[0]


def cause_of(error: Exception) -> str:
    """Why it failed, for a sentence that names the file: of the system's errors without their number and the path."""
    return getattr(error, "strerror", None) or str(error)
