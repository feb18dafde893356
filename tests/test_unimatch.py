"""UniMatch and its relatives, against their definitions."""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

import tiny_trainer
from nnunet_semi.perturbation.cutmix import CutMix
from nnunet_semi.perturbation.intensity import IntensityPerturbation
from nnunet_semi.trainers.nnUNetTrainerUniMatch import (
    nnUNetTrainerFixMatch,
    nnUNetTrainerUniMatch,
    nnUNetTrainerUniMatchClassAdaptive,
)
from nnunet_semi.trainers.nnUNetTrainerUniMatchV2 import nnUNetTrainerUniMatchV2
from scored_model import disturb
from tiny_trainer import losses_of, make_trainer, random_batch

METHODS = [nnUNetTrainerFixMatch, nnUNetTrainerUniMatch, nnUNetTrainerUniMatchClassAdaptive, nnUNetTrainerUniMatchV2]
TERMS = {nnUNetTrainerFixMatch: [2.0], nnUNetTrainerUniMatch: [0.5, 0.5, 1.0], nnUNetTrainerUniMatchV2: [0.5, 0.5]}
REGIONS = {"background": 0, "whole": (1, 2), "core": 2}
every_method = pytest.mark.parametrize("cls", METHODS)


initialized = partial(tiny_trainer.initialized, batch_size=4)


def recorded(trainer: Any) -> list[dict[str, Any]]:
    """The calls of the pseudo loss, with what they gave."""
    calls: list[dict[str, Any]] = []
    own = trainer.pseudo_loss.forward

    def forward(outputs: Any, label: Tensor, mask: Tensor | None = None) -> Tensor:
        calls.append({"outputs": outputs, "label": label, "mask": mask, "loss": own(outputs, label, mask)})
        return calls[-1]["loss"]

    trainer.pseudo_loss.forward = forward
    return calls


def inputs_of(network: torch.nn.Module) -> list[Tensor]:
    """What passes through a network from now on."""
    seen: list[Tensor] = []
    network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    return seen


def gradients(network: torch.nn.Module) -> list[Tensor]:
    return [parameter.grad for parameter in network.parameters() if parameter.grad is not None]


@pytest.mark.parametrize("cls", TERMS)
def test_a_step_minimises_the_published_sum(cls, tiny_2d):
    trainer = initialized(cls, tiny_2d, threshold=0.4)
    calls = recorded(trainer)
    batch = random_batch(trainer)
    torch.manual_seed(0)
    losses = losses_of(trainer, batch)
    terms = [call["loss"] for call in calls]
    assert len(terms) == len(TERMS[cls]) and all(term > 0 for term in terms)
    expected = losses.supervised + sum(w * term for w, term in zip(TERMS[cls], terms, strict=True))
    torch.manual_seed(0)
    assert trainer.train_step(batch)["loss"] == pytest.approx(expected.item(), rel=1e-4)


def plain_dice_loss(logits: Tensor, label: Tensor, mask: Tensor) -> Tensor:
    """1 - mean Dice of all classes of each sample, background included, over the voxels of the mask alone."""
    probability, dices = logits.softmax(1), []
    for sample in range(len(logits)):
        counted = mask[sample, 0]
        for index in range(logits.shape[1]):
            p = probability[sample, index][counted]
            g = (label[sample, 0][counted] == index).float()
            dices.append((2 * (p * g).sum() + 1e-5) / (p.sum() + g.sum() + 1e-5))
    return 1 - torch.stack(dices).mean()


