"""Cross pseudo supervision, against its definition."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_semi.errors import UserError
from nnunet_semi.perturbation.intensity import IntensityPerturbation
from nnunet_semi.trainers.nnUNetTrainerCPS import (
    nnUNetTrainerCPS,
    nnUNetTrainerCPSCutMix,
    nnUNetTrainerCPSOriginal,
    nnUNetTrainerCPSStrong,
    nnUNetTrainerCPSWeakToStrong,
)
from nnunet_semi.trainers.nnUNetTrainerSemi import LEARNED, worst_dice
from tiny_trainer import initialized, make_trainer, random_batch

VARIANTS = [nnUNetTrainerCPS, nnUNetTrainerCPSWeakToStrong, nnUNetTrainerCPSOriginal, nnUNetTrainerCPSCutMix]
REGIONS = {"background": 0, "whole": (1, 2), "core": 2}
IGNORE = {"background": 0, "disc": 1, "square": 2, "ignore": 3}


def arguments(batch: dict) -> tuple:
    return batch["data"], batch["target"], batch["unlabeled"]


def separated(trainer) -> list[torch.Tensor]:
    """Record the terms of the pseudo loss, in the order network 1, network 2."""
    terms: list[torch.Tensor] = []
    own = trainer.pseudo_loss.forward

    def record(*args, **kwargs):
        terms.append(own(*args, **kwargs))
        return terms[-1]

    trainer.pseudo_loss.forward = record
    return terms


def gradient_size(network: torch.nn.Module) -> float:
    return sum(p.grad.abs().sum().item() for p in network.parameters() if p.grad is not None)


@pytest.mark.parametrize("cls", VARIANTS)
def test_no_gradient_flows_through_a_pseudo_label(cls, tiny_2d):
    trainer = initialized(cls, tiny_2d)
    terms = separated(trainer)
    trainer.losses(*arguments(random_batch(trainer)))
    assert len(terms) == 2
    terms[0].backward()
    assert gradient_size(trainer.network) > 0
    assert gradient_size(trainer.network_2) == 0


@pytest.mark.parametrize("cls", VARIANTS)
def test_swapping_the_networks_swaps_the_losses(cls, tiny_2d):
    trainer = initialized(cls, tiny_2d)
    trainer.strong_view = lambda images: images
    batch = random_batch(trainer)
    terms = separated(trainer)
    teaches = torch.arange(len(batch["unlabeled"])) % 2 == 0
    trainer.teaching = lambda number: teaches
    torch.manual_seed(0)
    first = trainer.losses(*arguments(batch))
    trainer.network, trainer.network_2 = trainer.network_2, trainer.network
    teaches = ~teaches
    torch.manual_seed(0)
    second = trainer.losses(*arguments(batch))
    torch.testing.assert_close(terms[:2], terms[:1:-1])
    torch.testing.assert_close(first.supervised, second.supervised)


def test_the_networks_start_differently_and_learn(tiny_2d):
    trainer = initialized(nnUNetTrainerCPS, tiny_2d)
    before = [copy.deepcopy(network.state_dict()) for network, _ in trainer.trained()]
    assert any(not torch.equal(value, before[1][name]) for name, value in before[0].items())
    trainer.train_step(random_batch(trainer))
    for (network, _), old in zip(trainer.trained(), before, strict=True):
        assert any(not torch.equal(value, old[name]) for name, value in network.state_dict().items())


def test_unlabeled_images_count_once_the_worst_class_is_learned(tiny_2d):
    trainer = initialized(nnUNetTrainerCPS, tiny_2d, wait_for_classes=True, ramp_length=0.0)
    assert trainer.current_weight() == 0
    counts = {"tp_hard": [6, 2], "fp_hard": [2, 3], "fn_hard": [2, 1]}  # Dice 12 / 16 and 4 / 8
    trainer.on_validation_epoch_end([{name: np.array(c) for name, c in counts.items()} | {"loss": np.array(0.5)}] * 2)
    assert trainer.current_weight() == 0.5
    other = make_trainer(nnUNetTrainerCPS, tiny_2d, wait_for_classes=True, ramp_length=0.0)
    other.logger.load_checkpoint(trainer.logger.get_checkpoint())
    assert other.current_weight() == 0.5
    assert make_trainer(nnUNetTrainerCPS, tiny_2d, ramp_length=0.0).current_weight() == 1


def test_unlabeled_images_count_less_while_their_pseudo_labels_shrink(tiny_2d):
    trainer = initialized(nnUNetTrainerCPS, tiny_2d, wait_for_classes=True, ramp_length=0.0)
    trainer.logger.log(LEARNED, 0.5, 0)
    batch, said = random_batch(trainer), []
    for left in (None, 0.7, 0.6, 0.1):  # of what is not background, beside the largest that it has been
        if left is not None:
            trainer.trust.steps.fill_(1000)  # the averages move slowly by now
            trainer.trust.largest.fill_(trainer.trust.recent[0, 1:].sum() / left)
            trainer.trust.long[2] = 10  # labeled patches hold more
        outputs = trainer.train_step(batch)
        curves = dict(zip(trainer.curves, outputs["curves"], strict=False))
        expected = 1.0 if left is None else max(0.0, (left - 0.5) / 0.25)
        assert curves["semi_trust"] == pytest.approx(expected, abs=0.05)
        assert curves["semi_weight"] == pytest.approx(0.5 * curves["semi_trust"])
        total = curves["semi_loss_labeled"] + curves["semi_weight"] * curves["semi_loss_unlabeled"]
        assert outputs["loss"] == pytest.approx(total, rel=1e-5)
        trainer.on_train_epoch_end([outputs])
        said.append([line for line in trainer.warnings() if "(trust)" in line])
        trainer.current_epoch += 1
    assert [len(lines) for lines in said] == [0, 0, 1, 0]


def test_a_class_that_no_reference_holds_is_not_waited_for():
    assert worst_dice(np.array([5, 0]), np.array([5, 9]), np.array([0, 0])) == pytest.approx(2 / 3)
    assert worst_dice(np.array([0]), np.array([9]), np.array([0])) == 1
    assert worst_dice(np.array([5, 0]), np.array([5, 0]), np.array([0, 7])) == 0


def test_half_way_a_class_that_is_not_learned_is_told(tiny_2d):
    trainer = initialized(nnUNetTrainerCPS, tiny_2d, wait_for_classes=True, num_epochs=10)
    said = []
    for epoch in range(10):
        trainer.current_epoch = epoch
        said.append([line for line in trainer.warnings() if "is not learned yet" in line])
    assert [bool(lines) for lines in said] == [epoch == 5 for epoch in range(10)]


def test_with_weight_zero_network_1_learns_as_in_nnunettrainer(tiny_2d):
    trainer = initialized(nnUNetTrainerCPS, tiny_2d, unsupervised_weight=0.0)
    stock = make_trainer(nnUNetTrainer, tiny_2d)
    stock.initialize()
    stock.set_deep_supervision_enabled(True)
    stock.network.load_state_dict(trainer.network.state_dict())
    batch = random_batch(trainer)
    with torch.no_grad():
        expected = stock.loss(stock.network(batch["data"]), batch["target"])
        expected = expected + stock.loss(trainer.network_2(batch["data"]), batch["target"])
    losses = trainer.losses(*arguments(batch))
    # a convolution of a joint batch may add in another order
    torch.testing.assert_close(losses.supervised, expected, rtol=1e-5, atol=1e-6)
    trainer.train_step(batch)
    stock.train_step(batch)
    for name, value in stock.network.state_dict().items():
        torch.testing.assert_close(trainer.network.state_dict()[name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("number", [1, 2, 5, 8])
def test_each_network_teaches_half_of_the_patches_by_chance(number, tiny_2d):
    trainer = make_trainer(nnUNetTrainerCPSWeakToStrong, tiny_2d)
    torch.manual_seed(0)
    drawn = torch.stack([trainer.teaching(number) for _ in range(400)]).float()
    assert set(drawn.sum(1).tolist()) == {float(number // 2), float((number + 1) // 2)}
    assert (drawn.mean(0) - 0.5).abs().max() < 0.1  # four standard deviations


def test_the_teacher_of_a_patch_sees_it_undisturbed_and_the_other_network_learns_it_alone(tiny_2d):
    trainer = initialized(nnUNetTrainerCPSWeakToStrong, tiny_2d)
    trainer.strong_view = lambda images: images + 1
    trainer.teaching = lambda number: torch.arange(number) == 0
    batch = random_batch(trainer)
    seen: dict[int, torch.Tensor] = {}
    for index, (network, _) in enumerate(trainer.trained()):
        network.register_forward_hook(
            lambda _, inputs, outputs, index=index: seen.update({index: (inputs[0], outputs[0])})
        )
    losses = trainer.losses(*arguments(batch))
    gradients = torch.autograd.grad(losses.unsupervised, [outputs for _, outputs in seen.values()])
    for index, gradient in enumerate(gradients):
        views, learned = (
            seen[index][0][len(batch["data"]) :],
            gradient[len(batch["data"]) :].abs().flatten(1).sum(1) > 0,
        )
        taught = 0 if index == 0 else 1  # network 1 teaches the first patch, network 2 the second
        assert torch.equal(views[taught], batch["unlabeled"][taught])
        assert torch.equal(views[1 - taught], batch["unlabeled"][1 - taught] + 1)
        assert not learned[taught] and learned[1 - taught]


@pytest.mark.parametrize("labels", [REGIONS, IGNORE], ids=["regions", "ignore label"])
@pytest.mark.parametrize("deep", [True, False])
@pytest.mark.parametrize("cls", [nnUNetTrainerCPS, nnUNetTrainerCPSWeakToStrong])
def test_losses_equal_a_plain_reference(cls, tiny, labels, deep):
    trainer = initialized(cls, tiny(labels=labels), enable_deep_supervision=deep)
    shifts = iter([1, 2])
    trainer.strong_view = lambda images: images + next(shifts)
    trainer.teaching = lambda number: torch.arange(number) == 1
    batch = random_batch(trainer)
    if labels is IGNORE:
        for target in batch["target"] if deep else [batch["target"]]:
            target[:, :, : target.shape[2] // 2] = 3
    losses = trainer.losses(*arguments(batch))
    supervised, pseudo = 0, 0
    weak, strong = batch["unlabeled"], batch["unlabeled"] + 1
    networks = (trainer.network, trainer.network_2)
    all_patches = cls is nnUNetTrainerCPS
    views = (strong, weak + 2)
    if not all_patches:  # network 1 teaches the second patch
        views = (torch.stack([strong[0], weak[1]]), torch.stack([weak[0], strong[1]]))
    outputs = [[n(batch["data"]) for n in networks], [n(view) for n, view in zip(networks, views, strict=True)]]
    outputs = outputs if deep else [[[o] for o in row] for row in outputs]
    targets = batch["target"] if deep else [batch["target"]]
    weights = trainer.loss.weight_factors if deep else (1.0,)
    regions = labels is REGIONS
    for own, other in ((0, 1), (1, 0)):
        learned = slice(None) if all_patches else slice(own, own + 1)
        label = outputs[1][other][0] > 0 if regions else outputs[1][other][0].argmax(1, keepdim=True)
        for scale, weight in enumerate(weights):
            if weight:
                shape = outputs[1][own][scale].shape[2:]
                coarse = torch.nn.functional.interpolate(label.float(), shape, mode="nearest-exact")
                supervised += weight * reference(outputs[0][own][scale], targets[scale], regions, ignore=3)
                logits = outputs[1][own][scale]
                smoothing = 0.05 * len(logits) / len(logits[learned])  # of all voxels, not of those that count
                pseudo += weight * reference(logits[learned], coarse[learned], regions, None, smoothing)
    # nnU-Net's Dice part is -Dice, that of the pseudo loss 1 - Dice: one for each network
    torch.testing.assert_close(losses.supervised, supervised - 2, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(losses.unsupervised, pseudo, rtol=1e-4, atol=1e-4)


def test_views_have_the_strength_of_nnunets_augmentation_or_more():
    mild, strong = IntensityPerturbation.nnunet, IntensityPerturbation.strong
    expected = {
        nnUNetTrainerCPS: mild,
        nnUNetTrainerCPSOriginal: mild,
        nnUNetTrainerCPSStrong: strong,
        nnUNetTrainerCPSWeakToStrong: strong,
        nnUNetTrainerCPSCutMix: strong,
    }
    assert {cls: cls.perturbation for cls in expected} == expected


def test_losses_of_the_original_equal_a_plain_reference(tiny_2d):
    """Cross entropy against the other network's label, over labeled and unlabeled voxels alike."""
    trainer = initialized(nnUNetTrainerCPSOriginal, tiny_2d, enable_deep_supervision=False)
    trainer.strong_view = lambda images: images
    batch = random_batch(trainer)
    losses = trainer.losses(*arguments(batch))
    logits = [
        network(torch.cat([batch["data"], batch["unlabeled"]])) for network in (trainer.network, trainer.network_2)
    ]
    labels = [values.argmax(1, keepdim=True) for values in logits]
    expected = sum(-own.log_softmax(1).gather(1, other).mean() for own, other in zip(logits, labels[::-1], strict=True))
    torch.testing.assert_close(losses.unsupervised, expected, rtol=1e-4, atol=1e-5)


