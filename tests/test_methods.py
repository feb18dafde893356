"""What the base trainer supports holds for every method: training, continuing, predicting, regions, ignore label."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from nnunetv2.experiment_planning.plan_and_preprocess_api import plan_experiments
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

from nnunet_semi.curves import KEPT, SHARES
from nnunet_semi.errors import UserError
from nnunet_semi.perturbation.intensity import IntensityPerturbation
from nnunet_semi.plugin_trainer import CHECKPOINT_KEY, unwrap
from nnunet_semi.trainers.nnUNetTrainerBCP import nnUNetTrainerBCP
from nnunet_semi.trainers.nnUNetTrainerCopyPaste import nnUNetTrainerCopyPaste
from nnunet_semi.trainers.nnUNetTrainerCPS import nnUNetTrainerCPSCutMix, nnUNetTrainerCPSOriginal
from nnunet_semi.trainers.nnUNetTrainerMeanTeacher import nnUNetTrainerMeanTeacher, nnUNetTrainerUAMT
from nnunet_semi.trainers.nnUNetTrainerTeacher import nnUNetTrainerTeacher
from nnunet_semi.trainers.nnUNetTrainerUniMatch import (
    nnUNetTrainerFixMatch,
    nnUNetTrainerUniMatch,
    nnUNetTrainerUniMatchClassAdaptive,
)
from nnunet_semi.trainers.nnUNetTrainerUniMatchV2 import nnUNetTrainerUniMatchV2
from short_training import differences, train, validate
from tiny_trainer import make_trainer, random_batch

METHODS = [
    nnUNetTrainerFixMatch,
    nnUNetTrainerUniMatch,
    nnUNetTrainerUniMatchClassAdaptive,
    nnUNetTrainerUniMatchV2,
    nnUNetTrainerMeanTeacher,
    nnUNetTrainerUAMT,
    nnUNetTrainerBCP,
    nnUNetTrainerCopyPaste,
]
TEACHERS = [cls for cls in METHODS if issubclass(cls, nnUNetTrainerTeacher)]
REGIONS_AND_IGNORE = {"background": 0, "whole": (1, 2), "core": 2, "ignore": 3}
IGNORE = {"background": 0, "disc": 1, "square": 2, "ignore": 3}
# the second of the epochs is beyond BCP's pretraining; the threshold leaves something over after so few iterations
SHORT = {
    "num_epochs": 2,
    "num_iterations_per_epoch": 2,
    "num_val_iterations_per_epoch": 1,
    "save_every": 1,
    "threshold": 0.4,
}
Make = Callable[..., Path]
every_method = pytest.mark.parametrize("cls", METHODS)
every_teacher = pytest.mark.parametrize("cls", TEACHERS)


@pytest.fixture(autouse=True)
def no_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loads batches in this process."""
    monkeypatch.setattr("short_training.one_thread", lambda device: (1, 0))


def deployed(trainer: Any) -> dict[str, torch.Tensor]:
    network = trainer._networks()[0] if isinstance(trainer, nnUNetTrainerTeacher) else trainer.network
    return unwrap(network).state_dict()


def check_curves(trainer: Any, checkpoint: Mapping[str, Any]) -> None:
    curves = checkpoint["logging"]
    for name in ("train_losses", "val_losses", *trainer.curves):
        assert len(curves[name]) == trainer.num_epochs, name
        assert all(math.isfinite(value) for value in curves[name]), name
    for name in (SHARES, KEPT) if "semi_kept" in trainer.curves else (SHARES,):
        rows = np.array(curves[name])
        assert rows.shape == (trainer.num_epochs, trainer.label_manager.num_segmentation_heads)
        assert ((rows >= 0) & (rows <= 1 + 1e-6))[~np.isnan(rows)].all()
    assert sum(curves[SHARES][-1]) > 0


def check_prediction(trainer: Any) -> None:
    """nnU-Net finds the trainer by its name, builds the network and loads the deployed weights."""
    predictor = nnUNetPredictor(device=torch.device("cpu"), perform_everything_on_device=False, allow_tqdm=False)
    folder = Path(trainer.output_folder).parent
    predictor.initialize_from_trained_model_folder(str(folder), ("all",), "checkpoint_final.pth")
    expected = deployed(trainer)
    assert predictor.network.state_dict().keys() == expected.keys()
    [weights] = predictor.list_of_parameters
    assert all(torch.equal(value, expected[name]) for name, value in weights.items())
    image = np.random.default_rng(0).random((1, 1, 32, 32), dtype=np.float32)
    label = predictor.predict_single_npy_array(image, {"spacing": [999, 1, 1]})
    assert label.shape == (1, 32, 32) and label.max() <= 2


