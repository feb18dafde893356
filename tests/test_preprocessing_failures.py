"""Preprocessing of bad cases, killed, or out of space and memory: told in a sentence, and completed by the next run."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from filelock import FileLock
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

from nnunet_semi import pool as workers
from nnunet_semi.errors import UserError
from nnunet_semi.unlabeled import case as case_module
from nnunet_semi.unlabeled import update
from nnunet_semi.unlabeled.index import FILES_OF_A_CASE, UnlabeledIndex
from nnunet_semi.unlabeled.preprocessing import BadCases
from planned_dataset import CASES, NAME, Dataset, load
from planned_dataset import flat as flat
from planned_dataset import planned as planned
from planned_dataset import volumes as volumes
from small_dataset import write_image

# --- bad cases ---


def add_bad_cases(dataset: Dataset) -> dict[str, str]:
    """Writes cases that are bad in different ways; gives what must be said of each."""
    image = np.random.default_rng(0).integers(1, 255, (32, 32)).astype(np.uint8)
    (dataset.images / "broken_0000.png").write_bytes(b"no image")
    (dataset.images / "nothing_0000.png").touch()
    (dataset.images / "loop_0000.png").symlink_to("loop_0000.png")
    write_image(dataset.images / "black_0000.png", np.zeros_like(image))
    for channel in range(2):
        write_image(dataset.images / f"double_{channel:04d}.png", image)
    write_image(dataset.images / "second_0001.png", image)
    return {
        "black": "it is empty: all values are 0",
        "broken": "broken_0000.png cannot be read by NaturalImage2DIO",
        "double": "it has 2 channel(s); expected 1 (channel0)",
        "loop": "loop_0000.png is a link to a file that does not exist",
        "nothing": "nothing_0000.png is empty (0 bytes)",
        "second": "its files are numbered 0001; expected 0000",
    }


def test_bad_cases_are_named_and_the_others_go_on(flat: Dataset) -> None:
    expected = add_bad_cases(flat)
    with pytest.raises(BadCases) as error:
        flat.run()
    assert flat.index().good == CASES
    bad = flat.index().bad
    assert bad.keys() == expected.keys()
    assert all(reason in bad[case] for case, reason in expected.items())
    assert error.value.exit_code == 1
    assert str(error.value).startswith(f"6 unlabeled case(s) of {NAME} cannot be used: black (it is empty")
    assert "and 3 more" in str(error.value) and "`nnunet_semi preprocess -d 1 -c 2d --skip-bad`" in str(error.value)
    assert error.value.summary is not None and error.value.summary.bad == bad
    assert all(f"bad: {case}: {reason}" in str(error.value.summary) for case, reason in bad.items())
    assert [line for line in flat.log if line.startswith("bad: black")] == ["bad: black: it is empty: all values are 0"]


def test_bad_volumes_are_named(volumes: Dataset) -> None:
    image = np.random.default_rng(0).uniform(1, 2, (6, 24, 28)).astype(np.float32)
    broken = image.copy()
    broken[2, 2, 2] = np.nan
    for case, second in {"nan": broken, "shape": image[:, :-1], "flat": image[0]}.items():
        write_image(volumes.images / f"{case}_0000.nii.gz", image[0] if case == "flat" else image, None)
        write_image(volumes.images / f"{case}_0001.nii.gz", second, None)
    write_image(volumes.images / "one_0000.nii.gz", image, None)
    with pytest.raises(BadCases):
        volumes.run("3d_fullres")
    assert volumes.index("3d_fullres").bad == {
        "flat": "it is a 2D image of shape (24, 28); the labeled cases are volumes",
        "nan": "1 of 4032 values of nan_0001.nii.gz are NaN or infinite",
        "one": "it has 1 channel(s); expected 2 (channel0, channel1)",
        "shape": "its channels differ in shape: shape_0000.nii.gz (6, 24, 28), shape_0001.nii.gz (6, 23, 28)",
    }
    assert volumes.index("3d_fullres").good == CASES


def test_a_case_on_which_the_preprocessor_fails_is_bad(flat: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    original = DefaultPreprocessor.run_case

    def run_case(self: DefaultPreprocessor, files: list[str], *arguments: Any) -> Any:
        if "un_001" in files[0]:
            raise ValueError("of no use")
        return original(self, files, *arguments)

    monkeypatch.setattr(DefaultPreprocessor, "run_case", run_case)
    with pytest.raises(BadCases):
        flat.run()
    assert flat.index().bad == {"un_001": "DefaultPreprocessor failed on it (ValueError: of no use)"}
    assert len(flat.index().good) == 3


def test_a_result_that_is_no_number_is_bad(flat: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        DefaultPreprocessor, "run_case", lambda *_: (np.full((1, 1, 4, 4), np.nan), np.zeros((1, 1, 4, 4)), {})
    )
    with pytest.raises(BadCases, match="DefaultPreprocessor made NaN, infinite values or nothing"):
        flat.run()


def test_training_refuses_bad_cases_and_names_both_remedies(flat: Dataset) -> None:
    (flat.images / "nothing_0000.png").touch()
    with pytest.raises(BadCases) as error:
        flat.start_training()
    assert "nothing (nothing_0000.png is empty (0 bytes)); repair or delete the files" in str(error.value)
    assert "`nnunet_semi preprocess -d 1 -c 2d --skip-bad`" in str(error.value)
    before = flat.state()
    with pytest.raises(BadCases):
        flat.start_training()
    assert flat.state() == before


def test_training_skips_bad_cases_when_chosen_and_says_so(flat: Dataset) -> None:
    (flat.images / "nothing_0000.png").touch()
    summary = flat.run(skip_bad=True)
    assert summary.bad == {"nothing": "nothing_0000.png is empty (0 bytes)"}
    assert flat.start_training().good == CASES
    assert any("goes without 1 bad unlabeled case(s), as was chosen: nothing" in line for line in flat.log)
    with pytest.raises(BadCases):
        flat.run()
    with pytest.raises(BadCases):
        flat.start_training()


def test_a_repaired_case_is_good_and_a_spoilt_one_loses_its_files(flat: Dataset) -> None:
    spoilt, whole = flat.images / "un_001_0000.png", (flat.images / "un_001_0000.png").read_bytes()
    flat.run()
    spoilt.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BadCases):
        flat.run()
    assert not list(flat.folder().glob("un_001*"))
    spoilt.write_bytes(whole)
    assert flat.start_training().good == CASES


def test_a_bad_case_is_tried_again_by_the_command_only(flat: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(DefaultPreprocessor, "run_case", lambda *_: 1 / 0)
        with pytest.raises(BadCases):
            flat.run()
    with pytest.raises(BadCases):
        flat.start_training()
    assert flat.run().preprocessed == 4


def test_no_usable_case_at_all(flat: Dataset) -> None:
    for file in flat.images.iterdir():
        file.write_bytes(b"")
    said = "none of the 4 unlabeled cases of Dataset001_Tiny is usable: .*; repair or replace the files in imagesUn"
    with pytest.raises(BadCases, match=said):
        flat.run(skip_bad=True)
    with pytest.raises(UserError, match=said):
        flat.start_training()


# --- interruptions ---


def kill_at(step: int) -> Callable[..., None]:
    """An os.replace that dies, as by kill -9, in place of its `step`-th call."""
    calls = iter(range(step + 1))

    def replace(*paths: Any) -> None:
        if next(calls) == step:
            os.kill(os.getpid(), signal.SIGKILL)
        os.rename(*paths)

    return replace


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("step", range(7))
def test_a_run_killed_at_any_point_is_completed_by_the_next(flat: Dataset, step: int) -> None:
    child = os.fork()
    if child == 0:
        try:
            case_module.os = type("os", (), {**vars(os), "replace": staticmethod(kill_at(step))})
            flat.run()
        finally:
            os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert len(flat.index().good) == step // 3
    assert [path for path in flat.preprocessed.iterdir() if "_tmp_" in path.name]
    assert flat.run().preprocessed == 4 - step // 3
    assert not [path for path in flat.preprocessed.iterdir() if "_tmp_" in path.name]
    assert sorted(os.listdir(flat.folder())) == sorted(case + end for case in CASES for end in FILES_OF_A_CASE)
    assert all(load(flat.folder(), case)[0].shape[1:] == shape for case, shape in flat.index().shapes.items())


@pytest.mark.parametrize("stop", [KeyboardInterrupt, RuntimeError])
def test_a_stop_leaves_what_is_done(flat: Dataset, monkeypatch: pytest.MonkeyPatch, stop: type[BaseException]) -> None:
    store = case_module.CasePreprocessor._store

    def stop_at_third(self: Any, case: str, *arguments: Any) -> None:
        if case == "un_002":
            raise stop
        store(self, case, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(case_module.CasePreprocessor, "_store", stop_at_third)
        with pytest.raises(stop):
            flat.run()
    assert flat.index().good == CASES[:2]
    assert flat.index().failure == stop.__name__
    assert flat.run().preprocessed == 2
    assert flat.index().failure is None
    assert not [path for path in flat.preprocessed.iterdir() if "_tmp_" in path.name]


def test_a_full_disk_is_not_the_fault_of_a_case(flat: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(nnUNetDatasetBlosc2, "save_case", full)
    with pytest.raises(UserError, match=r"case un_000 could not be written into .*No space left on device.*free space"):
        flat.run()
    assert flat.index().cases == {}


def test_an_index_that_cannot_be_written_is_named(flat: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: UnlabeledIndex, *_: Any) -> None:
        raise PermissionError(13, "Permission denied", str(self.path))

    monkeypatch.setattr(UnlabeledIndex, "add", refuse)
    with pytest.raises(UserError, match=r"nnUNetPlans_2d_unlabeled\.jsonl: Permission denied; make sure"):
        flat.run()


def test_memory_that_runs_out_is_told_with_the_remedy(flat: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(*_: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(DefaultPreprocessor, "run_case", no_memory)
    with pytest.raises(UserError, match=r"memory ran out .*`nnunet_semi preprocess -d 1 -c 2d -np 1`, which goes on"):
        flat.run()
    assert flat.index().bad == {}


def test_a_dead_worker_is_told_with_the_cases_in_flight(flat: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(*_: Any) -> Iterator[Any]:
        raise workers.WorkersDied([("un_000", []), ("un_001", [])], [-9])
        yield

    monkeypatch.setattr(update, "run_tasks", die)
    with pytest.raises(UserError) as error:
        flat.run(num_processes=4)
    assert "died (exit code -9; -9 means killed, most likely because memory ran out)" in str(error.value)
    assert "one of un_000, un_001; run `nnunet_semi preprocess -d 1 -c 2d -np 2`" in str(error.value)


def test_two_runs_at_once_share_the_work(flat: Dataset) -> None:
    held = FileLock(f"{flat.folder()}.lock")
    held.acquire()
    second = threading.Thread(target=flat.run)
    second.start()
    while not flat.log:
        second.join(0.01)
    assert "another process is preprocessing the same unlabeled cases; waiting" in flat.log[0]
    assert not flat.folder().exists()
    held.release()
    second.join()
    assert flat.index().good == CASES