def reference(
    logits: torch.Tensor, target: torch.Tensor, regions: bool, ignore: int | None, smoothing: float = 0.0
) -> torch.Tensor:
    """Mean cross entropy and 1 - Dice of the batch, over the voxels that are not ignored."""
    added = 1e-5 + smoothing * logits[:, 0].numel()
    counted = torch.ones_like(target, dtype=torch.bool) if ignore is None else target != ignore
    logits = logits.movedim(1, -1)
    target = target.movedim(1, -1)
    counted = counted.movedim(1, -1)
    if regions:
        probability, goal = logits.sigmoid(), target.float()
        entropy = -(goal * probability.log() + (1 - goal) * (1 - probability).log()).mean()
        foreground = range(logits.shape[-1])
    else:
        probability = logits.softmax(-1)
        goal = torch.stack([(target[..., 0] == c).float() for c in range(logits.shape[-1])], -1) * counted
        entropy = -(goal * probability.log()).sum() / counted.sum()
        probability = probability * counted
        foreground = range(1, logits.shape[-1])
    dice = [
        (2 * (probability[..., c] * goal[..., c]).sum() + added)
        / (probability[..., c].sum() + goal[..., c].sum() + added)
        for c in foreground
    ]
    return entropy + 1 - torch.stack(dice).mean()


