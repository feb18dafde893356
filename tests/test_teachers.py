"""Mean Teacher, UA-MT and bidirectional copy-paste, against their definitions."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from nnunet_semi.trainers.nnUNetTrainerBCP import nnUNetTrainerBCP
from nnunet_semi.trainers.nnUNetTrainerMeanTeacher import nnUNetTrainerMeanTeacher, nnUNetTrainerUAMT
from nnunet_semi.trainers.nnUNetTrainerUniMatchV2 import nnUNetTrainerUniMatchV2
from tiny_trainer import make_trainer, random_batch

METHODS = [nnUNetTrainerMeanTeacher, nnUNetTrainerUAMT, nnUNetTrainerBCP, nnUNetTrainerUniMatchV2]
REGIONS = {"background": 0, "whole": (1, 2), "core": 2}
IGNORE = {"background": 0, "disc": 1, "square": 2, "ignore": 3}
ALL_BCP = {"pretraining": 0.0, "enable_deep_supervision": False, "batch_size": 3}


def initialized(cls: type, plans_file: Path, **attributes: Any) -> Any:
    """A trainer whose teacher differs from its student, and whose views are what they are made from."""
    trainer = make_trainer(cls, plans_file, **attributes)
    trainer.initialize()
    trainer.set_deep_supervision_enabled(trainer.enable_deep_supervision)
    trainer.on_train_epoch_start()
    generator = torch.Generator().manual_seed(0)
    for parameter in trainer.teacher.parameters():
        parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    trainer.strong_view = lambda images: images
    return trainer


def losses_of(trainer: Any, batch: dict[str, Any]) -> Any:
    return trainer.losses(batch["data"], batch["target"], batch["unlabeled"])


def probability_of(logits: Tensor, regions: bool) -> Tensor:
    return logits.sigmoid() if regions else logits.softmax(1)


@pytest.mark.parametrize("cls", METHODS)
def test_the_teacher_gets_no_gradient_and_follows_the_student(cls, tiny_2d):
    trainer = initialized(cls, tiny_2d)
    trainer.teacher.n_averaged.fill_(5)
    before = {name: value.clone() for name, value in trainer.teacher.module.state_dict().items()}
    trainer.train_step(random_batch(trainer))
    assert all(parameter.grad is None for parameter in trainer.teacher.parameters())
    student = trainer.network.state_dict()
    for name, value in trainer.teacher.module.state_dict().items():
        torch.testing.assert_close(value, before[name] * 5 / 6 + student[name] / 6)


@pytest.mark.parametrize("cls", METHODS)
def test_the_student_sees_a_disturbed_view_and_the_teacher_does_not(cls, tiny_2d):
    trainer = initialized(cls, tiny_2d, pretraining=0.0, cutmix_p=0.0)
    seen, taught = [], []
    trainer.network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    trainer.teacher.register_forward_pre_hook(lambda _, inputs: taught.append(inputs[0]))
    trainer.strong_view = lambda images: images + 100
    batch = random_batch(trainer)
    losses_of(trainer, batch)
    [student] = seen
    disturbed = (student > 50).flatten(1).float().mean(1)
    if cls is nnUNetTrainerBCP:  # a box in each of them is of a labeled patch, or all but a box
        assert ((disturbed > 0.3) & (disturbed < 0.7)).all()
    else:
        assert disturbed.tolist() == [0.0] * len(batch["data"]) + [1.0] * (len(student) - len(batch["data"]))
    assert all((images - batch["unlabeled"]).abs().max() <= 0.2 + 1e-6 for images in taught) and taught


@pytest.mark.parametrize("cls", [nnUNetTrainerMeanTeacher, nnUNetTrainerUAMT])
def test_noise_leaves_what_is_no_image_alone(cls, tiny_2d):
    trainer = initialized(cls, tiny_2d)
    images = torch.randn(2, 3, 32, 32)
    images[:, 0, :5] = 0
    trainer.num_image_channels = 2
    trainer.perturb = trainer.perturbation(anisotropic=False, masked_channels=(0,))
    noisy = trainer.noisy(images)
    assert torch.equal(noisy[:, 2], images[:, 2]) and torch.equal(noisy[:, 0] == 0, images[:, 0] == 0)
    assert not torch.equal(noisy[:, 1], images[:, 1])


@pytest.mark.parametrize("labels", [None, REGIONS], ids=["classes", "regions"])
@pytest.mark.parametrize("deep", [True, False])
def test_mean_teacher_equals_a_plain_reference(tiny, labels, deep):
    plans_file = tiny(labels=labels) if labels else tiny()
    trainer = initialized(nnUNetTrainerMeanTeacher, plans_file, enable_deep_supervision=deep)
    batch = random_batch(trainer)
    torch.manual_seed(0)
    found = losses_of(trainer, batch)
    torch.manual_seed(0)
    noise = (torch.randn_like(batch["unlabeled"]) * 0.1).clamp(-0.2, 0.2)
    with torch.no_grad():
        student, taught = trainer.network(batch["unlabeled"]), trainer.teacher(batch["unlabeled"] + noise)
        student, taught = (o[0] if deep else o for o in (student, taught))
        expected = (probability_of(student, bool(labels)) - probability_of(taught, bool(labels))).square().mean()
        supervised = trainer.loss(trainer.network(batch["data"]), batch["target"])
    torch.testing.assert_close(found.unsupervised, expected, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(found.supervised, supervised, rtol=1e-4, atol=1e-5)


def test_the_weight_of_mean_teacher_grows_to_a_tenth(tiny_2d):
    trainer = initialized(nnUNetTrainerMeanTeacher, tiny_2d)
    batch = random_batch(trainer)
    for epoch, expected in ((0, 0.1 * math.exp(-5)), (1, 0.1 * math.exp(-5 / 4))):
        trainer.current_epoch, trainer.iteration = epoch, 0
        output = trainer.train_step(batch)
        assert output["curves"][2] == pytest.approx(expected)
        assert output["loss"] == pytest.approx(output["curves"][0] + expected * output["curves"][1], rel=1e-5)


@pytest.mark.parametrize("labels", [None, REGIONS], ids=["classes", "regions"])
def test_uamt_equals_a_plain_reference(tiny, labels):
    plans_file = tiny(labels=labels) if labels else tiny()
    trainer = initialized(nnUNetTrainerUAMT, plans_file, enable_deep_supervision=False)
    trainer.network.decoder.seg_layers[-1].weight.data.mul_(20)  # or it is sure of nothing
    trainer.teacher.module.decoder.seg_layers[-1].weight.data.mul_(20)
    trainer.current_epoch = 1
    batch = random_batch(trainer)
    torch.manual_seed(0)
    found = losses_of(trainer, batch)
    torch.manual_seed(0)
    passes = []
    with torch.no_grad():
        student = probability_of(trainer.network(batch["unlabeled"]), bool(labels))
        for _ in range(8):
            noise = (torch.randn_like(batch["unlabeled"]) * 0.1).clamp(-0.2, 0.2)
            passes.append(probability_of(trainer.teacher(batch["unlabeled"] + noise), bool(labels)))
    mean = torch.stack(passes).mean(0)
    limit = 0.75 + 0.25 * math.exp(-5 / 4)  # half of the training is done
    if labels:
        sure = -(mean * (mean + 1e-12).log() + (1 - mean) * (1 - mean + 1e-12).log()) < limit * math.log(2)
    else:
        sure = (-(mean * (mean + 1e-12).log()).sum(1, keepdim=True) < limit * math.log(3)).expand_as(mean)
    assert 0.05 < sure.float().mean() < 0.95
    expected = (student - passes[0]).square()[sure].mean()
    torch.testing.assert_close(found.unsupervised, expected, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(found.curves["semi_kept"], sure.float().mean(), rtol=0, atol=1e-3)


# --- bidirectional copy-paste ---


def plain_loss(logits: Tensor, label: Tensor, mask: Tensor) -> Tensor:
    """Mean cross entropy and 1 - Dice of all classes over the batch's voxels in the mask."""
    probability = logits.softmax(1).movedim(1, -1)[mask[:, 0]]
    label = label[:, 0][mask[:, 0]]
    entropy = -probability[torch.arange(len(label)), label].log().mean()
    dices = []
    for number in range(logits.shape[1]):
        p, g = probability[:, number], (label == number).float()
        dices.append((2 * (p * g).sum() + 1e-5) / (p.sum() + g.sum() + 1e-5))
    return entropy + 1 - torch.stack(dices).mean()