UNIMATCH = {"threshold": 0.95, "cutmix_p": 0.5, "unsupervised_weight": 2.0, "ramp_length": 0.0}
DICE_ALONE = {"pseudo_weight_ce": 0.0, "pseudo_weight_dice": 1.0, "pseudo_dice_background": True}
CE_ALONE = {"pseudo_weight_ce": 1.0, "pseudo_weight_dice": 0.0}
NNUNET_VIEWS = {"perturbation": IntensityPerturbation.nnunet}
MEAN_TEACHER = {
    **NNUNET_VIEWS,
    "alpha": 0.99,
    "unsupervised_weight": 0.1,
    "ramp_length": 1.0,
    "deploys_teacher": True,
}
PUBLISHED = {  # weights as the classes say: for an L_x of CE + Dice, without the authors' factor before it all
    nnUNetTrainerCPSOriginal: {**CE_ALONE, "unsupervised_weight": 1.5, "ramp_length": 0.0},
    nnUNetTrainerCPSCutMix: {**CE_ALONE, "cutmix_p": 1.0},
    nnUNetTrainerFixMatch: {**UNIMATCH, **DICE_ALONE},
    nnUNetTrainerUniMatch: {**UNIMATCH, **DICE_ALONE},
    nnUNetTrainerUniMatchClassAdaptive: {**UNIMATCH, **DICE_ALONE},
    nnUNetTrainerUniMatchV2: {
        **UNIMATCH,
        **CE_ALONE,
        "unsupervised_weight": 1.0,
        "pseudo_ce_over_all": True,
        "alpha": 0.996,
        "deploys_teacher": True,
    },
    nnUNetTrainerMeanTeacher: MEAN_TEACHER,
    nnUNetTrainerUAMT: {**MEAN_TEACHER, "passes": 8},
    nnUNetTrainerBCP: {
        **NNUNET_VIEWS,
        "alpha": 0.99,
        "unsupervised_weight": 0.5,
        "ramp_length": 0.0,
        "box_side": 2 / 3,
        "deploys_teacher": False,
    },
}


@pytest.mark.parametrize("cls", PUBLISHED)
def test_constants_are_the_published_ones(cls: type) -> None:
    assert {name: getattr(cls, name) for name in PUBLISHED[cls]} == PUBLISHED[cls]


@pytest.mark.parametrize(("threshold", "trust"), [(0.0, 1), (1.1, 0)])
def test_methods_with_a_threshold_wait_until_classes_are_learned_and_count(
    threshold: float, trust: int, tiny_2d: Path
) -> None:
    assert [cls for cls in METHODS if cls.wait_for_classes] == METHODS[:4]
    trainer = make_trainer(
        nnUNetTrainerUniMatchV2, tiny_2d, **{**SHORT, "threshold": threshold, "wait_for_classes": True}
    )
    curves = train(trainer)["logging"]
    weight = trainer.unsupervised_weight * curves["semi_learned"][0]
    assert weight > 0 and curves["semi_trust"] == [1, trust]
    assert curves["semi_weight"] == [0, pytest.approx(weight * trust)]
    named = [line for line in trainer.warnings() if line.startswith("warning: next to no pseudo label of")]
    assert len(named) == (0 if trust else trainer.label_manager.num_segmentation_heads)


