"""Lines that set an environment variable, in the words and the quoting of each shell."""

from __future__ import annotations

import shlex
from collections.abc import Callable


def _powershell(name: str, value: str) -> str:
    return f"$env:{name} = '{value.replace(chr(39), chr(39) * 2)}'"


def _fish(name: str, value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"set -gx {name} '{escaped}'"


# cmd takes the quotes around the whole assignment: those around the value alone become part of it
SHELLS: dict[str, Callable[[str, str], str]] = {
    "bash": lambda name, value: f"export {name}={shlex.quote(value)}",
    "powershell": _powershell,
    "cmd": lambda name, value: f'set "{name}={value}"',
    "fish": _fish,
}


def set_line(name: str, value: str, shell: str = "bash") -> str:
    """The line that sets the variable `name` in one of `SHELLS`; `bash` also serves zsh and sh."""
    return SHELLS[shell](name, value)