def boxes_of(trainer: Any) -> list[Tensor]:
    """The boxes that are drawn from now on."""
    drawn: list[Tensor] = []
    own = trainer._boxes

    def boxes(images: Tensor) -> Tensor:
        drawn.append(own(images))
        return drawn[-1]

    trainer._boxes = boxes
    return drawn


@pytest.mark.parametrize("labels", [None, IGNORE], ids=["all known", "ignore label"])
def test_bcp_equals_a_plain_reference(tiny, labels):
    trainer = initialized(nnUNetTrainerBCP, tiny(labels=labels) if labels else tiny(), **ALL_BCP)
    trainer.pseudo_loss.dice.batch_dice = True
    batch, boxes = random_batch(trainer), boxes_of(trainer)
    known = torch.ones_like(batch["target"], dtype=torch.bool)
    if labels:
        batch["target"][:, :, :9] = 3
        known[:, :, :9] = False
    found = losses_of(trainer, batch)
    labeled, weak, [box] = batch["data"], batch["unlabeled"], boxes
    label = torch.where(known, batch["target"], 0).long()
    with torch.no_grad():
        pseudo = trainer.teacher(weak).argmax(1, keepdim=True)
        inward = trainer.network(torch.where(box, weak, labeled))
        outward = trainer.network(torch.where(box, labeled, weak.roll(1, 0)))
    supervised = (plain_loss(inward, label, known & ~box) + plain_loss(outward, label, known & box)) / 2
    unsupervised = (plain_loss(inward, pseudo, box) + plain_loss(outward, pseudo.roll(1, 0), ~box)) / 2
    torch.testing.assert_close(found.supervised, supervised, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.unsupervised, unsupervised, rtol=1e-4, atol=1e-4)
    output = trainer.train_step(batch)
    assert output["loss"] == pytest.approx(output["curves"][0] + 0.5 * output["curves"][1], rel=1e-5)


