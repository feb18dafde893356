"""The cascade: the first stage predicts unlabeled cases for the second, which reads them beside the images."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import blosc2
import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.utils.random import RandomTransform
from nnunetv2.experiment_planning import plan_and_preprocess_api as nnunet
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_semi.errors import EnvironmentNotReady
from nnunet_semi.randomness import seed_everything
from nnunet_semi.trainers.nnUNetTrainerBCP import nnUNetTrainerBCP
from nnunet_semi.trainers.nnUNetTrainerCPS import nnUNetTrainerCPS, nnUNetTrainerCPSCutMix
from nnunet_semi.trainers.nnUNetTrainerMeanTeacher import nnUNetTrainerMeanTeacher
from nnunet_semi.trainers.nnUNetTrainerUniMatchV2 import nnUNetTrainerUniMatchV2
from nnunet_semi.unlabeled.next_stage import find_predictions, predictions_folder
from short_training import threads_for_processes, train, validate
from small_dataset import environment, make_dataset, plan
from tiny_trainer import make_trainer

FIRST, SECOND = "3d_lowres", "3d_cascade_fullres"
LABELED, UNLABELED = [f"tr_{i:03d}" for i in range(3)], [f"un_{i:03d}" for i in range(3)]
BRIGHT = 0.5  # standard deviations above the mean of an image: discs and squares, mostly
SHORT = {"num_epochs": 1, "num_iterations_per_epoch": 1, "num_val_iterations_per_epoch": 1, "pretraining": 0.0}


@pytest.fixture(scope="module")
def plans_file(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Plans with a cascade, because patches are made for a GPU of 20 MB; the labeled cases are preprocessed for it."""
    root = tmp_path_factory.mktemp("cascade")
    with mock.patch.dict(os.environ, {**environment(root), "nnUNet_n_proc_DA": "0"}):
        make_dataset(root, dimension=3, shape=(32, 48, 48), labeled=len(LABELED), unlabeled=len(UNLABELED), test=0)
        with mock.patch.dict(os.environ, {"nnUNet_n_proc_DA": "1"}), threads_for_processes():
            plans_file = plan(configurations=())
            nnunet.plan_experiments([1], gpu_memory_target_in_gb=0.02)
            nnunet.preprocess([1], "nnUNetPlans", (FIRST, "3d_fullres"), (1,), show_progress_bar=False)
        yield plans_file


def stage(plans_file: Path, configuration: str, cls: type = nnUNetTrainerCPS) -> Any:
    return make_trainer(cls, plans_file, configuration, **SHORT)


@pytest.fixture(scope="module")
def first_stage(plans_file: Path) -> Any:
    """The first stage after its training and validation."""
    trainer = stage(plans_file, FIRST)
    train(trainer)
    validate(trainer)
    return trainer


def cases(folder: Path) -> list[str]:
    return sorted(path.name.removesuffix(".b2nd") for path in folder.iterdir())


def test_the_plans_have_a_cascade(plans_file: Path) -> None:
    configurations = json.loads(plans_file.read_text())["configurations"]
    assert configurations[FIRST]["next_stage"] == SECOND
    assert configurations[SECOND]["previous_stage"] == FIRST


def test_validation_predicts_all_cases_for_the_next_stage(first_stage: Any) -> None:
    folder = Path(first_stage.output_folder_base, "predicted_next_stage")
    assert cases(folder / SECOND) == LABELED
    assert cases(folder / f"{SECOND}_unlabeled_fold_all") == UNLABELED
    for case in UNLABELED:
        prediction = blosc2.open(str(folder / f"{SECOND}_unlabeled_fold_all" / f"{case}.b2nd"))[:]
        assert prediction.shape == (32, 48, 48)  # of the next stage
        assert set(np.unique(prediction)) <= {0, 1, 2}


