"""Conversions that are interrupted, killed, or run out of disk: continued by the same command, never half there."""

from __future__ import annotations

import dataclasses
import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from filelock import FileLock

from conversion_sources import (
    QUIET,
    ROWS,
    check_integrity,
    listing,
    make_flare,
    make_fugc,
    nnunet_folders,  # noqa: F401
    random_image,
    raw,
    write_png,
)
from nnunet_semi import pool as workers
from nnunet_semi.dataset_conversion import fugc2025, writing
from nnunet_semi.dataset_conversion.plan import Output, SourceProblems
from nnunet_semi.errors import UserError

DATASET = "Dataset001_FUGC2025"
HIDDEN = f".{DATASET}.converting"


def convert(source: Path, number: int | None = None, name: str = "FUGC2025", **options: object) -> writing.Conversion:
    return fugc2025.convert(source, number, name, writing=dataclasses.replace(QUIET, **options))  # type: ignore[arg-type]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make_fugc(tmp_path / "source")


# --- interruptions ---


class Interruption:
    """Lets the work of a converter end in an exception when it has done some steps, and counts them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, after: int, error: BaseException) -> None:
        self.done, self.after, self.error = 0, after, error
        original = fugc2025.Picture.__call__

        def work(picture: fugc2025.Picture, *paths: Path) -> Sequence[Output]:
            if self.done == self.after:
                raise self.error
            self.done += 1
            return original(picture, *paths)

        monkeypatch.setattr(fugc2025.Picture, "__call__", work)

    def go_on(self) -> None:
        self.done, self.after = 0, -1


def test_an_interrupted_conversion_is_continued_by_the_same_command(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    interruption = Interruption(monkeypatch, 3, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        convert(source, log=said.append)
    assert os.listdir(raw()) == [HIDDEN]
    assert said[-1].startswith("what was done so far is kept in")
    interruption.go_on()
    done = convert(source, log=said.append)
    assert said[-1] == "going on: 3 of 8 cases were done before"
    assert interruption.done == 8 - 3
    assert os.listdir(raw()) == [DATASET]
    convert(source, 2)
    assert listing(done.folder) == listing(raw() / "Dataset002_FUGC2025")


def test_a_conversion_that_was_killed_is_continued(source: Path) -> None:
    code = (
        "import os, signal, sys\n"
        "from nnunet_semi.dataset_conversion import pictures, fugc2025\n"
        "from nnunet_semi.dataset_conversion.writing import Writing\n"
        "read, seen = pictures.read_image, []\n"
        "def killed(path):\n"
        "    seen.append(path)\n"
        "    return read(path) if len(seen) < 4 else os.kill(os.getpid(), signal.SIGKILL)\n"
        "pictures.read_image = killed\n"
        "fugc2025.convert(sys.argv[1], writing=Writing(verify=False, num_processes=1, progress=False))\n"
    )
    assert subprocess.run([sys.executable, "-c", code, str(source)]).returncode == -9
    assert os.listdir(raw()) == [HIDDEN]
    said: list[str] = []
    done = convert(source, log=said.append)
    assert said == ["going on: 3 of 8 cases were done before"]
    assert os.listdir(raw()) == [DATASET]
    check_integrity(done.folder)


def test_an_id_that_was_found_free_is_found_again_after_an_interruption(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interruption = Interruption(monkeypatch, 3, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        convert(source)
    interruption.go_on()
    convert(make_fugc(source.parent / "other"), name="Other")
    assert convert(source).folder.name == DATASET
    assert sorted(os.listdir(raw())) == [DATASET, "Dataset002_Other"]


def test_a_source_that_changed_meanwhile_is_read_again(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interruption = Interruption(monkeypatch, 3, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        convert(source)
    interruption.go_on()
    changed = write_png(source / "train/labeled_data/images/0001.png", random_image(77, ROWS, 16, 3))
    done = convert(source)
    assert (done.folder / "imagesTr/L0001_0000.png").read_bytes() == changed.read_bytes()


def test_what_an_interrupted_run_of_another_source_left_is_not_taken_over(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interruption = Interruption(monkeypatch, 4, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        convert(source)
    interruption.go_on()
    small = make_fugc(tmp_path / "small", labeled=1, unlabeled=1)
    done = convert(small)
    assert interruption.done == 2
    assert listing(done.folder) == ["dataset.json", "imagesTr/L0001_0000.png", "imagesUn/U0001_0000.png"] + [
        "labelsTr/L0001.png"
    ]


def test_folders_and_splits_that_the_source_has_no_more_are_removed(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(writing, "verify", interrupt)
    with pytest.raises(KeyboardInterrupt):
        convert(source, verify=True)
    assert {"imagesUn", "splits_final.json"} <= set(os.listdir(raw() / HIDDEN))
    done = convert(make_fugc(tmp_path / "small", labeled=1, unlabeled=0))
    assert sorted(os.listdir(done.folder)) == ["dataset.json", "imagesTr", "labelsTr"]


def test_a_second_process_does_not_interfere(source: Path) -> None:
    (raw() / HIDDEN).mkdir()
    with FileLock(raw() / HIDDEN / writing.LOCK), pytest.raises(UserError, match="another process is converting"):
        convert(source)


def test_a_killed_process_is_told_and_what_is_done_is_kept(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Interruption(monkeypatch, 2, workers.WorkersDied([], [-9]))
    with pytest.raises(UserError, match="exit code -9"):
        convert(source)
    assert os.listdir(raw()) == [HIDDEN]


def test_too_little_memory_is_told(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Interruption(monkeypatch, 2, MemoryError())
    with pytest.raises(UserError, match="memory ran out with 1 process"):
        convert(source)


# --- disks ---


def fail(number: int) -> object:
    def raise_error(*arguments: object, **_: object) -> None:
        raise OSError(number, os.strerror(number), str(arguments[-1]))

    return raise_error


def test_a_full_disk_is_told_in_a_sentence(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "copyfile", fail(errno.ENOSPC))
    with pytest.raises(UserError, match="No space left on device; make sure that there is free space"):
        convert(source)
    assert listing(raw()) == []


def test_a_disk_that_fills_up_keeps_what_is_done(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy, copied = shutil.copyfile, []

    def copy_some(origin: Path, target: Path) -> None:
        copied.append(target)
        (copy if len(copied) < 6 else fail(errno.ENOSPC))(origin, target)  # type: ignore[operator]

    monkeypatch.setattr(shutil, "copyfile", copy_some)
    with pytest.raises(UserError, match=r"png: No space left on device"):
        convert(source)
    assert os.listdir(raw()) == [HIDDEN]


def test_a_target_that_cannot_be_written_is_told_in_a_sentence(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "mkdir", lambda path, *_, **__: fail(errno.EROFS)(path))  # type: ignore[operator]
    with pytest.raises(UserError, match="Read-only file system; make sure"):
        convert(source)
    assert listing(raw()) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_told_in_a_sentence(source: Path) -> None:
    raw().chmod(0o500)
    with pytest.raises(UserError, match="Permission denied; make sure"):
        convert(source)


def test_a_source_that_cannot_be_read_is_a_problem(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Interruption(monkeypatch, 3, OSError(errno.EIO, os.strerror(errno.EIO), "x.png"))
    with pytest.raises(SourceProblems, match="got Input/output error; expected a file that can be read"):
        convert(source)
    assert os.listdir(raw()) == []


def test_a_dataset_that_cannot_be_renamed_leaves_the_old_one(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    convert(source)
    rename = os.rename

    def some_fail(old: Path, new: Path) -> None:
        if Path(old).name == HIDDEN:
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))
        rename(old, new)

    monkeypatch.setattr(os, "rename", some_fail)
    before = listing(raw() / DATASET)
    with pytest.raises(UserError, match="is complete, but cannot be renamed"):
        convert(source, overwrite=True)
    assert listing(raw() / DATASET) == before


@pytest.mark.skipif(sys.platform == "win32", reason="limits of processes are those of POSIX")
def test_a_volume_that_is_cut_off_while_it_is_written_is_noticed(tmp_path: Path) -> None:
    """SimpleITK writes half a .nii.gz and says nothing; a limit on file sizes stands for a disk that is full."""
    source = make_flare(tmp_path / "source", direction=(-1, 0, 0, 0, -1, 0, 0, 0, 1))
    code = (
        "import resource, sys\n"
        "from nnunet_semi.dataset_conversion import flare22\n"
        "from nnunet_semi.dataset_conversion.writing import Writing\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (200, 200))\n"
        "flare22.convert(sys.argv[1], writing=Writing(verify=False, num_processes=1, progress=False))\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(source)], capture_output=True, text=True)
    assert done.returncode == 1
    assert "UserError" in done.stderr and "imagesTr/FLARE22_Tr_0001_0000.nii.gz: No space left" in done.stderr
    assert listing(raw()) == []
