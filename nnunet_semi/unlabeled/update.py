"""Brings the preprocessed unlabeled cases of one data identifier up to date, by one process at a time."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from functools import partial
from pathlib import Path

from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

from nnunet_semi.errors import UserError, cause_of
from nnunet_semi.locks import knows_no_locks
from nnunet_semi.log import Log
from nnunet_semi.pool import Progress, Task, WorkersDied, number_of_processes, run_tasks
from nnunet_semi.raw import name_some
from nnunet_semi.unlabeled.case import CasePreprocessor, Recipe
from nnunet_semi.unlabeled.index import Source, UnlabeledCase, UnlabeledIndex, describe_sources

RawCases = Mapping[str, list[str]]  # case id → its files
Sources = Mapping[str, tuple[Source, ...]]


def update(
    recipe: Recipe,
    cases: RawCases,
    *,
    num_processes: int | None,
    skip_bad: bool | None,
    retry_bad: bool,
    log: Log,
    progress: bool = True,
    remove_gone: bool = True,
) -> tuple[UnlabeledIndex, Counter[str]]:
    """Preprocesses what is new or changed, and removes what has no raw files any more.

    Where nothing is to be done, nothing is written, so that the folder may be read-only. A case whose raw files are
    named but cannot be looked at, as links into an archive that is not mounted, stays as it was made.

    Args:
        recipe: how and where to.
        cases: all unlabeled cases of the raw dataset.
        num_processes: None stands for nnU-Net's default, at most one per core.
        skip_bad: the user's choice about bad cases; None keeps the one made before.
        retry_bad: whether a case that was bad is tried again though its files are the same.
        log: takes sentences about what is going on.
        progress: whether to show it.
        remove_gone: False leaves cases alone that have no raw files; a machine may hold a part of them only.

    Returns:
        The index, and how many cases were found `good`, found `bad` and `removed` in this run.

    Raises:
        UserError: the machine is not as needed: no space, no permission, not enough memory.
    """
    workers = number_of_processes(num_processes)
    index = UnlabeledIndex.load(recipe.index_path)
    sources = describe(cases)
    chosen = skip_bad in (None, index.skip_bad)
    if unseen := [case for case, files in sources.items() if _is_out_of_reach(index.cases.get(case), files)]:
        log(f"{len(unseen)} unlabeled cases stay as they are, since their images are out of reach: {name_some(unseen)}")
    gone = index.cases.keys() - cases.keys() if remove_gone else set()
    if chosen and not gone and not outstanding(index, recipe, sources, retry_bad):
        return index, Counter()
    try:
        with exclusive(recipe, log):
            index = UnlabeledIndex.load(recipe.index_path)  # another run may have done it all meanwhile
            choice = index.skip_bad if skip_bad is None else skip_bad
            index.note(choice)
            try:
                gone &= index.cases.keys()
                counts = _work(index, recipe, cases, sources, gone, workers, retry_bad, log, progress)
            except BaseException as error:
                with suppress(OSError):
                    index.note(choice, failure=str(error) or type(error).__name__)
                raise
            index.compact()
    except OSError as error:
        raise UserError(
            f"{error.filename or recipe.folder}: {cause_of(error)}; make sure that there is free space and "
            f"that you may write into {recipe.dataset_folder}, then run again"
        ) from error
    return index, counts


def watch(recipe: Recipe, cases: RawCases, patience: float = 120.0, interval: float = 1.0) -> UnlabeledIndex:
    """Waits until another process has brought the cases up to date; gives the index.

    Args:
        recipe: how and where to.
        cases: all unlabeled cases of the raw dataset.
        patience: seconds during which nobody works, after which this gives up.
        interval: seconds between two looks.

    Raises:
        UserError: nobody has been working for `patience` seconds, and cases are missing.
    """
    sources = describe(cases)
    idle = 0.0
    while True:
        index = UnlabeledIndex.load(recipe.index_path)
        missing = outstanding(index, recipe, sources, retry_bad=False)
        if not missing:
            return index
        idle = 0.0 if _is_held(recipe) else idle + interval
        if idle > patience:
            reason = f" ({index.failure})" if index.failure else ""
            raise UserError(
                f"rank 0 stopped before {len(missing)} unlabeled cases were preprocessed{reason}; run "
                f"`{recipe.command}` before the training"
            )
        time.sleep(interval)


def describe(cases: RawCases) -> Sources:
    """The state of the files of every case; of .tif images also of CASE.json, from which nnU-Net reads the spacing."""
    described = {}
    for case, files in cases.items():
        folder, name = os.path.split(files[0])
        beside = [os.path.join(folder, f"{case}.json")] if name.endswith((".tif", ".tiff")) else []
        described[case] = describe_sources(files + beside)
    return described


def outstanding(index: UnlabeledIndex, recipe: Recipe, sources: Sources, retry_bad: bool) -> dict[str, str]:
    """The cases that must be preprocessed, each with the reason in a word or two."""
    lost = set(index.missing_files())
    reasons = {}
    for case, files in sources.items():
        known = index.cases.get(case)
        if known is None:
            reasons[case] = "new"
        elif known.sources != files and not _is_out_of_reach(known, files):
            reasons[case] = "changed"
        elif known.settings != recipe.settings:
            reasons[case] = "made with other plans"
        elif case in lost:
            reasons[case] = "lost"
        elif retry_bad and known.error is not None:
            reasons[case] = "bad before"
    return reasons


def _is_out_of_reach(known: UnlabeledCase | None, files: Sequence[Source]) -> bool:
    """Whether a good case's raw files are there by name only, so that nothing says that it has changed."""
    return known is not None and known.error is None and any(size < 0 for _, size, _ in files)