@pytest.mark.parametrize("cls", [nnUNetTrainerFixMatch, nnUNetTrainerUniMatch])
def test_losses_equal_a_plain_reference(cls, tiny_2d):
    """The strong views, their boxes, the dropped features and the Dice of sure voxels, all written out."""
    trainer = initialized(cls, tiny_2d, threshold=0.4, enable_deep_supervision=False)
    trainer.configuration_manager.configuration["batch_dice"] = False
    trainer.pseudo_loss.dice.batch_dice = False
    batch = random_batch(trainer)
    torch.manual_seed(1)
    found = losses_of(trainer, batch)
    torch.manual_seed(1)
    weak = batch["unlabeled"]
    drops = cls is nnUNetTrainerUniMatch
    views = [trainer.mixed_view(weak) for _ in range(2 if drops else 1)]
    masks = trainer.dropout.independent(len(weak)) if drops else []
    network = trainer.network
    with torch.no_grad():
        probability = network(weak).softmax(1)
        confidence, label = probability.max(1, keepdim=True)
        sure = confidence >= 0.4
        assert 0.05 < sure.float().mean() < 0.95
        expected = torch.zeros(())
        for view, mix in views:
            pasted = [torch.where(mix.mask, of.roll(1, 0), of) for of in (label, sure)]
            expected += (0.25 if drops else 1) * plain_dice_loss(network(view), *pasted)
        if drops:
            features = [f * m[:, :, None, None] for f, m in zip(network.encoder(weak), masks, strict=True)]
            expected += 0.5 * plain_dice_loss(network.decoder(features), label, sure)
        supervised = trainer.loss(network(batch["data"]), batch["target"])
    torch.testing.assert_close(found.unsupervised, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.supervised, supervised, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.curves["semi_kept"], sure.float().mean())
    shares = torch.stack([(sure & (label == index)).float().mean() for index in range(3)])
    torch.testing.assert_close(found.kept, shares)


def test_losses_of_version_2_equal_a_plain_reference(tiny_2d):
    """The teacher's pseudo label, complementary channels and cross entropy over all voxels, all written out."""
    trainer = initialized(nnUNetTrainerUniMatchV2, tiny_2d, threshold=0.4, enable_deep_supervision=False)
    network, teacher = trainer.network, trainer.teacher.module
    disturb(teacher, torch.Generator().manual_seed(0))
    batch = random_batch(trainer)
    torch.manual_seed(1)
    found = losses_of(trainer, batch)
    torch.manual_seed(1)
    weak = batch["unlabeled"]
    views = trainer.mixed_view(weak), trainer.mixed_view(weak)
    masks = trainer.dropout.complementary(len(weak))
    with torch.no_grad():
        confidence, label = teacher(weak).softmax(1).max(1)
        assert not torch.equal(label, network(weak).argmax(1))
        sure = confidence >= 0.4
        assert 0.05 < sure.float().mean() < 0.95
        expected = torch.zeros(())
        for (view, mix), kept in zip(views, masks, strict=True):
            features = [f * m[:, :, None, None] for f, m in zip(network.encoder(view), kept, strict=True)]
            box = mix.mask[:, 0]
            pasted, counted = (torch.where(box, of.roll(1, 0), of) for of in (label, sure))
            entropy = -network.decoder(features).log_softmax(1).gather(1, pasted[:, None])[:, 0]
            expected += 0.5 * entropy[counted].sum() / entropy.numel()
    torch.testing.assert_close(found.unsupervised, expected, rtol=1e-4, atol=1e-5)


@every_method
def test_above_every_confidence_the_loss_is_zero_and_gradients_are_finite(cls, tiny_2d):
    trainer = initialized(cls, tiny_2d, threshold=1.01)
    if cls is nnUNetTrainerUniMatchClassAdaptive:  # the thresholds of the other classes are lower
        trainer.thresholds.forward = lambda logits, label, confidence: confidence > 2
    losses = losses_of(trainer, random_batch(trainer))
    assert losses.unsupervised.item() == pytest.approx(0, abs=1e-6)
    assert losses.curves["semi_kept"] == 0 and losses.kept.sum() == 0
    losses.unsupervised.backward()
    assert gradients(trainer.network)
    assert all(torch.equal(gradient, torch.zeros_like(gradient)) for gradient in gradients(trainer.network))
    output = trainer.train_step(random_batch(trainer))
    assert torch.isfinite(torch.tensor([output["loss"], *output["curves"]])).all()


@every_method
def test_with_threshold_zero_every_voxel_counts(cls, tiny_2d):
    trainer = initialized(cls, tiny_2d, threshold=0.0)
    calls = recorded(trainer)
    losses = losses_of(trainer, random_batch(trainer))
    assert losses.curves["semi_kept"] == 1
    torch.testing.assert_close(losses.kept, losses.shares)
    for call in list(calls):
        assert call["mask"].all()
        torch.testing.assert_close(call["loss"], trainer.pseudo_loss(call["outputs"], call["label"]))


