"""Copy-paste between labeled and unlabeled patches: BCP, and the same without pseudo labels, against definitions."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from nnunet_semi.curves import SHARES
from nnunet_semi.perturbation.copy_paste import draw_boxes
from nnunet_semi.trainers import nnUNetTrainerBCP as bcp_module
from nnunet_semi.trainers import nnUNetTrainerCopyPaste as copy_paste_module
from nnunet_semi.trainers.nnUNetTrainerBCP import nnUNetTrainerBCP
from nnunet_semi.trainers.nnUNetTrainerCopyPaste import nnUNetTrainerCopyPaste
from tiny_trainer import losses_of, random_batch, undisturbed

REGIONS_AND_IGNORE = {"background": 0, "whole": (1, 2), "core": 2, "ignore": 3}
IGNORE = {"background": 0, "disc": 1, "square": 2, "ignore": 3}
PLAIN = {"enable_deep_supervision": False, "batch_size": 3}
ALL_BCP = {"pretraining": 0.0, **PLAIN}


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


@pytest.fixture
def boxes(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The boxes that are drawn from now on."""
    drawn: list[Tensor] = []

    def draw(images: Tensor, side: float) -> Tensor:
        drawn.append(draw_boxes(images, side))
        return drawn[-1]

    for module in (bcp_module, copy_paste_module):
        monkeypatch.setattr(module, "draw_boxes", draw)
    return drawn


@pytest.mark.parametrize("labels", [None, IGNORE], ids=["all known", "ignore label"])
def test_bcp_equals_a_plain_reference(tiny, labels, boxes):
    trainer = undisturbed(nnUNetTrainerBCP, tiny(labels=labels) if labels else tiny(), **ALL_BCP)
    trainer.pseudo_loss.dice.batch_dice = True
    batch = random_batch(trainer)
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


def test_bcp_pretrains_on_labeled_patches_pasted_into_each_other(tiny_2d, boxes):
    trainer = undisturbed(nnUNetTrainerBCP, tiny_2d, **{**ALL_BCP, "pretraining": 0.5})
    trainer.pseudo_loss.dice.batch_dice = True
    batch = random_batch(trainer)
    trainer.teacher.register_forward_hook(lambda *_: pytest.fail("the teacher is asked"))
    found = losses_of(trainer, batch)
    labeled, label, [box] = batch["data"], batch["target"].long(), boxes
    with torch.no_grad():
        outputs = trainer.network(torch.where(box, labeled.roll(1, 0), labeled))
    expected = (plain_loss(outputs, label, ~box) + plain_loss(outputs, label.roll(1, 0), box)) / 2
    torch.testing.assert_close(found.supervised, expected, rtol=1e-4, atol=1e-4)
    assert found.unsupervised == 0 and found.shares.sum() == 0


def test_bcp_pretrains_for_its_fraction_of_the_training(tiny_2d):
    trainer = undisturbed(nnUNetTrainerBCP, tiny_2d, num_epochs=2, num_iterations_per_epoch=5, pretraining=0.3)
    pseudo = []
    for epoch in range(2):
        trainer.current_epoch = epoch
        trainer.on_train_epoch_start()
        pseudo += [trainer.train_step(random_batch(trainer))["curves"][1] > 0 for _ in range(5)]
    assert pseudo == [False] * 3 + [True] * 7


@pytest.mark.parametrize("cls", [nnUNetTrainerBCP, nnUNetTrainerCopyPaste])
def test_boxes_have_two_thirds_of_each_side(cls):
    box = draw_boxes(torch.zeros(50, 1, 32, 32), cls.box_side)
    assert (box.sum([1, 2, 3]) == 21 * 21).all()
    assert len(torch.unique(box, dim=0)) > 25


@pytest.mark.parametrize("unlabeled", [1, 2, 5])
def test_bcp_takes_any_number_of_unlabeled_patches(unlabeled, tiny_2d):
    trainer = undisturbed(nnUNetTrainerBCP, tiny_2d, pretraining=0.0)
    batch = random_batch(trainer)
    batch["unlabeled"] = torch.randn(unlabeled, 1, 32, 32)
    sizes: list[int] = []
    trainer.network.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    assert math.isfinite(trainer.train_step(batch)["loss"])
    assert sizes == [2 * max(2, unlabeled)]


