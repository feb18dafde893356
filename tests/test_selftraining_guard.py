"""The guard of child processes: they end when their parent is killed, and it ends as its command does."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from processes import is_alive, wait_for

CHILD = "import os, time\nopen({path!r} + str(os.getpid()), 'w').close()\ntime.sleep(300)"
PARENT = """
import subprocess, sys
from nnunet_semi.selftraining.guard import guarded
sys.exit(subprocess.call(guarded([sys.executable, "-c", {child!r}])))
"""


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks at processes through /proc")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_parent_takes_its_command_and_workers_with_it(tmp_path: Path, number: int) -> None:
    worker = CHILD.format(path=f"{tmp_path}/worker_")
    child = f"import subprocess, sys\nsubprocess.Popen([sys.executable, '-c', {worker!r}])\n"
    child += CHILD.format(path=f"{tmp_path}/child_")
    parent = subprocess.Popen([sys.executable, "-c", PARENT.format(child=child)])
    names = wait_for(lambda: [path.name for path in tmp_path.iterdir()] if len(list(tmp_path.iterdir())) == 2 else [])
    pids = [int(name.rpartition("_")[2]) for name in names]
    assert all(map(is_alive, pids))
    parent.send_signal(number)
    parent.wait()
    wait_for(lambda: not any(map(is_alive, pids)))


@pytest.mark.skipif(sys.platform == "win32", reason="there are no signals")
@pytest.mark.parametrize("code, expected", [("raise SystemExit(7)", 7), ("import os; os.kill(os.getpid(), 9)", -9)])
def test_a_guard_ends_as_its_command_does(code: str, expected: int) -> None:
    from nnunet_semi.selftraining.guard import guarded

    assert subprocess.call(guarded([sys.executable, "-c", code])) == expected