def test_bcp_pretrains_on_labeled_patches_pasted_into_each_other(tiny_2d):
    trainer = initialized(nnUNetTrainerBCP, tiny_2d, **{**ALL_BCP, "pretraining": 0.5})
    trainer.pseudo_loss.dice.batch_dice = True
    batch, boxes = random_batch(trainer), boxes_of(trainer)
    trainer.teacher.register_forward_hook(lambda *_: pytest.fail("the teacher is asked"))
    found = losses_of(trainer, batch)
    labeled, label, [box] = batch["data"], batch["target"].long(), boxes
    with torch.no_grad():
        outputs = trainer.network(torch.where(box, labeled.roll(1, 0), labeled))
    expected = (plain_loss(outputs, label, ~box) + plain_loss(outputs, label.roll(1, 0), box)) / 2
    torch.testing.assert_close(found.supervised, expected, rtol=1e-4, atol=1e-4)
    assert found.unsupervised == 0 and found.shares.sum() == 0


def test_bcp_pretrains_for_its_fraction_of_the_training(tiny_2d):
    trainer = initialized(nnUNetTrainerBCP, tiny_2d, num_epochs=2, num_iterations_per_epoch=5, pretraining=0.3)
    pseudo = []
    for epoch in range(2):
        trainer.current_epoch = epoch
        trainer.on_train_epoch_start()
        pseudo += [trainer.train_step(random_batch(trainer))["curves"][1] > 0 for _ in range(5)]
    assert pseudo == [False] * 3 + [True] * 7


def test_boxes_of_bcp_have_two_thirds_of_each_side(tiny_2d):
    trainer = initialized(nnUNetTrainerBCP, tiny_2d)
    box = trainer._boxes(torch.zeros(50, 1, 32, 32))
    assert (box.sum([1, 2, 3]) == 21 * 21).all()
    assert len(torch.unique(box, dim=0)) > 25


@pytest.mark.parametrize("unlabeled", [1, 2, 5])
def test_bcp_takes_any_number_of_unlabeled_patches(unlabeled, tiny_2d):
    trainer = initialized(nnUNetTrainerBCP, tiny_2d, pretraining=0.0)
    batch = random_batch(trainer)
    batch["unlabeled"] = torch.randn(unlabeled, 1, 32, 32)
    sizes: list[int] = []
    trainer.network.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    assert math.isfinite(trainer.train_step(batch)["loss"])
    assert sizes == [2 * max(2, unlabeled)]


def test_bcp_may_keep_the_largest_component_of_the_pseudo_label(tiny_2d):
    trainer = initialized(nnUNetTrainerBCP, tiny_2d, pretraining=0.0, largest_component=True)
    labels: list[Tensor] = []
    own = trainer.pseudo_loss.forward
    trainer.pseudo_loss.forward = lambda outputs, label, mask: (labels.append(label), own(outputs, label, mask))[1]
    batch = random_batch(trainer)
    losses_of(trainer, batch)
    whole = trainer.teacher(batch["unlabeled"])[0].argmax(1, keepdim=True)
    kept = labels[2]
    assert torch.equal(kept[kept > 0], whole[kept > 0])
    assert 0 < (kept > 0).sum() < (whole > 0).sum()
