"""Carries out the steps of a plan in parallel, into a folder in which an interrupted run can be continued."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from nnunet_semi import __version__
from nnunet_semi.cores import usable_cores
from nnunet_semi.dataset_conversion.plan import Step
from nnunet_semi.errors import Problem, Unusable, UserError
from nnunet_semi.log import Log
from nnunet_semi.pool import Progress, WorkersDied, run_tasks
from nnunet_semi.raw import name_some

MOST_PROCESSES = 8
JOURNAL = "steps_done.txt"


@dataclass
class Report:
    """What was found and done.

    Attributes:
        problems: with the contents of the sources.
        placed: how many files whose bytes stay are a "hard link", a "symbolic link" or a "copy".
    """

    problems: list[Problem] = field(default_factory=list)
    placed: Counter[str] = field(default_factory=Counter)


def default_processes() -> int:
    """One per core, but not so many that disk and memory suffer."""
    return min(usable_cores(), MOST_PROCESSES)


def look(steps: Sequence[Step], num_processes: int | None, log: Log, progress: bool) -> Report:
    """Reads all sources and writes nothing."""
    return _perform(steps, None, False, num_processes, Progress(len(steps), "checking", log, progress))


def perform(
    steps: Sequence[Step],
    folder: Path,
    link: bool,
    num_processes: int | None,
    log: Log,
    progress: bool,
) -> Report:
    """Writes the files of all steps into a folder, those excepted that an earlier run wrote from the same sources.

    Files and folders in it that no step makes are removed.

    Raises:
        UserError: a process was killed.
        OSError: a file cannot be written.
    """
    keys = {step.files[0][1]: _key(step, link) for step in steps}
    done = _done(folder)
    todo = [step for step in steps if keys[step.files[0][1]] not in done or not _is_there(step, folder)]
    if len(todo) < len(steps):
        log(f"going on: {len(steps) - len(todo)} of {len(steps)} cases were done before")
    targets = {target for step in steps for _, target in step.files}
    names = {target.partition("/")[0] for target in targets}
    _remove_others(folder, targets, names)
    for name in names:
        (folder / name).mkdir(exist_ok=True)
    with (folder / JOURNAL).open("a", encoding="ascii") as journal:

        def note(step: Step) -> None:
            journal.write(f"{keys[step.files[0][1]]}\n")
            journal.flush()

        return _perform(todo, folder, link, num_processes, Progress(len(todo), "converting", log, progress), note)


def is_begun(folder: Path) -> bool:
    """Whether a folder holds finished steps."""
    return bool(_done(folder))


def _perform(
    steps: Iterable[Step],
    folder: Path | None,
    link: bool,
    num_processes: int | None,
    bar: Progress,
    note: Callable[[Step], None] = lambda step: None,
) -> Report:
    report = Report()
    workers = max(1, min(num_processes or default_processes(), bar.total))
    try:
        with bar, closing(run_tasks(partial(partial, _do, folder, link), ((s,) for s in steps), workers)) as results:
            for (step,), (problem, placed) in results:
                report.placed.update(placed)
                if problem is None:
                    note(step)
                else:
                    report.problems.append(problem)
                bar.advance()
    except WorkersDied as died:
        codes = ", ".join(map(str, sorted(set(died.exit_codes)))) or "unknown"
        cases = name_some(task[0].files[0][1] for task in died.tasks)
        raise UserError(
            f"a process died (exit code {codes}; -9 means killed, most likely because memory ran out) while it made "
            f"one of {cases}; run the same command with -np {max(1, workers // 2)}, which goes on from there"
        ) from died
    except MemoryError as error:
        raise UserError(
            f"memory ran out with {workers} process(es); free some, or run the same command with -np 1, which goes on "
            "from there"
        ) from error
    return report


def _do(folder: Path | None, link: bool, step: Step) -> tuple[Problem | None, Counter[str]]:
    """One step, in whichever process; only looks at the sources if there is no folder."""
    try:
        outputs = step.work(*step.sources)
    except Unusable as refusal:
        return refusal.problem, Counter()
    except OSError as error:
        where = Path(error.filename or step.sources[0])
        return Problem(where, error.strerror or str(error), "a file that can be read"), Counter()
    placed: Counter[str] = Counter()
    for (source, target), output in zip(step.files, outputs if folder else (), strict=folder is not None):
        assert folder is not None
        path = folder / target
        path.unlink(missing_ok=True)  # what an interrupted run left may be a link to the source
        if output is None:
            placed[_place(source.resolve(), path, link)] += 1
        else:
            output(path)
    return None, placed


def _place(source: Path, target: Path, link: bool) -> str:
    """Puts the bytes of a file to another path in the cheapest way that works; says which."""
    if link:
        for way, make in (("hard link", os.link), ("symbolic link", os.symlink)):
            try:
                make(source, target)
                return way
            except OSError:
                continue
    shutil.copyfile(source, target)
    return "copy"


def _key(step: Step, link: bool) -> str:
    """Identifies a step by everything that its outputs depend on."""
    files = []
    for source, target in step.files:
        state = source.stat()
        files.append((os.fspath(source.resolve()), state.st_size, state.st_mtime_ns, target))
    return hashlib.sha256(repr((__version__, step.work, files, link)).encode()).hexdigest()


def _done(folder: Path) -> set[str]:
    """Keys of the steps that were done in a folder; a line that was cut off is none."""
    try:
        return set((folder / JOURNAL).read_text(encoding="ascii").split("\n")[:-1])
    except FileNotFoundError:
        return set()


def _is_there(step: Step, folder: Path) -> bool:
    return all((folder / target).exists() for _, target in step.files)


def _remove_others(folder: Path, targets: set[str], names: set[str]) -> None:
    """Removes what an earlier run with another plan wrote: files that are no targets, folders that hold none."""
    for path in folder.iterdir():
        if path.is_dir() and path.name not in names:
            shutil.rmtree(path)
    for path in sorted(folder.rglob("*/*")):
        if not path.is_dir() and path.relative_to(folder).as_posix() not in targets:
            path.unlink()
