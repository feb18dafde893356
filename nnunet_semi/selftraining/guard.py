"""Runs a command that ends with the process that wanted it: `python -m nnunet_semi.selftraining.guard PID COMMAND …`.

A killed process (kill -9, or for want of memory) takes nobody with it, and a training that it started would go on, and
write into the same folder as the one that is started next. The guard and its command are a process group of their own,
so that Ctrl-C reaches the process that wanted them and no one else, and all augmentation workers end with them.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

_LOOK = 0.3  # seconds between two looks at whether the parent is there
_PATIENCE = 8.0  # seconds that a command has to end after it was asked to


def guarded(command: Sequence[str]) -> list[str]:
    """The command line that runs `command` under a guard of this process; where there are no signals, `command`."""
    if os.name == "nt":
        return list(command)
    return [sys.executable, "-m", "nnunet_semi.selftraining.guard", str(os.getpid()), *command]


def main(arguments: Sequence[str]) -> int:
    """Runs a command until it ends or the process `arguments[0]` is gone; gives its exit code."""
    parent, command = int(arguments[0]), arguments[1:]
    os.setsid()
    child = subprocess.Popen(command)

    asked: list[float] = []

    def ask_to_stop(*_: Any) -> None:
        asked.append(time.monotonic())
        child.send_signal(signal.SIGINT)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, ask_to_stop)
    while True:
        try:
            code = child.wait(_LOOK)
        except subprocess.TimeoutExpired:
            if os.getppid() != parent or (asked and time.monotonic() - asked[0] > _PATIENCE):
                os.killpg(0, signal.SIGKILL)
            continue
        return code if code >= 0 else _die_alike(-code)


def _die_alike(number: int) -> int:
    """Ends this process by the signal that ended the command, so that whoever waits for it hears of the signal."""
    if number != signal.SIGKILL:
        signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    return 128 + number


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