def test_unlabeled_cases_of_the_next_stage_are_preprocessed_before_the_validation(
    first_stage: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the processes that have no metrics to compute would wait for the first one, and give up."""
    order: list[str] = []
    monkeypatch.setattr(nnUNetTrainer, "perform_actual_validation", lambda *_: order.append("validation"))
    monkeypatch.setattr(first_stage, "_unlabeled_index", lambda stage: order.append(f"preprocess {stage}"))
    monkeypatch.setattr(first_stage, "_predict_unlabeled_for", lambda stage: order.append(f"predict {stage}"))
    first_stage.perform_actual_validation()
    assert order == [f"preprocess {SECOND}", "validation", f"predict {SECOND}"]


def test_the_validation_does_not_depend_on_unlabeled_cases_of_the_next_stage(
    first_stage: Any, plans_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One of them is bad there, and the choice to skip bad ones was made for the first stage alone."""
    summary = Path(first_stage.output_folder, "validation", "summary.json")
    before = summary.stat().st_mtime_ns
    (index,) = plans_file.parent.glob("nnUNetPlans_3d_fullres_unlabeled.jsonl")
    content = index.read_text()
    *others, last = (json.loads(line) for line in content.splitlines())
    index.write_text("".join(json.dumps(line) + "\n" for line in [*others, {**last, "shape": None, "error": "empty"}]))
    try:
        first_stage.perform_actual_validation()
    finally:
        index.write_text(content)
    assert summary.stat().st_mtime_ns > before
    said = capsys.readouterr().out
    assert f"the unlabeled cases are not predicted for {SECOND}: 1 unlabeled case(s)" in said
    assert f"-c {SECOND} --skip-bad" in said and "again with --val" in said


def test_what_another_network_predicted_is_predicted_again(first_stage: Any) -> None:
    folder = predictions_folder(first_stage.output_folder_base, SECOND, "all")
    files = [folder / f"{case}.b2nd" for case in UNLABELED]
    written = [file.stat().st_mtime_ns for file in files]
    first_stage._predict_unlabeled_for(SECOND)
    assert [file.stat().st_mtime_ns for file in files] == written
    files[0].unlink()  # as if killed there
    first_stage._predict_unlabeled_for(SECOND)
    assert [file.stat().st_mtime_ns == time for file, time in zip(files, written, strict=True)] == [False, True, True]
    written = [file.stat().st_mtime_ns for file in files]
    with torch.no_grad():
        next(first_stage.network.parameters()).add_(1e-3)
    first_stage._predict_unlabeled_for(SECOND)
    assert all(file.stat().st_mtime_ns > time for file, time in zip(files, written, strict=True))
    assert not list(folder.glob("unfinished*"))


def test_a_replaced_image_is_missed_and_predicted_again(first_stage: Any, plans_file: Path) -> None:
    folder = predictions_folder(first_stage.output_folder_base, SECOND, "all")
    files = [folder / f"{case}.b2nd" for case in UNLABELED]
    written = [file.stat().st_mtime_ns for file in files]
    os.utime(plans_file.parents[2] / "nnUNet_raw" / plans_file.parent.name / "imagesUn" / f"{UNLABELED[1]}_0000.nii.gz")
    with pytest.raises(EnvironmentNotReady, match=f"1 of 3 unlabeled cases as they are now .{UNLABELED[1]}., which"):
        stage(plans_file, SECOND).unlabeled_dataset()
    first_stage._predict_unlabeled_for(SECOND)
    assert [file.stat().st_mtime_ns == time for file, time in zip(files, written, strict=True)] == [True, False, True]
    stage(plans_file, SECOND).unlabeled_dataset()


def test_each_fold_reads_its_own_predictions_if_there_are_any(tmp_path: Path) -> None:
    own, other = (predictions_folder(tmp_path, SECOND, fold) for fold in (1, 0))
    assert find_predictions(tmp_path, SECOND, 1) == own
    other.mkdir(parents=True)
    assert find_predictions(tmp_path, SECOND, 1) == other
    own.mkdir()
    assert find_predictions(tmp_path, SECOND, 1) == own
    assert find_predictions(tmp_path, SECOND, "all") == other


@pytest.mark.parametrize("cls", [nnUNetTrainerCPS, nnUNetTrainerUniMatchV2, nnUNetTrainerMeanTeacher, nnUNetTrainerBCP])
def test_the_second_stage_trains_on_images_and_predictions(
    cls: type, first_stage: Any, plans_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("nnUNet_results", str(tmp_path))
    trainer = stage(plans_file, SECOND, cls)
    folder = Path(trainer.folder_with_segs_from_previous_stage)
    shutil.copytree(Path(first_stage.output_folder_base, "predicted_next_stage"), folder.parent)
    inputs: list[torch.Tensor] = []
    batches = []
    own = trainer.losses

    def losses(labeled, target, unlabeled):
        batches.append((labeled, unlabeled))
        for name in {"network", "network_2", "teacher"} & set(vars(trainer)):
            getattr(trainer, name).register_forward_pre_hook(lambda _, images: inputs.append(images[0]))
        return own(labeled, target, unlabeled)

    trainer.losses = losses
    checkpoint = train(trainer)
    assert np.isfinite(checkpoint["logging"]["semi_loss_unlabeled"]).all()
    [(labeled, unlabeled)] = batches
    assert labeled.shape[1] == unlabeled.shape[1] == 3  # the image, and what was predicted for both labels
    one_hot = unlabeled[:, 1:]
    assert set(one_hot.unique().tolist()) <= {0.0, 1.0}
    assert (one_hot.sum(1) <= 1).all()
    assert one_hot.any()
    view = trainer.strong_view(unlabeled)
    assert torch.equal(view[:, 1:], one_hot)
    assert not torch.equal(view[:, :1], unlabeled[:, :1])
    assert len(inputs) > 1  # no method disturbs what was predicted, for neither of its networks
    assert all(set(images[:, 1:].unique().tolist()) <= {0.0, 1.0} for images in inputs)


def test_predictions_move_with_the_image(
    first_stage: Any, plans_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Predictions that were made of the image by a threshold fit to it after every rotation, flip and crop."""
    monkeypatch.setenv("nnUNet_results", str(tmp_path))
    trainer = stage(plans_file, SECOND)
    folder = Path(trainer.folder_with_segs_from_previous_stage)
    shutil.copytree(Path(first_stage.output_folder_base, "predicted_next_stage"), folder.parent)
    source = plans_file.parent / "nnUNetPlans_3d_fullres_unlabeled"
    for case in UNLABELED:
        image = blosc2.open(str(source / f"{case}.b2nd"))[:]
        prediction = folder.with_name(f"{SECOND}_unlabeled_fold_all") / f"{case}.b2nd"
        blosc2.open(str(prediction), mode="a")[:] = (image[0] > BRIGHT).astype(np.uint8)
    trainer.initialize()
    with mock.patch("nnunet_semi.plugin_trainer.share_cores", return_value=(1, 0)):
        unlabeled = trainer.get_dataloaders()[0].data_loader.loader.streams[1]
    for transform in unlabeled.transforms.transforms:
        if isinstance(transform, RandomTransform):  # errors that nnU-Net adds to predictions on purpose
            transform.apply_probability = 0
    seed_everything(0)
    patches = torch.cat([next(unlabeled)["data"] for _ in range(10)])
    bright, predicted = patches[:, 0] > BRIGHT, patches[:, 1] > 0.5
    assert 0.1 < predicted.float().mean() < 0.9
    # the voxels at which the threshold of an interpolated image is not the interpolated threshold
    assert (bright != predicted).float().mean() < 0.1
    assert (bright != predicted.flip(1)).float().mean() > 0.2


def test_without_predictions_it_says_what_to_train_first(
    plans_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("nnUNet_results", str(tmp_path))
    trainer = stage(plans_file, SECOND)
    with pytest.raises(EnvironmentNotReady, match="3 of 3 unlabeled cases .*un_000.*train 3d_lowres with the same"):
        trainer.run_training()


def test_the_predictions_of_another_trainer_do_not_count(first_stage: Any, plans_file: Path) -> None:
    with pytest.raises(EnvironmentNotReady, match="nnUNetTrainerCPSCutMix__nnUNetPlans__3d_lowres"):
        stage(plans_file, SECOND, nnUNetTrainerCPSCutMix).run_training()
