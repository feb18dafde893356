"""Tasks in processes: all done, few in flight, deaths told, nobody left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest

from nnunet_semi import pool as workers
from nnunet_semi.pool import Progress, WorkersDied, run_tasks
from processes import is_alive, wait_for


def square(number: int) -> int:
    return number * number


def die_at_three(number: int) -> int:
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def refuse(number: int) -> int:
    raise ZeroDivisionError(f"task {number}")


def sleep_long(folder: str, number: int) -> None:
    Path(folder, str(os.getpid())).touch()
    time.sleep(300)


def build(work: Callable[..., object]) -> Callable[..., object]:
    return work


@pytest.fixture
def spawning(monkeypatch: pytest.MonkeyPatch) -> None:
    """No head start: tasks go to other processes from the first on."""
    monkeypatch.setattr(workers, "HEAD_START", 0.0)


def tasks(count: int) -> list[tuple[int]]:
    return [(number,) for number in range(count)]


def test_one_process_works_here_and_in_order() -> None:
    assert list(run_tasks(partial(build, square), tasks(4), 1)) == [((0,), 0), ((1,), 1), ((2,), 4), ((3,), 9)]


def test_tasks_are_taken_one_by_one() -> None:
    taken = []

    def lazy() -> Iterator[tuple[int]]:
        for number in range(100):
            taken.append(number)
            yield (number,)

    with closing(run_tasks(partial(build, square), lazy(), 1)) as results:
        next(results)
        assert taken == [0]


def test_no_process_is_started_for_what_is_done_in_the_head_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "_in_processes", lambda build, remaining, n: (("left", task) for task in remaining))
    assert dict(run_tasks(partial(build, square), tasks(5), 8)) == {(number,): number**2 for number in range(5)}


def test_processes_do_every_task_once_with_few_in_flight(spawning: None) -> None:
    taken: list[int] = []

    def lazy() -> Iterator[tuple[int]]:
        for number in range(30):
            taken.append(number)
            yield (number,)

    results = {}
    for task, result in run_tasks(partial(build, square), lazy(), 2):
        results[task] = result
        assert len(taken) - len(results) <= 3
    assert results == {(number,): number**2 for number in range(30)}


def test_a_killed_worker_is_told_with_the_tasks_in_flight(spawning: None) -> None:
    with pytest.raises(WorkersDied) as died:
        list(run_tasks(partial(build, die_at_three), tasks(10), 2))
    assert (3,) in died.value.tasks and len(died.value.tasks) <= 3
    assert died.value.exit_codes == [-signal.SIGKILL]


def test_an_exception_of_the_work_reaches_the_caller(spawning: None) -> None:
    with pytest.raises(ZeroDivisionError, match="task"):
        list(run_tasks(partial(build, refuse), tasks(3), 2))


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks processes up in /proc")
def test_workers_die_with_their_parent(tmp_path: Path) -> None:
    code = (
        "from functools import partial; import test_workers as t\n"
        "if __name__ == '__main__':\n"
        "    t.workers.HEAD_START = 0\n"
        f"    list(t.run_tasks(partial(t.build, partial(t.sleep_long, {str(tmp_path)!r})), t.tasks(2), 2))\n"
    )
    script = tmp_path.with_suffix(".py")
    script.write_text(code)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    parent = subprocess.Popen([sys.executable, str(script)], env=environment)
    wait_for(lambda: len(os.listdir(tmp_path)) == 2)
    parent.kill()
    parent.wait()
    wait_for(lambda: not any(is_alive(int(pid)) for pid in os.listdir(tmp_path)), seconds=10)


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks processes up in /proc")
def test_leaving_early_stops_workers_in_the_middle_of_a_task(
    spawning: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        wait_for(lambda: len(os.listdir(tmp_path)) == 2)
        raise KeyboardInterrupt

    monkeypatch.setattr(workers, "wait", interrupted)
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        list(run_tasks(partial(build, partial(sleep_long, str(tmp_path))), tasks(9), 2))
    assert time.monotonic() - started < 120
    assert not any(is_alive(int(pid)) for pid in os.listdir(tmp_path))


def test_progress_without_a_terminal_is_seldom_lines_in_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here a step takes 10 s, the first one 1000 s more, and a line comes every 30 s at most."""
    lines: list[str] = []
    now = iter([0.0, *(1000.0 + 10 * step for step in range(12))])
    monkeypatch.setattr(workers.time, "monotonic", lambda: next(now))
    with Progress(12, "baking", lines.append) as steps:
        for _ in range(12):
            steps.advance()
    assert lines == [
        "baking: 2 of 12, about 2 min left",
        "baking: 5 of 12, about 2 min left",
        "baking: 8 of 12, about 1 min left",
        "baking: 11 of 12, about 1 min left",
    ]


def test_progress_can_be_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    monkeypatch.setattr(Progress, "pause", 0.0)
    with Progress(2, "baking", lines.append, shown=False) as steps:
        steps.advance()
        steps.advance()
    assert lines == []
