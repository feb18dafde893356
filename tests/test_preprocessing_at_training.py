"""Unlabeled cases at the start of a training: all ranks see the same, with raw images or without, however many."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

from nnunet_semi.errors import EnvironmentNotReady, UserError
from nnunet_semi.locks import locked
from nnunet_semi.unlabeled import case as case_module
from nnunet_semi.unlabeled import update
from nnunet_semi.unlabeled.index import FILES_OF_A_CASE, UnlabeledIndex
from planned_dataset import CASES, Dataset
from planned_dataset import dataset_and_configuration as dataset_and_configuration
from planned_dataset import flat as flat
from planned_dataset import planned as planned

# --- at the start of a training ---


def test_training_preprocesses_by_itself(dataset_and_configuration: tuple[Dataset, str]) -> None:
    dataset, configuration = dataset_and_configuration
    index = dataset.start_training(configuration)
    assert index.good == CASES and index.folder == dataset.folder(configuration)
    cases = nnUNetDatasetBlosc2(str(index.folder), index.good)
    assert {case: cases.load_case(case)[0].shape[1:] for case in index.good} == index.shapes


def test_other_ranks_wait_for_rank_0_and_see_the_same(flat: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    (flat.images / "nothing_0000.png").touch()
    flat.run(skip_bad=True)
    shutil.copy(flat.images / "un_002_0000.png", flat.images / "more_0000.png")
    working = threading.current_thread()
    preprocess = case_module.CasePreprocessor.__call__

    def only_here(self: Any, *arguments: Any) -> Any:
        assert threading.current_thread() is working
        return preprocess(self, *arguments)

    monkeypatch.setattr(case_module.CasePreprocessor, "__call__", only_here)
    seen: list[UnlabeledIndex] = []
    other = threading.Thread(target=lambda: seen.append(flat.start_training(rank=1)))
    other.start()
    other.join(0.2)
    assert other.is_alive()
    index = flat.start_training(rank=0)
    other.join()
    assert seen[0].cases == index.cases and seen[0].good == index.good == ["more", *CASES]


def test_other_ranks_give_up_when_nobody_works(flat: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(update.time, "sleep", lambda _: None)
    with pytest.raises(UserError, match="rank 0 stopped before 4 unlabeled cases were preprocessed; run"):
        flat.start_training(rank=1)
    flat.index().note(skip_bad=False, failure="no space")
    with pytest.raises(UserError, match=r"preprocessed \(no space\); run `nnunet_semi preprocess -d 1 -c 2d`"):
        flat.start_training(rank=1)


def without_variable(dataset: Dataset, patch: pytest.MonkeyPatch) -> None:
    patch.delenv("nnUNet_raw")


def without_dataset(dataset: Dataset, patch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(dataset.raw)


def without_images(dataset: Dataset, patch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(dataset.images)


@pytest.fixture(params=[without_variable, without_dataset, without_images])
def take_raw_images_away(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[[Dataset], None]:
    """The ways in which a cluster can have preprocessed data only."""
    return lambda dataset: request.param(dataset, monkeypatch)


def test_preprocessed_cases_serve_without_raw_images(
    flat: Dataset, take_raw_images_away: Callable[[Dataset], None]
) -> None:
    flat.run()
    take_raw_images_away(flat)
    before = flat.state()
    assert flat.start_training().good == flat.start_training(rank=1).good == CASES
    assert flat.state() == before
    assert len([line for line in flat.log if "the 4 cases in" in line and "without a look" in line]) == 2


def test_links_into_an_archive_that_is_not_mounted_take_no_preprocessed_case_away(flat: Dataset) -> None:
    archive = flat.raw.parent / "archive"
    flat.images.rename(archive)
    flat.images.mkdir()
    for file in archive.iterdir():
        (flat.images / file.name).symlink_to(file)
    flat.run()
    before = flat.state()
    archive.rename(archive.with_name("unmounted"))
    assert flat.start_training().good == flat.start_training(rank=1).good == CASES
    assert flat.run().unchanged == len(CASES)
    assert flat.state() == before
    [first, second] = [line for line in flat.log if "out of reach: un_000, un_001" in line]
    assert first == second and first.startswith("4 unlabeled cases stay as they are")


def test_a_training_where_a_part_of_the_images_is_leaves_the_other_cases_alone(flat: Dataset) -> None:
    flat.run()
    before = flat.state()
    (flat.images / "un_001_0000.png").unlink()
    assert flat.start_training().good == [case for case in CASES if case != "un_001"]
    assert flat.state() == before


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_has_a_file_for_one(
    flat: Dataset, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", refuse)
    assert flat.start_training().good == CASES
    assert not Path(f"{flat.folder()}.locked").exists()
    with locked(flat.preprocessed / "a.lock") as mine, locked(flat.preprocessed / "a.lock") as other:
        assert mine and other


def test_without_raw_images_and_without_cases_the_reason_is_told(
    flat: Dataset, take_raw_images_away: Callable[[Dataset], None]
) -> None:
    take_raw_images_away(flat)
    with pytest.raises(EnvironmentNotReady, match="nnUNet_raw|imagesUn does not exist"):
        flat.start_training()


def test_a_copy_without_its_index_or_files_is_told(flat: Dataset) -> None:
    flat.run()
    shutil.rmtree(flat.raw)
    (flat.folder() / "un_002.pkl").unlink()
    with pytest.raises(UserError, match="lacks files of un_002; preprocess again where the raw images are"):
        flat.start_training()
    flat.index().path.unlink()
    with pytest.raises(UserError, match=r"nnUNetPlans_2d_unlabeled\.jsonl is missing"):
        flat.start_training()


def test_a_copy_made_with_other_plans_is_told(flat: Dataset) -> None:
    flat.run()
    shutil.rmtree(flat.raw)
    flat.change_plans(lambda plans: plans["configurations"]["2d"].update(spacing=[2.0, 2.0]))
    with pytest.raises(UserError, match="were preprocessed with other plans"):
        flat.start_training()


def test_an_empty_images_folder_stops_training_even_with_preprocessed_cases(flat: Dataset) -> None:
    flat.run()
    for file in flat.images.iterdir():
        file.unlink()
    with pytest.raises(UserError, match="imagesUn is empty"):
        flat.start_training()
    assert flat.index().good == CASES


def test_plans_of_an_older_nnunet_stop_training(flat: Dataset) -> None:
    flat.change_plans(lambda plans: plans["configurations"]["2d"].pop("architecture"))
    with pytest.raises(UserError, match=r"nnUNetPlans\.json lacks architecture.*`nnUNetv2_plan_experiment` again"):
        flat.start_training()


# --- ten thousand cases ---

_opened: list[str] | None = None


def _count_opened(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and _opened is not None:
        _opened.append(str(arguments[0]))


def test_ten_thousand_cases_open_no_file_of_theirs(flat: Dataset) -> None:
    global _opened
    flat.run()
    known = flat.index().cases["un_000"]
    images, folder = flat.images, flat.folder()
    with open(flat.index().path, "a", encoding="utf-8") as lines:
        for number in range(10_000):
            case = f"x_{number:05d}"
            name = f"{case}_0000.png"
            for path in (f"{images}/{name}", *(f"{folder}/{case}{ending}" for ending in FILES_OF_A_CASE)):
                os.close(os.open(path, os.O_CREAT))
            os.utime(f"{images}/{name}", ns=(1, number))
            record = known._replace(case=case, sources=((name, 0, number),))
            lines.write(json.dumps(record._asdict()) + "\n")
    flat.run()  # nothing is outstanding
    sys.addaudithook(_count_opened)
    _opened = []
    try:
        index = flat.start_training()
    finally:
        opened, _opened = _opened, None
    assert len(index.good) == 10_004
    assert index.path == Path(next(name for name in opened if name.endswith(".jsonl")))
    assert not [name for name in opened if name.endswith((".pkl", ".b2nd", ".png"))]
    assert len(opened) < 20
