"""The same work for many cases, in this process and, where it takes long, in spawned ones beside it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from tqdm import tqdm

from nnunet_semi.errors import UserError, WrongUse

Task = TypeVar("Task")
Result = TypeVar("Result")

HEAD_START = 3.0  # seconds; starting processes takes about as long


def number_of_processes(asked_for: int | None) -> int:
    """The processes asked for, or nnU-Net's default (nnUNet_def_n_proc or 8), at most one per core."""
    if asked_for is not None:
        if asked_for < 1:
            raise WrongUse(f"got {asked_for} processes; expected 1 or more")
        return asked_for
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, int(os.environ.get("nnUNet_def_n_proc", 8))))


def for_each(
    work: Callable[[Task], Result], tasks: Sequence[Task], num_processes: int | None, name: str, progress: bool = True
) -> Iterator[tuple[Task, Result]]:
    """Gives every task with what `work` makes of it, as they get ready, with a bar on a terminal.

    Args:
        work: a function of a module, so that it can be sent to another process, as must tasks and results.
        tasks: small, for all are handed over at once.
        num_processes: see `number_of_processes`; 1 works in this process only.

    Raises:
        UserError: a worker process was killed.
        Exception: whatever the work raises.
    """
    workers = min(number_of_processes(num_processes), len(tasks))
    remaining = list(tasks)[::-1]
    started = time.monotonic()
    with tqdm(total=len(remaining), desc=name, disable=None if progress else True) as bar:
        while remaining and (workers == 1 or time.monotonic() - started < HEAD_START):
            task = remaining.pop()
            yield task, work(task)
            bar.update()
        if remaining:
            for result in _in_processes(work, remaining[::-1], workers):
                yield result
                bar.update()


def _in_processes(work: Callable[[Task], Result], tasks: Sequence[Task], workers: int) -> Iterator[tuple[Task, Result]]:
    executor = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _ignore_interrupt)
    try:
        futures = {executor.submit(work, task): task for task in tasks}
        for future in as_completed(futures):
            yield futures.pop(future), future.result()
    except BrokenProcessPool:
        raise UserError(
            "a worker process was killed, most likely because memory ran out; use fewer processes with -np"
        ) from None
    finally:
        executor.shutdown(cancel_futures=True)


def _ignore_interrupt() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then stops its workers
