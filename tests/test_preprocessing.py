"""Unlabeled cases through nnU-Net's own preprocessing: same arrays, no case twice, every configuration."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nnunetv2.preprocessing.preprocessors import default_preprocessor
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class, nnUNetDatasetBlosc2
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_semi import pool as workers
from nnunet_semi.errors import UserError, WrongUse
from nnunet_semi.unlabeled import update
from nnunet_semi.unlabeled.index import FILES_OF_A_CASE
from nnunet_semi.unlabeled.preprocessing import preprocess_unlabeled
from planned_dataset import CASES, Dataset, load
from planned_dataset import dataset_and_configuration as dataset_and_configuration
from planned_dataset import flat as flat
from planned_dataset import planned as planned
from planned_dataset import volumes as volumes
from small_dataset import draw_case, write_image

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
