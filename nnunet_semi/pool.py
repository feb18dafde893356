"""Many tasks, in this process and a few spawned ones: bounded memory, signs of progress, no process left behind."""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, suppress
from functools import partial
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from tqdm import tqdm

from nnunet_semi.cores import usable_cores
from nnunet_semi.errors import UserError, WrongUse

Task = tuple[Any, ...]
Work = Callable[..., Any]
Results = Generator[tuple[Task, Any], None, None]
Item = TypeVar("Item")
Result = TypeVar("Result")

HEAD_START = 5.0  # seconds; a new process needs between 3 and 10 to import what it works with

_work: Work  # in a worker process: what it does with a task


class WorkersDied(Exception):
    """A worker process ended without an exception, most likely killed.

    Attributes:
        tasks: those in flight, one of which may be the cause.
        exit_codes: of the workers that died, -9 for one that was killed.
    """

    def __init__(self, tasks: list[Task], exit_codes: list[int]) -> None:
        super().__init__(tasks, exit_codes)
        self.tasks = tasks
        self.exit_codes = exit_codes


def number_of_processes(asked_for: int | None) -> int:
    """The processes asked for, or nnU-Net's default (nnUNet_def_n_proc or 8), at most one per core."""
    if asked_for is not None:
        if asked_for < 1:
            raise WrongUse(f"got {asked_for} processes; expected 1 or more")
        return asked_for
    return max(1, min(usable_cores(), int(os.environ.get("nnUNet_def_n_proc", 8))))


def for_each(
    work: Callable[[Item], Result], tasks: Sequence[Item], num_processes: int | None, name: str, progress: bool = True
) -> Iterator[tuple[Item, Result]]:
    """Gives every task with what `work` makes of it, as they get ready, with a bar on a terminal.

    Args:
        work: a function of a module, so that it can be sent to another process, as must tasks and results.
        tasks: what it is called with.
        num_processes: see `number_of_processes`; 1 works in this process only.
        name: what is being done.
        progress: show a bar on a terminal.

    Raises:
        UserError: a worker process was killed.
        Exception: whatever the work raises.
    """
    workers = max(1, min(number_of_processes(num_processes), len(tasks)))
    bar = tqdm(total=len(tasks), desc=name, disable=None if progress else True)
    try:
        with bar, closing(run_tasks(partial(partial, work), ((task,) for task in tasks), workers)) as results:
            for (task,), result in results:
                yield task, result
                bar.update()
    except WorkersDied:
        raise UserError(
            "a worker process was killed, most likely because memory ran out; use fewer processes with -np"
        ) from None


def run_tasks(build: Callable[[], Work], tasks: Iterable[Task], num_processes: int) -> Results:
    """Gives every task with what `build()(*task)` returned, as they get ready.

    A new process needs seconds to import what it works with. So this process begins alone, and takes help for
    what is left after HEAD_START seconds; then at most num_processes + 1 tasks are in flight.

    Args:
        build: makes the work, once in each process; must be picklable.
        tasks: may be lazy.
        num_processes: 1 works in this process only.

    Raises:
        WorkersDied: a worker was killed.
        Exception: whatever the work raised.
    """
    work = build()
    started = time.monotonic()
    remaining = iter(tasks)
    while num_processes == 1 or time.monotonic() - started < HEAD_START:
        task = next(remaining, None)
        if task is None:
            return
        yield task, work(*task)
    yield from _in_processes(build, remaining, num_processes)


def _in_processes(build: Callable[[], Work], tasks: Iterator[Task], num_processes: int) -> Results:
    context = multiprocessing.get_context("spawn")
    lifeline, held_by_us = context.Pipe(duplex=False)
    threads = max(1, usable_cores() // num_processes)
    executor = ProcessPoolExecutor(num_processes, context, _start_worker, (lifeline, build, threads))
    try:
        yield from _bounded(executor, tasks, num_processes + 1)
    except BaseException:
        held_by_us.close()  # stops the workers in the middle of what they do
        raise
    finally:
        executor.shutdown(cancel_futures=True)
        held_by_us.close()
        lifeline.close()


def _bounded(executor: ProcessPoolExecutor, tasks: Iterable[Task], most: int) -> Iterator[tuple[Task, Any]]:
    before = set(multiprocessing.active_children())
    workers: set[Any] = set()
    in_flight: dict[Future, Task] = {}
    try:
        for task in tasks:
            in_flight[executor.submit(_run_task, task)] = task
            workers |= set(multiprocessing.active_children()) - before
            if len(in_flight) >= most:
                yield from _finished(in_flight)
        while in_flight:
            yield from _finished(in_flight)
    except BrokenProcessPool:
        executor.shutdown()
        own_end = (0, None, -signal.SIGTERM)  # the executor terminates those that are left
        codes = [worker.exitcode for worker in workers if worker.exitcode not in own_end]
        raise WorkersDied(list(in_flight.values()), codes) from None


def _finished(in_flight: dict[Future, Task]) -> Iterator[tuple[Task, Any]]:
    for future in wait(in_flight, return_when=FIRST_COMPLETED).done:
        result = future.result()  # before the task leaves, so that it is named if this raises
        yield in_flight.pop(future), result


def _start_worker(lifeline: Connection, build: Callable[[], Work], threads: int) -> None:
    """Prepares a worker that ignores Ctrl-C, which is for its parent to handle, and never outlives it."""
    global _work
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_die_with_parent, args=(lifeline,), daemon=True).start()
    _work = build()
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads)


def _die_with_parent(lifeline: Connection) -> None:
    with suppress(EOFError, OSError):
        lifeline.recv()  # nothing is ever sent: it ends when the parent closes its end, or is gone
    os._exit(1)


def _run_task(task: Task) -> Any:
    return _work(*task)


class Progress:
    """A bar on a terminal; elsewhere a line with the time left, at most every `pause` seconds.

    Args:
        total: number of steps.
        name: what is being done.
        log: takes the lines.
        shown: False shows neither.
    """

    pause = 30.0

    def __init__(self, total: int, name: str, log: Callable[[str], None], shown: bool = True) -> None:
        self.total, self.name, self.log = total, name, log
        self.done = 0
        self.first = 0.0  # when the first step was done: until then, processes start
        self.told = time.monotonic()
        on_terminal = sys.stderr is not None and sys.stderr.isatty()
        self.as_lines = shown and not on_terminal
        self.bar = tqdm(total=total, desc=name, disable=not (shown and on_terminal))

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def advance(self) -> None:
        """One step is done."""
        self.done += 1
        self.bar.update()
        now = time.monotonic()
        if self.done == 1:
            self.first = now
        elif self.as_lines and now - self.told >= self.pause:
            self.told = now
            minutes = (now - self.first) / (self.done - 1) * (self.total - self.done) / 60
            self.log(f"{self.name}: {self.done} of {self.total}, about {math.ceil(minutes)} min left")

    def say(self, sentence: str) -> None:
        """A sentence for the log that does not run into the bar."""
        with tqdm.external_write_mode():
            self.log(sentence)
