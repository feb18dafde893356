"""Commands of nnU-Net and of this project as child processes, their output in log files."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from nnunet_semi.errors import EnvironmentNotReady, UserError
from nnunet_semi.raw import FOLDERS

_ERROR = re.compile(r"^(\w+\.)*\w*(Error|Exception|Interrupt)\b|^nnunet_semi \w+: |\berror: ")
_POLL = 0.2  # seconds


def environment(folder: Path) -> dict[str, str]:
    """The variables of the children: nnU-Net's three folders inside `folder`, and few processes, which start slowly."""
    from nnunet_semi.discovery import VARIABLE, extended_search_path

    variables = {
        **os.environ,
        **{name: str(folder / name) for name in FOLDERS},
        VARIABLE: extended_search_path(),  # also where the start-up line is switched off
        "nnUNet_compile": "f",  # compiling would take longer than the training
        "nnUNet_def_n_proc": "1",  # each would import torch to export four images
        "PYTHONUNBUFFERED": "1",
    }
    variables.pop("nnUNet_n_proc_DA", None)  # 0 makes planning fail; the trainers choose by the cores
    return variables


def run_command(
    command: Sequence[str],
    variables: Mapping[str, str],
    log: Path,
    watch: Callable[[str], None] = lambda text: None,
    folder: Path | None = None,
    guard: Callable[[Sequence[str]], list[str]] = list,
) -> None:
    """Runs a console script with its output appended to a file.

    Args:
        command: name and arguments.
        variables: its whole environment.
        log: the file.
        watch: is called some times a second with the output since the last call, which may be empty.
        folder: in which it works; that of this process if not given.
        guard: turns the command into what is started in its place.

    Raises:
        EnvironmentNotReady: there is no such command.
        UserError: it failed; the sentence names the log file and the last line in it that speaks of an error.
    """
    executable = find_command(command[0])
    with log.open("ab") as output:
        output.write(f"$ {shlex.join(command)}\n".encode())
        output.flush()
        start = output.tell()
        child = subprocess.Popen(
            guard([executable, *command[1:]]),
            env=dict(variables),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=folder,
        )
    try:
        _follow(child, log, start, watch)
    finally:
        _stop(child)
    if child.returncode:
        raise UserError(_failure(command[0], child.returncode, log, start))


def find_command(name: str) -> str:
    """The console script of this Python environment, or else the one on the search path.

    Raises:
        EnvironmentNotReady: there is none.
    """
    folders = [str(Path(sys.executable).parent), sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath)]
    found = shutil.which(name, path=os.pathsep.join(folders))
    if found is None:
        raise EnvironmentNotReady(
            f"the command {name} is neither beside {sys.executable} nor on the PATH; install nnunetv2 and nnunet_semi "
            "with pip into this environment"
        )
    return found


def _follow(child: subprocess.Popen, log: Path, start: int, watch: Callable[[str], None]) -> None:
    """Reads the log instead of a pipe, which orphaned workers of a dead child could hold open for ever."""
    with log.open("rb") as reader:
        reader.seek(start)
        running = True
        while running:
            running = child.poll() is None
            watch(reader.read().decode(errors="replace"))
            if running:
                time.sleep(_POLL)


def _stop(child: subprocess.Popen) -> None:
    """Ends a child that still runs, because of Ctrl-C for instance: asks first, so that it ends its workers."""
    if child.poll() is not None:
        return
    for ask, seconds in ((lambda: None, 3.0), (lambda: child.send_signal(_gentle()), 10.0), (child.kill, None)):
        ask()
        try:
            child.wait(seconds)
            return
        except subprocess.TimeoutExpired:
            continue


def _gentle() -> int:
    return signal.SIGTERM if os.name == "nt" else signal.SIGINT


def _failure(name: str, code: int, log: Path, start: int) -> str:
    text = log.read_bytes()[start:].decode(errors="replace")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if _ERROR.search(line)]
    said = (errors or lines or ["nothing"])[-1]
    said = said if len(said) <= 300 else f"{said[:300]} …"
    how = f"was killed by signal {-code}" if code < 0 else f"failed with exit code {code}"
    hint = " (most likely for want of memory)" if code == -9 else ""
    return f"{name} {how}{hint} and said: {said.rstrip('.')}; its whole output is in {log}"