def test_bcp_may_keep_the_largest_component_of_the_pseudo_label(tiny_2d):
    trainer = undisturbed(nnUNetTrainerBCP, tiny_2d, pretraining=0.0, largest_component=True)
    labels: list[Tensor] = []
    own = trainer.pseudo_loss.forward
    trainer.pseudo_loss.forward = lambda outputs, label, mask: (labels.append(label), own(outputs, label, mask))[1]
    batch = random_batch(trainer)
    losses_of(trainer, batch)
    whole = trainer.teacher(batch["unlabeled"])[0].argmax(1, keepdim=True)
    kept = labels[2]
    assert torch.equal(kept[kept > 0], whole[kept > 0])
    assert 0 < (kept > 0).sum() < (whole > 0).sum()


# --- without pseudo labels ---


@pytest.mark.parametrize("labels", [None, IGNORE], ids=["all known", "ignore label"])
def test_copy_paste_equals_a_plain_reference(tiny, labels, boxes):
    trainer = undisturbed(nnUNetTrainerCopyPaste, tiny(labels=labels) if labels else tiny(), **PLAIN)
    trainer.pseudo_loss.dice.batch_dice = True
    batch = random_batch(trainer)
    if labels:
        batch["target"][:, :, :9] = 3
    torch.manual_seed(4)
    found = losses_of(trainer, batch)
    torch.manual_seed(4)
    outward = torch.rand(3, 1, 1, 1) < 0.5
    assert outward.any() and not outward.all()
    labeled, unlabeled, [box] = batch["data"], batch["unlabeled"], boxes
    own = box == outward
    label = batch["target"].long()
    with torch.no_grad():
        supervised = trainer.loss(trainer.network(labeled), batch["target"])
        mixed = plain_loss(trainer.network(torch.where(own, labeled, unlabeled)), label, own & (label != 3))
    torch.testing.assert_close(found.supervised, supervised, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.unsupervised, mixed, rtol=1e-4, atol=1e-4)
    output = trainer.train_step(batch)
    assert output["loss"] == pytest.approx((output["curves"][0] + output["curves"][1]) / 2, rel=1e-5)


@pytest.mark.parametrize("unlabeled", [1, 3, 40])
@pytest.mark.parametrize("deep", [True, False])
def test_the_labels_of_a_mixed_patch_are_known_where_it_is_of_a_labeled_one(deep, unlabeled, tiny):
    plans_file = tiny(labels=REGIONS_AND_IGNORE)
    trainer = undisturbed(nnUNetTrainerCopyPaste, plans_file, enable_deep_supervision=deep, batch_size=20)
    generator = torch.Generator().manual_seed(0)
    labeled = 1 + torch.rand(20, 1, 32, 32, generator=generator)
    target = torch.stack([labeled > 1.3, labeled > 1.6, labeled > 1.9], 2)[:, 0]
    foreign = -1 - torch.rand(unlabeled, 1, 32, 32, generator=generator)
    mixed, label, mask = trainer.mixed(labeled, [target] if deep else target, foreign)
    assert len(mixed) == max(20, unlabeled)
    assert torch.equal(mask, (mixed > 0) & (mixed <= 1.9))
    assert torch.equal(label[:, :1][mask], mixed[mask] > 1.3) and torch.equal(label[:, 1:][mask], mixed[mask] > 1.6)
    counts = (mixed > 0).sum([1, 2, 3]).tolist()
    assert set(counts) == {21 * 21, 32 * 32 - 21 * 21}  # boxes of labeled patches, and labeled patches with a box
    order = torch.arange(len(mixed))
    whole, other = labeled[order % 20], foreign[order % unlabeled]
    assert torch.equal(mixed, torch.where(mixed > 0, whole, other))


@pytest.mark.parametrize("cls", [nnUNetTrainerBCP, nnUNetTrainerCopyPaste])
def test_predictions_that_shrink_are_no_pseudo_labels_that_do(cls, tiny_2d):
    trainer = undisturbed(cls, tiny_2d)
    for epoch, square in enumerate([0.05, 0.05, 0.05, 0.0]):
        trainer.logger.log(SHARES, [0.95 - square, 0.05, square], epoch)
    assert len(trainer.warnings()) == (cls is nnUNetTrainerBCP)