@pytest.mark.parametrize("cls", [nnUNetTrainerUniMatch, nnUNetTrainerUniMatchV2])
def test_pasted_voxels_carry_label_and_mask_of_their_source(cls, tiny_2d):
    trainer = initialized(cls, tiny_2d, threshold=0.4, cutmix_p=1.0)
    trainer.strong_view = lambda images: images
    student, calls = inputs_of(trainer.network), recorded(trainer)
    batch = random_batch(trainer)
    losses_of(trainer, batch)
    weak = batch["unlabeled"]
    label, _, mask = trainer.pseudo_label(weak)
    views = [images for images in student if len(images) > len(weak)][-1].split(4)[1:3]
    boxes = [(view != weak).all(1, keepdim=True) for view in views]
    assert not torch.equal(*boxes)
    for view, box, call in zip(views, boxes, calls[:2], strict=True):
        assert 0 < box.float().mean() < 1
        assert torch.equal(view, torch.where(box, weak.roll(1, 0), weak))
        assert torch.equal(call["label"], torch.where(box, label.roll(1, 0), label))
        assert torch.equal(call["mask"], torch.where(box, mask.roll(1, 0), mask))


@every_method
def test_all_views_share_the_geometry_of_the_patch(cls, tiny_2d):
    """Intensities that encode coordinates keep their order in every view that bends intensities alone."""
    trainer = initialized(cls, tiny_2d, cutmix_p=0.0)
    trainer.perturb = IntensityPerturbation(
        noise_p=0, blur_p=0, low_resolution_p=0, brightness_p=1, contrast_p=0, gamma_p=1, gamma_inverted_p=0
    )
    student = inputs_of(trainer.network)
    batch = random_batch(trainer)
    coordinates = torch.arange(batch["unlabeled"][0].numel()).view_as(batch["unlabeled"][0]) / 100 + 1
    batch["unlabeled"] = coordinates.expand_as(batch["unlabeled"]).contiguous()
    losses_of(trainer, batch)
    views = student[-1].split(4)[1:]
    assert len(views) == {nnUNetTrainerFixMatch: 1, nnUNetTrainerUniMatchV2: 2}.get(cls, 3)
    order = coordinates.flatten().argsort()
    assert not torch.allclose(views[0], batch["unlabeled"], rtol=0.01)
    for view in views:
        for patch in view:
            assert torch.equal(patch.flatten().argsort(), order)


def test_with_regions_each_region_has_a_mask_of_its_own(tiny):
    trainer = initialized(nnUNetTrainerUniMatch, tiny(labels=REGIONS), threshold=0.55)
    calls = recorded(trainer)
    losses = losses_of(trainer, random_batch(trainer))
    logits = trainer.network(random_batch(trainer)["unlabeled"])[0]
    probability = logits.sigmoid()
    expected = torch.maximum(probability, 1 - probability) >= 0.55
    assert torch.equal(calls[2]["mask"], expected) and torch.equal(calls[2]["label"], probability > 0.5)
    assert not torch.equal(expected[:, 0], expected[:, 1])
    torch.testing.assert_close(losses.kept, (expected & (probability > 0.5)).float().mean([0, 2, 3]))


def test_only_the_weak_view_loses_features(tiny_2d):
    trainer = initialized(nnUNetTrainerUniMatch, tiny_2d)
    seen: list[Tensor] = []
    trainer.network.decoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][0]))
    losses_of(trainer, random_batch(trainer))
    weak, joint = seen
    dropped = [(part == 0).flatten(2).all(-1).float().mean().item() for part in joint.split(4)]
    assert dropped[:3] == [0, 0, 0] and 0 < dropped[3] < 1
    assert not (weak == 0).flatten(2).all(-1).any()


def test_the_strong_views_of_v2_lose_complementary_features(tiny_2d):
    trainer = initialized(nnUNetTrainerUniMatchV2, tiny_2d)
    seen: list[Tensor] = []
    trainer.network.decoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][0]))
    losses_of(trainer, random_batch(trainer))
    labeled, first, second = ((part == 0).flatten(2).all(-1) for part in seen[-1].split(4))
    disturbed = first.any(1) | second.any(1)
    assert not labeled.any() and disturbed.sum() == 2
    assert torch.equal(first[disturbed], ~second[disturbed])


