"""Unlabeled cases through nnU-Net's own preprocessing: same arrays, no case twice, no harm by what goes wrong."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock
from nnunetv2.preprocessing.preprocessors import default_preprocessor
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class, nnUNetDatasetBlosc2
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_semi import pool as workers
from nnunet_semi.errors import EnvironmentNotReady, UserError, WrongUse
from nnunet_semi.unlabeled import case as case_module
from nnunet_semi.unlabeled import preprocessing, update
from nnunet_semi.unlabeled.index import FILES_OF_A_CASE, UnlabeledIndex
from nnunet_semi.unlabeled.preprocessing import BadCases, ensure_preprocessed, preprocess_unlabeled
from small_dataset import draw_case, environment, make_dataset, plan, write_image

NAME = "Dataset001_Tiny"
SPACING = (3.0, 1.0, 1.0)


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Dimension → root of a dataset that nnU-Net planned and preprocessed: 2D png, anisotropic 3D of 2 channels."""
    roots = {}
    for dimension, settings in {2: {}, 3: {"channels": 2, "shape": (6, 24, 28), "spacing": SPACING}}.items():
        root = tmp_path_factory.mktemp(f"planned{dimension}d")
        with pytest.MonkeyPatch.context() as patch:
            for variable, value in environment(root).items():
                patch.setenv(variable, value)
            make_dataset(root, dimension, labeled=3, unlabeled=4, test=0, **settings)
            plan(1, ("2d", "3d_fullres"))
        roots[dimension] = root
    return roots


class Dataset:
    """A planned dataset that a test may change, with short names for what tests do to it."""

    def __init__(self, root: Path) -> None:
        self.raw = root / "nnUNet_raw" / NAME
        self.images = self.raw / "imagesUn"
        self.preprocessed = root / "nnUNet_preprocessed" / NAME
        self.log: list[str] = []

    @property
    def plans(self) -> dict[str, Any]:
        return json.loads((self.preprocessed / "nnUNetPlans.json").read_text())

    def change_plans(self, change: Callable[[dict[str, Any]], Any]) -> None:
        plans = self.plans
        change(plans)
        (self.preprocessed / "nnUNetPlans.json").write_text(json.dumps(plans))

    def folder(self, configuration: str = "2d") -> Path:
        return self.preprocessed / f"nnUNetPlans_{configuration}_unlabeled"

    def index(self, configuration: str = "2d") -> UnlabeledIndex:
        return UnlabeledIndex.load(f"{self.folder(configuration)}.jsonl")

    def run(self, configuration: str = "2d", **arguments: Any) -> preprocessing.IdentifierSummary:
        [summary] = preprocess_unlabeled(
            1, [configuration], **{"num_processes": 1, "log": self.log.append, **arguments}
        ).identifiers
        return summary

    def start_training(self, configuration: str = "2d", **arguments: Any) -> UnlabeledIndex:
        dataset_json = json.loads((self.preprocessed / "dataset.json").read_text())
        manager = PlansManager(self.plans)
        return ensure_preprocessed(
            manager, configuration, dataset_json, **{"num_processes": 1, "log": self.log.append, **arguments}
        )

    def state(self) -> dict[str, int]:
        """Everything in nnUNet_preprocessed with its time of change."""
        files = (path for path in self.preprocessed.rglob("*") if path.suffix != ".lock" and path.is_file())
        return {str(path.relative_to(self.preprocessed)): path.stat().st_mtime_ns for path in files}


