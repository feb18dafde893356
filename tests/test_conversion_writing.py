"""The writer of datasets: whole or not at all, continued where it was interrupted, nothing replaced by accident."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import shutil
from pathlib import Path

import pytest

from conversion_sources import (
    QUIET,
    check_integrity,
    listing,
    make_fugc,
    nnunet_folders,  # noqa: F401
    random_image,
    raw,
    write_png,
)
from nnunet_semi import pool as workers
from nnunet_semi.dataset_conversion import fugc2025, integrity, performing, writing
from nnunet_semi.dataset_conversion.plan import SourceProblems
from nnunet_semi.dataset_conversion.writing import Writing
from nnunet_semi.errors import EnvironmentNotReady, WrongUse

DATASET = "Dataset001_FUGC2025"
HIDDEN = f".{DATASET}.converting"


def convert(source: Path, number: int | None = None, name: str = "FUGC2025", **options: object) -> writing.Conversion:
    return fugc2025.convert(source, number, name, writing=dataclasses.replace(QUIET, **options))  # type: ignore[arg-type]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make_fugc(tmp_path / "source")


# --- what is there afterwards ---


def test_the_dataset_is_complete_and_nothing_else_is_left(source: Path) -> None:
    done = convert(source)
    assert done.folder == raw() / DATASET
    assert os.listdir(raw()) == [DATASET]
    assert sorted(os.listdir(done.folder)) == [
        "dataset.json",
        "imagesTr",
        "imagesUn",
        "labelsTr",
        "splits_final.json",
    ]
    assert done.counts == {"labeled": 5, "unlabeled": 3, "test": 0}
    assert json.loads((done.folder / "dataset.json").read_text())["numTraining"] == 5
    check_integrity(done.folder)


def test_names_of_the_same_content_do_not_depend_on_the_number_of_processes(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "HEAD_START", 0)
    convert(source, 1)
    convert(source, 2, num_processes=2)
    first, second = raw() / DATASET, raw() / "Dataset002_FUGC2025"
    assert listing(first) == listing(second)
    assert all((first / name).read_bytes() == (second / name).read_bytes() for name in listing(first))


def test_a_dry_run_tells_sources_and_targets_and_writes_nothing(source: Path) -> None:
    done = convert(source, 7, dry_run=True)
    line = (
        f"{source / 'train/unlabeled_data/images/0002.png'} → {raw() / 'Dataset007_FUGC2025/imagesUn/U0002_0000.png'}"
    )
    assert line in str(done).splitlines()
    assert len(done.files) == 5 * 2 + 3
    assert listing(raw()) == []


# --- names and what exists ---


def test_the_first_free_id_is_taken_and_that_of_the_same_name_kept(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (raw() / "Dataset001_Other").mkdir()
    preprocessed = raw().parent / "nnUNet_preprocessed"
    (preprocessed / "Dataset002_Another").mkdir(parents=True)
    monkeypatch.setenv("nnUNet_preprocessed", str(preprocessed))
    assert convert(source).folder.name == "Dataset003_FUGC2025"
    assert convert(source, overwrite=True).folder.name == "Dataset003_FUGC2025"


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".x", "a b", "/etc"])
def test_names_that_lead_elsewhere_are_refused(name: str, source: Path) -> None:
    with pytest.raises(WrongUse, match="--name"):
        convert(source, 1, name)
    assert listing(raw()) == []


@pytest.mark.parametrize("number", [0, -3])
def test_ids_below_one_are_refused(number: int, source: Path) -> None:
    with pytest.raises(WrongUse, match=f"got the id {number}"):
        convert(source, number)


def test_an_id_of_another_dataset_is_refused_even_when_overwriting(source: Path) -> None:
    (raw() / "Dataset004_Heart").mkdir()
    with pytest.raises(WrongUse, match="belongs to Dataset004_Heart"):
        convert(source, 4, overwrite=True)


def test_an_existing_dataset_is_replaced_only_when_asked_to(source: Path) -> None:
    convert(source)
    precious = raw() / DATASET / "imagesTr" / "precious.png"
    precious.write_bytes(b"mine")
    with pytest.raises(WrongUse, match="--overwrite"):
        convert(source)
    assert precious.read_bytes() == b"mine"
    convert(source, overwrite=True)
    assert not precious.exists()
    assert os.listdir(raw()) == [DATASET]


def test_problems_leave_the_dataset_that_was_to_be_replaced(source: Path) -> None:
    convert(source)
    before = listing(raw())
    (source / "train/labeled_data/images/0001.png").write_bytes(b"no picture")
    with pytest.raises(SourceProblems):
        convert(source, overwrite=True)
    assert listing(raw()) == before


def test_a_file_in_the_place_of_the_dataset_is_not_replaced_silently(source: Path) -> None:
    (raw() / DATASET).write_text("a file")
    with pytest.raises(WrongUse, match="--overwrite"):
        convert(source, 1)


def test_a_source_within_the_dataset_is_refused(source: Path) -> None:
    inside = raw() / DATASET / "source"
    shutil.copytree(source, inside)
    with pytest.raises(WrongUse, match="lies in the dataset"):
        convert(inside, 1, overwrite=True)
    assert listing(inside) == listing(source)


def test_a_stale_preprocessed_dataset_is_pointed_out(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stale = raw().parent / "nnUNet_preprocessed" / DATASET
    stale.mkdir(parents=True)
    monkeypatch.setenv("nnUNet_preprocessed", str(stale.parent))
    assert any(str(stale) in note for note in convert(source, 1).notes)


def test_without_nnunet_raw_the_variable_is_named(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("nnUNet_raw")
    with pytest.raises(EnvironmentNotReady, match="nnUNet_raw"):
        convert(source)


# --- links ---


def test_links_are_hard_and_copies_are_not_links(source: Path) -> None:
    original = (source / "train/labeled_data/images/0001.png").stat()
    linked, copied = convert(source, 1, link=True), convert(source, 2)
    assert (linked.folder / "imagesTr/L0001_0000.png").stat().st_ino == original.st_ino
    assert (copied.folder / "imagesTr/L0001_0000.png").stat().st_ino != original.st_ino
    assert linked.notes == ["files whose bytes stay as they are: 13 hard links"]


def forbidden(*_: object) -> None:
    raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))


def test_where_hard_links_cannot_be_made_symbolic_ones_are(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "link", forbidden)
    done = convert(source, link=True)
    path = done.folder / "labelsTr/L0001.png"
    assert path.is_symlink() and path.resolve() == (source / "train/labeled_data/labels/0001.png").resolve()
    assert done.notes == ["files whose bytes stay as they are: 13 symbolic links"]
    monkeypatch.setattr(os, "symlink", forbidden)
    assert convert(source, link=True, overwrite=True).notes == ["files whose bytes stay as they are: 13 copies"]


def test_writing_again_over_a_link_leaves_the_source_alone(source: Path) -> None:
    convert(source, link=True)
    before = {name: (source / name).read_bytes() for name in listing(source)}
    convert(source, overwrite=True)
    assert {name: (source / name).read_bytes() for name in listing(source)} == before


# --- problems ---


def test_all_problems_are_told_at_once_and_shortened_after_twenty(source: Path) -> None:
    for number in range(1, 6):
        (source / f"train/labeled_data/images/{number:04d}.png").write_bytes(b"no picture")
    for number in range(100, 130):
        write_png(source / f"train/labeled_data/images/{number:04d}.png", random_image(1, 4, 4, 3))
    with pytest.raises(SourceProblems) as refusal:
        convert(source)
    lines = str(refusal.value).splitlines()
    assert lines[0] == f"35 problems in {source}; nothing was written:"
    assert lines[-1] == "  … and 15 more" and len(lines) == 22
    assert len(refusal.value.problems) == 35
    assert listing(raw()) == []


def test_problems_found_late_leave_nothing_behind(source: Path) -> None:
    (source / "train/unlabeled_data/images/0003.png").write_bytes(b"no picture")
    with pytest.raises(SourceProblems, match="1 problem in"):
        convert(source)
    assert listing(raw()) == [] and os.listdir(raw()) == []


def test_a_dataset_that_nnunet_refuses_is_not_left_behind(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(integrity, "CODE", "print('Error: Shape mismatch'); raise SystemExit('refused')")
    with pytest.raises(integrity.IntegrityProblem, match=r"Error: Shape mismatch; refused"):
        convert(source, verify=True)
    assert os.listdir(raw()) == []


def test_warnings_of_nnunet_are_passed_on(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(integrity, "CODE", "print('Warning: Origin mismatch'); print('WARNING! again')")
    assert convert(source, verify=True).notes == [
        "nnU-Net's integrity check warns 2 times, first: Warning: Origin mismatch"
    ]


def test_zero_processes_are_refused(source: Path) -> None:
    with pytest.raises(WrongUse, match="got 0 processes"):
        convert(source, num_processes=0)


def test_the_default_is_a_process_per_core_but_not_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(performing, "usable_cores", lambda: 64)
    assert performing.default_processes() == performing.MOST_PROCESSES
    assert Writing().num_processes is None