def _work(
    index: UnlabeledIndex,
    recipe: Recipe,
    cases: RawCases,
    sources: Sources,
    gone: Collection[str],
    workers: int,
    retry_bad: bool,
    log: Log,
    progress: bool,
) -> Counter[str]:
    recipe.folder.mkdir(parents=True, exist_ok=True)
    for folder in recipe.dataset_folder.iterdir():
        if folder.name.startswith(_scratch_prefix(recipe)):  # left by a run that was killed
            shutil.rmtree(folder, ignore_errors=True)
    for case in gone:
        index.remove(case)
    todo = outstanding(index, recipe, sources, retry_bad)
    counts = Counter({"removed": len(gone)})
    if not todo:
        return counts
    workers = min(workers, len(todo))
    why = ", ".join(f"{count} {reason}" for reason, count in Counter(todo.values()).items())
    name = f"preprocessing for {recipe.data_identifier}"
    log(f"{name}: {len(todo)} of {len(cases)} unlabeled cases ({why})")
    with _scratch(recipe) as scratch, Progress(len(todo), name, log, progress) as steps:
        tasks = ((case, cases[case]) for case in todo)
        for (case, _), (shape, error) in _preprocess(recipe, scratch, tasks, workers):
            if error is not None:
                index.remove(case)  # what an earlier state of its files gave
                steps.say(f"bad: {case}: {error}")
            index.add(UnlabeledCase(case, sources[case], recipe.settings, shape, error))
            counts["good" if error is None else "bad"] += 1
            steps.advance()
    return counts


def _preprocess(
    recipe: Recipe, scratch: Path, tasks: Iterator[Task], workers: int
) -> Iterator[tuple[Task, tuple[tuple[int, ...] | None, str | None]]]:
    try:
        with closing(run_tasks(partial(CasePreprocessor, recipe, scratch), tasks, workers)) as results:
            yield from results
    except WorkersDied as died:
        codes = ", ".join(map(str, sorted(set(died.exit_codes)))) or "unknown"
        raise UserError(
            f"a worker process died (exit code {codes}; -9 means killed, most likely because memory ran out) while it "
            f"preprocessed one of {name_some(task[0] for task in died.tasks)}; run `{recipe.command} -np "
            f"{max(1, workers // 2)}`, which goes on from there"
        ) from died
    except MemoryError as error:
        raise UserError(
            f"memory ran out with {workers} process(es); free some, or run `{recipe.command} -np 1`, which goes "
            "on from there"
        ) from error


def _scratch_prefix(recipe: Recipe) -> str:
    return f".{recipe.folder.name}_tmp_"


@contextmanager
def _scratch(recipe: Recipe) -> Iterator[Path]:
    """A folder for cases that are not complete yet, on the file system on which they will be."""
    folder = Path(tempfile.mkdtemp(prefix=_scratch_prefix(recipe), dir=recipe.dataset_folder))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def exclusive(recipe: Recipe, log: Log, interval: float = 1.0) -> Iterator[None]:
    """Keeps two runs, such as the trainings of two folds, from preprocessing the same cases; the second one waits.

    The lock is the operating system's where the file system has locks, so that a killed run holds none.
    """
    lock: BaseFileLock = FileLock(_lock_path(recipe))
    told = False
    while not lock.is_locked:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            if not told:
                left = "; if there is none, as after a machine went down, delete that file"
                hint = left if isinstance(lock, SoftFileLock) else ""  # the other kind ends with its process
                log(
                    "another process is preprocessing the same unlabeled cases; waiting for it "
                    f"({lock.lock_file}{hint})"
                )
            told = True
            time.sleep(interval)
        except (NotImplementedError, OSError) as error:
            if isinstance(lock, SoftFileLock) or not knows_no_locks(error):
                raise
            lock = SoftFileLock(_marker_path(recipe))
    try:
        yield
    finally:
        lock.release()


def _lock_path(recipe: Recipe) -> str:
    return str(recipe.folder.with_name(f"{recipe.folder.name}.lock"))


def _marker_path(recipe: Recipe) -> str:
    """Of the file that stands for the lock where the file system has none."""
    return f"{_lock_path(recipe)}ed"


def _is_held(recipe: Recipe) -> bool:
    try:
        with FileLock(_lock_path(recipe), timeout=0):
            return False
    except Timeout:
        return True
    except (NotImplementedError, OSError):
        return Path(_marker_path(recipe)).exists()