def copy_of(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Dataset:
    shutil.copytree(root, tmp_path / "data")
    for variable, value in environment(tmp_path / "data").items():
        monkeypatch.setenv(variable, value)
    return Dataset(tmp_path / "data")


@pytest.fixture
def flat(planned: dict[int, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Dataset:
    """2D png, one channel, unlabeled cases un_000 to un_003."""
    return copy_of(planned[2], tmp_path, monkeypatch)


@pytest.fixture
def volumes(planned: dict[int, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Dataset:
    """3D .nii.gz, two channels, slices 3 mm apart, unlabeled cases un_000 to un_003."""
    return copy_of(planned[3], tmp_path, monkeypatch)


@pytest.fixture(params=[(2, "2d"), (3, "2d"), (3, "3d_fullres")], ids=lambda value: f"{value[1]}-of-{value[0]}D")
def dataset_and_configuration(
    request: pytest.FixtureRequest, planned: dict[int, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Dataset, str]:
    """Every kind of preprocessing."""
    dimension, configuration = request.param
    return copy_of(planned[dimension], tmp_path, monkeypatch), configuration


CASES = [f"un_{number:03d}" for number in range(4)]


# --- the same as nnU-Net's own preprocessing ---


def test_an_unlabeled_copy_of_a_labeled_image_becomes_the_same_arrays(
    dataset_and_configuration: tuple[Dataset, str],
) -> None:
    dataset, configuration = dataset_and_configuration
    for file in (dataset.raw / "imagesTr").glob("tr_000_*"):
        shutil.copy(file, dataset.images / f"copy{file.name[-len(file.name) + len('tr_000') :]}")
    dataset.run(configuration)
    labeled, labeled_seg, _, properties = nnUNetDatasetBlosc2(
        str(dataset.preprocessed / f"nnUNetPlans_{configuration}")
    ).load_case("tr_000")
    data, seg, _, unlabeled_properties = nnUNetDatasetBlosc2(str(dataset.folder(configuration))).load_case("copy")
    np.testing.assert_array_equal(data[:], labeled[:])
    np.testing.assert_array_equal(seg[:] == -1, labeled_seg[:] == -1)
    assert (data.dtype, seg.dtype) == (np.float32, np.int16)
    assert (data.chunks, data.blocks, seg.chunks, seg.blocks) == (
        labeled.chunks,
        labeled.blocks,
        labeled_seg.chunks,
        labeled_seg.blocks,
    )
    assert unlabeled_properties.pop("class_locations") == {}
    properties.pop("class_locations")
    assert unlabeled_properties == properties


def test_another_spacing_and_an_empty_border_become_what_nnunet_makes_of_them(volumes: Dataset) -> None:
    images, _ = draw_case(np.random.default_rng(5), (10, 20, 22), 2)
    images[:, :3] = 0
    images[:, 3:, 4:9, 4:9] = 0  # a hole that is not at the border, filled by nnU-Net's mask
    images[:, :, :, 15:] = 0
    images[:, 5, 12:, 12:] = 0  # outside the nonzero region but inside its box
    for channel, image in enumerate(images):
        write_image(volumes.images / f"odd_{channel:04d}.nii.gz", image, (2.0, 1.5, 0.8))
    volumes.run("3d_fullres")
    data, seg, _, _ = nnUNetDatasetBlosc2(str(volumes.folder("3d_fullres"))).load_case("odd")
    manager = PlansManager(volumes.plans)
    expected, expected_seg, _ = DefaultPreprocessor(verbose=False).run_case(
        [str(volumes.images / f"odd_{channel:04d}.nii.gz") for channel in range(2)],
        None,
        manager,
        manager.get_configuration("3d_fullres"),
        json.loads((volumes.preprocessed / "dataset.json").read_text()),
    )
    np.testing.assert_array_equal(data[:], expected)
    np.testing.assert_array_equal(seg[:], expected_seg)
    assert set(np.unique(seg[:])) == {-1, 0}
    assert volumes.index("3d_fullres").shapes["odd"] == data.shape[1:]


def test_nnunet_recognises_the_folder(flat: Dataset) -> None:
    flat.run()
    assert infer_dataset_class(str(flat.folder())) is nnUNetDatasetBlosc2
    assert sorted(nnUNetDatasetBlosc2.get_identifiers(str(flat.folder()))) == CASES == flat.index().good
    assert sorted(os.listdir(flat.folder())) == sorted(case + end for case in CASES for end in FILES_OF_A_CASE)


def test_nothing_else_is_written(flat: Dataset) -> None:
    before = flat.state()
    raw_before = sorted(flat.raw.rglob("*"))
    flat.run()
    new = flat.state().keys() - before.keys()
    assert {Path(name).parts[0] for name in new} == {"nnUNetPlans_2d_unlabeled", "nnUNetPlans_2d_unlabeled.jsonl"}
    assert before.items() <= flat.state().items()
    assert sorted(flat.raw.rglob("*")) == raw_before


def test_a_preprocessor_of_the_users_own_is_used(flat: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    class Negative(DefaultPreprocessor):
        def run_case_npy(self, *arguments: Any) -> Any:
            data, seg, properties = super().run_case_npy(*arguments)
            return -data, seg, properties

    flat.run()
    before = nnUNetDatasetBlosc2(str(flat.folder())).load_case("un_001")[0][:]
    monkeypatch.setattr(default_preprocessor, "Negative", Negative, raising=False)
    flat.change_plans(lambda plans: plans["configurations"]["2d"].update(preprocessor_name="Negative"))
    assert flat.run().preprocessed == 4
    np.testing.assert_array_equal(nnUNetDatasetBlosc2(str(flat.folder())).load_case("un_001")[0][:], -before)


def test_a_preprocessor_that_is_not_installed_is_named(flat: Dataset) -> None:
    flat.change_plans(lambda plans: plans["configurations"]["2d"].update(preprocessor_name="Gone"))
    with pytest.raises(UserError, match="preprocessor Gone, which is not in nnunetv2.preprocessing"):
        flat.run()


def test_processes_give_what_one_process_gives(volumes: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    volumes.run("3d_fullres")
    alone = {path.name: path.read_bytes() for path in volumes.folder("3d_fullres").glob("*")}
    shutil.rmtree(volumes.folder("3d_fullres"))
    monkeypatch.setattr(workers, "HEAD_START", 0.0)
    assert volumes.run("3d_fullres", num_processes=2).preprocessed == 4
    assert {path.name for path in volumes.folder("3d_fullres").glob("*")} == alone.keys()
    assert all((volumes.folder("3d_fullres") / name).read_bytes() == content for name, content in alone.items())


def load(folder: Path, case: str) -> tuple[np.ndarray, np.ndarray]:
    data, seg, _, _ = nnUNetDatasetBlosc2(str(folder)).load_case(case)
    return data[:], seg[:]


# --- only what is to be done ---


def test_a_second_run_changes_nothing(flat: Dataset) -> None:
    assert flat.run().preprocessed == 4
    before = flat.state()
    summary = flat.run()
    assert (summary.preprocessed, summary.unchanged, summary.removed) == (0, 4, 0)
    flat.start_training()
    assert flat.state() == before


def test_a_second_run_takes_no_lock(flat: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """It works where nothing may be written."""
    flat.run()
    monkeypatch.setattr(update, "exclusive", None)
    assert flat.run().unchanged == 4
    assert flat.start_training().good == CASES


def changed(before: dict[str, int], after: dict[str, int]) -> set[str]:
    return {Path(name).name.partition(".")[0] for name, time in after.items() if before.get(name) != time}


def test_a_changed_source_is_done_again_alone(flat: Dataset) -> None:
    flat.run()
    before = flat.state()
    shutil.copy(flat.images / "un_002_0000.png", flat.images / "un_001_0000.png")
    assert flat.run().preprocessed == 1
    assert changed(before, flat.state()) == {"un_001", "un_001_seg", "nnUNetPlans_2d_unlabeled"}
    one, other = (load(flat.folder(), case)[0] for case in ("un_001", "un_002"))
    np.testing.assert_array_equal(one, other)


def test_a_touched_source_is_done_again(flat: Dataset) -> None:
    flat.run()
    os.utime(flat.images / "un_003_0000.png", ns=(1, 1))
    assert flat.run().preprocessed == 1
    assert flat.run().preprocessed == 0


def test_a_new_case_is_done_alone(flat: Dataset) -> None:
    flat.run()
    shutil.copy(flat.images / "un_002_0000.png", flat.images / "more_0000.png")
    summary = flat.run()
    assert (summary.preprocessed, summary.unchanged) == (1, 4)


@pytest.mark.parametrize("ending", FILES_OF_A_CASE)
def test_a_lost_file_is_made_again(flat: Dataset, ending: str) -> None:
    flat.run()
    expected = load(flat.folder(), "un_001")
    (flat.folder() / f"un_001{ending}").unlink()
    assert flat.run().preprocessed == 1
    np.testing.assert_array_equal(load(flat.folder(), "un_001"), expected)


@pytest.mark.parametrize(
    "key, value",
    [
        ("spacing", [2.0, 2.0]),
        ("normalization_schemes", ["RescaleTo01Normalization"]),
        ("use_mask_for_norm", [True]),
        ("resampling_fn_data_kwargs", {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None}),
    ],
)
def test_changed_settings_do_every_case_again(flat: Dataset, key: str, value: Any) -> None:
    flat.run()
    flat.change_plans(lambda plans: plans["configurations"]["2d"].update({key: value}))
    assert flat.run().preprocessed == 4
    assert flat.run().preprocessed == 0


@pytest.mark.parametrize("key, value", [("patch_size", [16, 16]), ("batch_size", 3)])
def test_settings_that_only_training_needs_do_nothing_again(flat: Dataset, key: str, value: Any) -> None:
    flat.run()
    flat.change_plans(lambda plans: plans["configurations"]["2d"].update({key: value}))
    assert flat.run().preprocessed == 0


def test_a_deleted_source_takes_its_files_along_and_nothing_else(flat: Dataset) -> None:
    flat.run()
    (flat.folder() / "notes.pkl").touch()
    (flat.images / "un_001_0000.png").unlink()
    summary = flat.run()
    assert (summary.removed, summary.unchanged) == (1, 3)
    kept = [case for case in CASES if case != "un_001"]
    assert flat.index().good == kept
    assert sorted(os.listdir(flat.folder())) == sorted(
        ["notes.pkl", *(case + end for case in kept for end in FILES_OF_A_CASE)]
    )


def test_the_spacing_file_of_a_tif_is_a_source(tmp_path: Path) -> None:
    cases = {"a": [str(tmp_path / "a_0000.tif")]}
    (tmp_path / "a_0000.tif").touch()
    before = update.describe(cases)
    (tmp_path / "a.json").write_text('{"spacing": [1, 1, 1]}')
    assert update.describe(cases) != before


# --- configurations ---


def test_default_configurations_are_those_of_nnunet(volumes: Dataset) -> None:
    volumes.change_plans(lambda plans: plans["configurations"].update({"own": plans["configurations"]["2d"]}))
    summary = preprocess_unlabeled("1", num_processes=1, log=volumes.log.append)
    assert [each.folder for each in summary.identifiers] == [volumes.folder("2d"), volumes.folder("3d_fullres")]


def test_configurations_with_one_data_identifier_are_done_once(flat: Dataset) -> None:
    small = {"inherits_from": "2d", "patch_size": [16, 16]}
    flat.change_plans(lambda plans: plans["configurations"].update(small=small))
    summary = preprocess_unlabeled(1, ["2d", "small"], num_processes=1, log=flat.log.append)
    assert [each.preprocessed for each in summary.identifiers] == [4]
    assert flat.start_training("small").good == CASES


def test_one_data_identifier_for_two_ways_of_preprocessing_is_refused(flat: Dataset) -> None:
    coarse = {"inherits_from": "2d", "spacing": [2.0, 2.0]}
    flat.change_plans(lambda plans: plans["configurations"].update(coarse=coarse))
    for configuration in ("2d", "coarse"):
        with pytest.raises(UserError, match="same data_identifier nnUNetPlans_2d"):
            flat.run(configuration)
    flat.change_plans(lambda plans: plans["configurations"]["coarse"].update(data_identifier="coarse"))
    assert flat.run("2d").preprocessed == 4


def test_an_unknown_configuration_is_wrong_use(flat: Dataset) -> None:
    with pytest.raises(WrongUse, match="no configuration '3d_fullres'; it has 2d"):
        flat.run("3d_fullres")


def test_less_than_one_process_is_wrong_use(flat: Dataset) -> None:
    with pytest.raises(WrongUse, match="got 0 processes"):
        flat.run(num_processes=0)


# --- bad cases ---


def add_bad_cases(dataset: Dataset) -> dict[str, str]:
    """Writes cases that are bad in different ways; gives what must be said of each."""
    image = np.random.default_rng(0).integers(1, 255, (32, 32)).astype(np.uint8)
    (dataset.images / "broken_0000.png").write_bytes(b"no image")
    (dataset.images / "nothing_0000.png").touch()
    write_image(dataset.images / "black_0000.png", np.zeros_like(image))
    for channel in range(2):
        write_image(dataset.images / f"double_{channel:04d}.png", image)
    write_image(dataset.images / "second_0001.png", image)
    return {
        "black": "it is empty: all values are 0",
        "broken": "broken_0000.png cannot be read by NaturalImage2DIO",
        "double": "it has 2 channel(s); expected 1 (channel0)",
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
    assert str(error.value).startswith(f"5 unlabeled case(s) of {NAME} cannot be used: black (it is empty")
    assert "and 2 more" in str(error.value) and "`nnunet_semi preprocess -d 1 -c 2d --skip-bad`" in str(error.value)
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
    flat.run(skip_bad=True)
    with pytest.raises(UserError, match="none of the 4 unlabeled cases of Dataset001_Tiny is usable"):
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


# --- warnings ---


def test_images_smaller_than_the_patch_are_told(flat: Dataset) -> None:
    flat.change_plans(lambda plans: plans["configurations"]["2d"].update(patch_size=[32, 40], batch_size=2))
    write_image(flat.images / "wide_0000.png", draw_case(np.random.default_rng(0), (32, 48), 1)[0][0])
    expected = (
        "4 of 5 unlabeled cases are smaller than the patch (32, 40) in configuration 2d and are padded: un_000, "
        "un_001, un_002 and 1 more"
    )
    assert flat.run().warnings == [expected]
    flat.log.clear()
    flat.start_training()
    assert flat.log == [f"warning: {expected}"]


def test_slices_are_compared_with_a_2d_patch(volumes: Dataset) -> None:
    volumes.change_plans(lambda plans: plans["configurations"]["2d"].update(patch_size=[24, 28], batch_size=2))
    assert volumes.run("2d").warnings == []


def test_fewer_cases_than_the_batch_has_samples_are_told(flat: Dataset) -> None:
    flat.change_plans(lambda plans: plans["configurations"]["2d"].update(patch_size=[32, 32], batch_size=5))
    [warning] = flat.run().warnings
    assert "fewer unlabeled cases (4) than the batch size in configuration 2d (5)" in warning


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
