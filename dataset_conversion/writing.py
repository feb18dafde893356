"""Turns a plan into a dataset in nnUNet_raw that is there whole or not at all."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock, Timeout

from nnunet_semi import raw
from nnunet_semi.dataset_conversion.integrity import IntegrityProblem, verify
from nnunet_semi.dataset_conversion.performing import JOURNAL, default_processes, is_begun, look, perform
from nnunet_semi.dataset_conversion.plan import LABELED, TEST, UNLABELED, Plan, SourceProblems
from nnunet_semi.dataset_conversion.target import GROWING, choose_target, refuse_overlap
from nnunet_semi.errors import UserError, WrongUse
from nnunet_semi.log import Log, to_stderr
from nnunet_semi.storage import write_json

LOCK = "in_use.lock"


@dataclass(frozen=True)
class Writing:
    """How a dataset is written.

    Attributes:
        link: make hard or symbolic links instead of copies where no byte changes.
        overwrite: replace a dataset of the same name.
        dry_run: write nothing, and list what would be written; the contents of images are not looked at.
        verify: let nnU-Net check the result with its own integrity check.
        num_processes: None stands for one per core, at most 8.
        progress: whether to show it, as a bar on stderr or as lines in the log.
        log: takes sentences about what is going on.
    """

    link: bool = False
    overwrite: bool = False
    dry_run: bool = False
    verify: bool = True
    num_processes: int | None = None
    progress: bool = True
    log: Log = to_stderr


DEFAULT = Writing()


@dataclass(frozen=True)
class Conversion:
    """What became of a source.

    Attributes:
        folder: the dataset.
        counts: cases that are labeled, unlabeled and for testing.
        files: pairs of a source and a file in the dataset, in a dry run only.
        notes: sentences that the user should read.
    """

    folder: Path
    counts: dict[str, int]
    files: list[tuple[Path, Path]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        counts = ", ".join(f"{count} {what}" for what, count in self.counts.items())
        would = " would hold" if self.files else ":"
        lines = [f"{source} → {target}" for source, target in self.files]
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes), f"{self.folder}{would} {counts} cases"])


def write_dataset(plan: Plan, dataset_id: int | None, name: str, writing: Writing) -> Conversion:
    """Writes a planned dataset into nnUNet_raw under the name Dataset<id>_<name>.

    The files go to a hidden folder beside it, which gets its name at the very end. A run that was interrupted is
    continued by the next one with the same arguments. Where the source has problems, nothing is left behind.

    Args:
        plan: of any converter.
        dataset_id: None stands for that of a dataset with this name, or else the first free one.
        name: the part of the folder's name after the id.
        writing: how.

    Raises:
        WrongUse: the id or name cannot be used, or such a dataset exists already.
        SourceProblems: all that is wrong with the source.
        UserError: the dataset cannot be written, or nnU-Net's integrity check refuses it.
    """
    target = choose_target(dataset_id, name, writing.overwrite)
    if writing.num_processes is not None and writing.num_processes < 1:
        raise WrongUse(f"got {writing.num_processes} processes; expected at least 1")
    refuse_overlap(target, (source for step in plan.steps for source in step.sources))
    if plan.problems:
        raise _all_problems(plan, writing)
    counts = {"labeled": plan.count(LABELED), "unlabeled": plan.count(UNLABELED), "test": plan.count(TEST)}
    if writing.dry_run:
        files = [(source, target / path) for step in plan.steps for source, path in step.files]
        return Conversion(target, counts, files, plan.notes)
    with _workshop(target, writing.log) as folder:
        report = perform(
            plan.steps, folder, writing.link, writing.num_processes, writing.log, progress=writing.progress
        )
        if report.problems:
            raise SourceProblems(plan.source, report.problems)
        write_json(folder / "dataset.json", plan.dataset_json)
        (folder / "splits_final.json").unlink(missing_ok=True)  # of an interrupted run of another plan
        if plan.splits:
            write_json(folder / "splits_final.json", plan.splits)
        notes = [*plan.notes, *_placing_notes(report.placed, writing.link), *_stale_notes(target)]
        if writing.verify and counts["labeled"]:
            writing.log("nnU-Net checks the integrity of the dataset")
            notes += verify(folder, writing.num_processes or default_processes())
    _publish(folder, target)
    return Conversion(target, counts, notes=notes)


def _all_problems(plan: Plan, writing: Writing) -> SourceProblems:
    """Those of the plan, and those of the contents of what could be planned nevertheless."""
    problems = plan.problems
    if not writing.dry_run:
        writing.log(f"{len(problems)} problem(s) so far, such as {problems[0]}; looking for more, stop with Ctrl-C")
        problems += look(plan.steps, writing.num_processes, writing.log, writing.progress).problems
    return SourceProblems(plan.source, list(dict.fromkeys(problems)))


@contextmanager
def _workshop(target: Path, log: Log) -> Iterator[Path]:
    """The hidden folder in which a dataset grows; it stays where a run was interrupted after some work."""
    folder = target.with_name(f".{target.name}{GROWING}")
    try:
        folder.mkdir(exist_ok=True)
        lock = FileLock(folder / LOCK)
        try:
            with suppress(NotImplementedError):  # a file system without locks
                lock.acquire(timeout=0)
        except Timeout:
            raise UserError(f"another process is converting into {target}; wait until it has ended") from None
        try:
            yield folder
        except BaseException as error:
            _clean_up(folder, error, log)
            raise
        finally:
            lock.release()
        (folder / JOURNAL).unlink()
        (folder / LOCK).unlink(missing_ok=True)
    except OSError as error:
        raise UserError(
            f"{error.filename or folder}: {error.strerror or error}; make sure that there is free space and that you "
            f"may write into {target.parent}, then run the same command again"
        ) from error


def _clean_up(folder: Path, error: BaseException, log: Log) -> None:
    """Removes what cannot be continued: nothing was done yet, or the source has to change first."""
    if isinstance(error, SourceProblems | IntegrityProblem) or not is_begun(folder):
        shutil.rmtree(folder, ignore_errors=True)
    else:
        log(f"what was done so far is kept in {folder}: the same command goes on from there, or delete that folder")


def _publish(folder: Path, target: Path) -> None:
    """Gives a finished dataset its name, in place of an older one if there is one."""
    old = target.with_name(f".{target.name}.replaced_{secrets.token_hex(4)}")
    try:
        replaces = os.path.lexists(target)
        if replaces:
            os.rename(target, old)
        try:
            os.rename(folder, target)
        except OSError:
            if replaces:
                os.rename(old, target)
            raise
    except OSError as error:
        raise UserError(f"{folder} is complete, but cannot be renamed to {target} ({error.strerror})") from error
    if replaces:
        old.unlink() if old.is_symlink() else shutil.rmtree(old, ignore_errors=True)


def _placing_notes(placed: dict[str, int], link: bool) -> list[str]:
    """How files whose bytes stay came into the dataset, where links were asked for."""
    counts = ", ".join(f"{count} {way}s".replace("copys", "copies") for way, count in sorted(placed.items()))
    return [f"files whose bytes stay as they are: {counts}"] if link and placed else []


def _stale_notes(target: Path) -> list[str]:
    """What an older dataset of this name left behind."""
    folder = os.environ.get(raw.PREPROCESSED, "")
    if not folder or not (Path(folder) / target.name).is_dir():
        return []
    stale = Path(folder) / target.name
    return [f"{stale} was made from an earlier dataset of this name; delete it before you plan and preprocess"]
