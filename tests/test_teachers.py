"""Mean Teacher and UA-MT against their definitions, and what all methods with a teacher share."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from nnunet_semi.trainers.nnUNetTrainerBCP import nnUNetTrainerBCP
from nnunet_semi.trainers.nnUNetTrainerMeanTeacher import nnUNetTrainerMeanTeacher, nnUNetTrainerUAMT
from nnunet_semi.trainers.nnUNetTrainerUniMatchV2 import nnUNetTrainerUniMatchV2
from tiny_trainer import losses_of, random_batch, undisturbed

METHODS = [nnUNetTrainerMeanTeacher, nnUNetTrainerUAMT, nnUNetTrainerBCP, nnUNetTrainerUniMatchV2]
REGIONS = {"background": 0, "whole": (1, 2), "core": 2}


def probability_of(logits: Tensor, regions: bool) -> Tensor:
    return logits.sigmoid() if regions else logits.softmax(1)


@pytest.mark.parametrize("cls", METHODS)
def test_the_teacher_gets_no_gradient_and_follows_the_student(cls, tiny_2d):
    trainer = undisturbed(cls, tiny_2d)
    trainer.teacher.n_averaged.fill_(5)
    before = {name: value.clone() for name, value in trainer.teacher.module.state_dict().items()}
    trainer.train_step(random_batch(trainer))
    assert all(parameter.grad is None for parameter in trainer.teacher.parameters())
    student = trainer.network.state_dict()
    for name, value in trainer.teacher.module.state_dict().items():
        torch.testing.assert_close(value, before[name] * 5 / 6 + student[name] / 6)


@pytest.mark.parametrize("cls", METHODS)
def test_the_student_sees_a_disturbed_view_and_the_teacher_does_not(cls, tiny_2d):
    trainer = undisturbed(cls, tiny_2d, pretraining=0.0, cutmix_p=0.0)
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
    trainer = undisturbed(cls, tiny_2d)
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
    trainer = undisturbed(nnUNetTrainerMeanTeacher, plans_file, enable_deep_supervision=deep)
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
    trainer = undisturbed(nnUNetTrainerMeanTeacher, tiny_2d)
    batch = random_batch(trainer)
    for epoch, expected in ((0, 0.1 * math.exp(-5)), (1, 0.1 * math.exp(-5 / 4))):
        trainer.current_epoch, trainer.iteration = epoch, 0
        output = trainer.train_step(batch)
        assert output["curves"][2] == pytest.approx(expected)
        assert output["loss"] == pytest.approx(output["curves"][0] + expected * output["curves"][1], rel=1e-5)


@pytest.mark.parametrize("labels", [None, REGIONS], ids=["classes", "regions"])
def test_uamt_equals_a_plain_reference(tiny, labels):
    plans_file = tiny(labels=labels) if labels else tiny()
    trainer = undisturbed(nnUNetTrainerUAMT, plans_file, enable_deep_supervision=False)
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