@pytest.mark.parametrize(
    ("cls", "attributes", "said"),
    [
        (nnUNetTrainerUniMatch, {"unlabeled_batch_size": 1}, "one unlabeled patch per process, CutMix has no other"),
        (nnUNetTrainerBCP, {"batch_size": 1}, "one labeled patch per process, BCP's pretraining"),
        (nnUNetTrainerBCP, {"unlabeled_batch_size": 1}, ""),
    ],
)
def test_a_batch_with_nothing_to_paste_from_is_told(
    cls: type, attributes: Mapping[str, Any], said: str, tiny_2d: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    trainer = make_trainer(cls, tiny_2d, **attributes)
    trainer.initialize()
    with mock.patch.object(trainer, "print_to_log_file") as log:
        trainer.get_dataloaders()
    warnings = [call.args[0] for call in log.call_args_list if call.args[0].startswith("warning")]
    assert len(warnings) == bool(said) and said in "".join(warnings)


@pytest.mark.parametrize("waits", [False, True])
@every_method
def test_a_stopped_training_ends_as_the_unbroken_one_and_stock_nnunet_predicts_with_it(
    cls: type, waits: bool, tiny_2d: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {**SHORT, "wait_for_classes": waits}
    trainer = make_trainer(cls, tiny_2d, **settings)
    expected = train(trainer)
    check_curves(trainer, expected)
    check_prediction(trainer)
    assert Path(trainer.output_folder, "checkpoint_best.pth").is_file()
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "continued"))
    first = make_trainer(cls, tiny_2d, **settings)
    with mock.patch.object(first, "on_train_epoch_start", stopping_at_epoch_1(first)), pytest.raises(KeyboardInterrupt):
        train(first)
    second = make_trainer(cls, tiny_2d, **settings)
    second.load_checkpoint(str(Path(first.output_folder, "checkpoint_latest.pth")))
    assert second.current_epoch == 1
    assert differences(expected, train(second)) == []


def stopping_at_epoch_1(trainer: Any) -> Callable[[], None]:
    own = trainer.on_train_epoch_start

    def on_train_epoch_start() -> None:
        if trainer.current_epoch == 1:
            raise KeyboardInterrupt
        own()

    return on_train_epoch_start


@every_method
@pytest.mark.parametrize(
    "dataset, attributes",
    [
        pytest.param({"labels": REGIONS_AND_IGNORE}, {"unlabeled_batch_size": 3}, id="regions ignore"),
        pytest.param({"labels": IGNORE}, {"enable_deep_supervision": False}, id="ignore one resolution"),
    ],
)
def test_it_trains(cls: type, dataset: Mapping[str, Any], attributes: Mapping[str, Any], tiny: Make) -> None:
    trainer = make_trainer(cls, tiny(**dataset), **{**SHORT, "num_iterations_per_epoch": 1, **attributes})
    check_curves(trainer, train(trainer))


@every_method
def test_it_trains_in_3d(cls: type, tiny: Make) -> None:
    plans_file = tiny(("3d_fullres",), dimension=3)
    trainer = make_trainer(cls, plans_file, "3d_fullres", **{**SHORT, "num_iterations_per_epoch": 1})
    check_curves(trainer, train(trainer))


def test_features_of_residual_encoders_are_dropped(tiny_2d: Path) -> None:
    plans = plan_experiments([1], "nnUNetPlannerResEncM")
    trainer = make_trainer(nnUNetTrainerUniMatch, tiny_2d.with_name(f"{plans}.json"))
    trainer.initialize()
    assert "ResidualEncoder" in type(trainer.network).__name__
    trainer.on_train_epoch_start()
    assert math.isfinite(trainer.train_step(random_batch(trainer))["loss"])


@pytest.mark.parametrize("cls", [nnUNetTrainerUniMatchV2, nnUNetTrainerBCP])
def test_a_compiled_network_trains_and_is_saved_under_its_own_names(cls: type, tiny_2d: Path) -> None:
    """nnU-Net compiles on GPUs only; here the compiler is one that runs the network as it is."""

    class Compiled(cls):
        def _do_i_compile(self) -> bool:
            return True

    compiler = torch.compile
    with mock.patch("torch.compile", lambda module: compiler(module, backend="eager")):
        trainer = make_trainer(Compiled, tiny_2d, **SHORT)
        checkpoint = train(trainer)
        check_curves(trainer, checkpoint)
        assert hasattr(trainer.network, "_orig_mod") and trainer.teacher.module._compiled_call_impl is not None
    plain = make_trainer(cls, tiny_2d, **SHORT)
    plain.load_checkpoint(str(Path(trainer.output_folder, "checkpoint_final.pth")))
    assert differences(checkpoint[CHECKPOINT_KEY], plain.extra_state()) == []


