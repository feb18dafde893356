"""The errors a user can cause: one sentence each, and the exit code that the command line gives them."""

from __future__ import annotations


class UserError(Exception):
    """Work that failed for a reason the user can mend; the message is one sentence that says how."""

    exit_code = 1


class WrongUse(UserError):
    """A command or a setting that cannot mean anything, such as an unknown trainer or a negative width."""

    exit_code = 2


class EnvironmentNotReady(UserError):
    """Something the work needs is not there yet: a folder variable, plans, a preprocessed dataset."""

    exit_code = 3