def test_the_teacher_of_v2_makes_the_pseudo_label_and_gets_no_gradient(tiny_2d):
    trainer = initialized(nnUNetTrainerUniMatchV2, tiny_2d, threshold=0.4)
    for parameter in trainer.teacher.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.1)
    calls = recorded(trainer)
    batch = random_batch(trainer)
    trainer.cutmix_p = 0.0
    losses_of(trainer, batch).unsupervised.backward()
    with torch.no_grad():
        taught, own = (
            network(batch["unlabeled"])[0].argmax(1, keepdim=True) for network in (trainer.teacher, trainer.network)
        )
    assert torch.equal(calls[0]["label"], taught) and not torch.equal(taught, own)
    assert gradients(trainer.network) and not gradients(trainer.teacher)


def test_no_gradient_flows_through_the_pseudo_label(tiny_2d):
    """The pass of the weak view leaves no graph, and its mask and label need no gradient."""
    trainer = initialized(nnUNetTrainerUniMatch, tiny_2d)
    assert not trainer.teach(random_batch(trainer)["unlabeled"]).requires_grad
    assert not any(tensor.requires_grad for tensor in trainer.pseudo_label(random_batch(trainer)["unlabeled"]))


@pytest.mark.parametrize(("threshold", "weight", "said"), [(1.01, 1.0, 1), (1.01, 0.0, 0), (0.0, 1.0, 0)])
def test_classes_that_the_threshold_leaves_out_are_told(threshold, weight, said, tiny_2d, capsys):
    trainer = initialized(nnUNetTrainerFixMatch, tiny_2d, threshold=threshold, unsupervised_weight=weight)
    assert trainer.warnings() == []
    for epoch in range(2):
        trainer.current_epoch = epoch
        trainer.on_train_epoch_end([trainer.train_step(random_batch(trainer))])
    assert capsys.readouterr().out.count("next to no pseudo label of background") == said


@pytest.mark.parametrize("unlabeled", [1, 2])
def test_one_unlabeled_patch_that_leaves_no_boxes_is_warned_of(unlabeled, tiny_2d, monkeypatch, capsys):
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    trainer = make_trainer(nnUNetTrainerFixMatch, tiny_2d, unlabeled_batch_size=unlabeled)
    trainer.initialize()
    trainer.get_dataloaders()
    assert ("CutMix has no other to paste from" in capsys.readouterr().out) == (unlabeled == 1)


def test_weights_cast_without_gradient_are_not_kept_for_the_pass_with_gradient(tiny_2d):
    """Some versions of torch would give them to it, and the network would learn nothing."""
    trainer = initialized(nnUNetTrainerFixMatch, tiny_2d)
    trainer.device = torch.device("cuda")  # nnU-Net uses autocast there alone
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # there is no such device here
        autocast = trainer._autocast()
    with autocast:
        assert not torch.is_autocast_cache_enabled()


def test_a_step_costs_one_pass_with_gradient_and_one_without(tiny_2d):
    for cls, with_gradient in ((nnUNetTrainerFixMatch, 8), (nnUNetTrainerUniMatch, 16), (nnUNetTrainerUniMatchV2, 12)):
        trainer = initialized(cls, tiny_2d)
        passes: list[tuple[int, bool]] = []
        networks = [trainer.network, *([trainer.teacher] if cls is nnUNetTrainerUniMatchV2 else [])]
        for network in networks:
            network.register_forward_pre_hook(
                lambda _, inputs, passes=passes: passes.append((len(inputs[0]), torch.is_grad_enabled()))
            )
        trainer.train_step(random_batch(trainer))
        assert passes == [(4, False), (with_gradient, True)]


def test_thresholds_of_classes_are_learned_and_go_through_a_checkpoint(tiny_2d, tmp_path):
    trainer = initialized(nnUNetTrainerUniMatchClassAdaptive, tiny_2d)
    trainer.train_step(random_batch(trainer))
    assert len(set(trainer.thresholds.thresholds.tolist())) == 3
    state = trainer.extra_state()
    again = initialized(nnUNetTrainerUniMatchClassAdaptive, tiny_2d)
    again.load_extra_state(state)
    assert torch.equal(again.thresholds.thresholds, trainer.thresholds.thresholds)


def test_boxes_and_views_are_drawn_anew_for_each_view(tiny_2d):
    trainer = initialized(nnUNetTrainerUniMatch, tiny_2d, cutmix_p=1.0)
    images = random_batch(trainer)["unlabeled"]
    (first, mix_1), (second, mix_2) = trainer.mixed_view(images), trainer.mixed_view(images)
    assert isinstance(mix_1, CutMix) and not torch.equal(mix_1.mask, mix_2.mask)
    assert not torch.equal(first, second)