@every_method
def test_half_precision_gives_the_losses_of_single_precision(cls: type, tiny_2d: Path) -> None:
    trainer = make_trainer(cls, tiny_2d, threshold=0.4, pretraining=0.0, batch_size=4)
    trainer.initialize()
    trainer.set_deep_supervision_enabled(True)
    trainer.on_train_epoch_start()
    batch, found = random_batch(trainer), []
    for enabled in (False, True):
        torch.manual_seed(0)
        with torch.autocast("cpu", dtype=torch.float16, enabled=enabled, cache_enabled=False):
            found.append(trainer.losses(batch["data"], batch["target"], batch["unlabeled"]))
    single, half = found
    assert half.supervised.dtype == half.unsupervised.dtype == torch.float32
    # logits of three digits, and a few voxels on the other side of the threshold
    torch.testing.assert_close(half.supervised, single.supervised, rtol=5e-3, atol=0)
    torch.testing.assert_close(half.unsupervised, single.unsupervised, rtol=5e-3, atol=0)
    (half.supervised + half.unsupervised).backward()
    gradients = {name for name, parameter in trainer.network.named_parameters() if parameter.grad is not None}
    unused = {name for name, _ in trainer.network.named_parameters() if name.startswith("decoder.seg_layers.0.")}
    assert gradients | unused == {name for name, _ in trainer.network.named_parameters()}


@every_teacher
def test_validation_sees_the_deployed_network(cls: type, tiny: Make) -> None:
    """During training, after it, and when it is asked for alone."""
    plans_file = tiny(labeled=5)
    trainer = make_trainer(cls, plans_file, fold=0, **SHORT)
    train(trainer)
    seen = []
    network, other = trainer._networks()
    network.register_forward_hook(lambda *_: seen.append("deployed"))
    other.register_forward_hook(lambda *_: seen.append("other"))
    batch = random_batch(trainer)
    trainer.set_deep_supervision_enabled(True)
    with torch.no_grad():
        trainer.on_validation_epoch_start()
        trainer.validation_step(batch)
    assert set(seen) == {"deployed"} and not network.training
    validate(trainer)
    assert set(seen) == {"deployed"}
    summary = Path(trainer.output_folder, "validation", "summary.json")
    expected = summary.read_text()
    again = make_trainer(cls, plans_file, fold=0, **SHORT)
    again.load_checkpoint(str(Path(trainer.output_folder, "checkpoint_final.pth")))
    validate(again)
    assert summary.read_text() == expected


@every_teacher
@pytest.mark.parametrize("deploys_teacher", [True, False])
def test_either_network_can_be_deployed(cls: type, deploys_teacher: bool, tiny_2d: Path, tmp_path: Path) -> None:
    trainer = make_trainer(cls, tiny_2d, deploys_teacher=deploys_teacher)
    trainer.initialize()
    trainer.on_train_epoch_start()
    for seed in range(2):
        trainer.train_step(random_batch(trainer, seed))
    file = str(tmp_path / "checkpoint.pth")
    for name in trainer.logger.local_logger.my_fantastic_logging:
        trainer.logger.log(name, 0.5, 0)
    trainer.save_checkpoint(file)
    student, teacher = unwrap(trainer.student).state_dict(), trainer.teacher.module.state_dict()
    assert differences(dict(student), dict(teacher))
    saved = torch.load(file, weights_only=False)
    assert differences(dict(saved["network_weights"]), dict(teacher if deploys_teacher else student)) == []
    again = make_trainer(cls, tiny_2d, deploys_teacher=deploys_teacher)
    again.load_checkpoint(file)
    assert differences(dict(unwrap(again.network).state_dict()), dict(student)) == []
    assert differences(dict(again.teacher.module.state_dict()), dict(teacher)) == []
    assert again.teacher.updates == 2
    swapped = make_trainer(cls, tiny_2d, deploys_teacher=not deploys_teacher)
    with pytest.raises(UserError, match="holds no"):
        swapped.load_checkpoint(file)


def test_a_teacher_starts_from_pretrained_weights(tiny_2d: Path) -> None:
    """nnU-Net loads them after initialize."""
    trainer = make_trainer(nnUNetTrainerMeanTeacher, tiny_2d)
    trainer.initialize()
    for parameter in trainer.network.parameters():
        parameter.data.add_(1)
    trainer.on_train_epoch_start()
    assert differences(dict(trainer.network.state_dict()), dict(trainer.teacher.module.state_dict())) == []