def test_cutmix_mixes_images_and_pseudo_labels_alike(tiny_2d):
    trainer = initialized(nnUNetTrainerCPSCutMix, tiny_2d)
    trainer.strong_view = lambda images: images
    seen: list[torch.Tensor] = []
    trainer.network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    terms = separated(trainer)
    labels: list[torch.Tensor] = []
    own = trainer.pseudo_loss.forward
    trainer.pseudo_loss.forward = lambda outputs, label: (labels.append(label), own(outputs, label))[1]
    batch = random_batch(trainer)
    trainer.losses(*arguments(batch))
    weak, mixed = batch["unlabeled"], seen[-1][len(batch["data"]) :]
    pasted = (mixed != weak).all(1, keepdim=True)
    assert 0 < pasted.float().mean() < 1
    assert torch.equal(mixed, torch.where(pasted, weak.roll(1, 0), weak))
    with torch.no_grad():
        unmixed = trainer.network_2(weak)[0].argmax(1, keepdim=True)
    assert torch.equal(labels[0], torch.where(pasted, unmixed.roll(1, 0), unmixed))
    assert len(terms) == 2


def test_a_batch_without_labeled_foreground_is_finite(tiny_2d):
    trainer = initialized(nnUNetTrainerCPS, tiny_2d)
    batch = random_batch(trainer)
    for target in batch["target"]:
        target.zero_()
    outputs = trainer.train_step(batch)
    assert torch.isfinite(torch.tensor(outputs["curves"])).all()


def test_a_checkpoint_with_one_network_is_refused(tiny_2d, tmp_path):
    stock = make_trainer(nnUNetTrainer, tiny_2d)
    stock.initialize()
    stock.save_checkpoint(str(tmp_path / "checkpoint.pth"))
    trainer = initialized(nnUNetTrainerCPS, tiny_2d)
    with pytest.raises(UserError, match="holds one network"):
        trainer.load_checkpoint(str(tmp_path / "checkpoint.pth"))
