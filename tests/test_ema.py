"""The moving average of a network, against its definition."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from nnunet_semi.consistency.ema import MovingAverage


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Dropout(0.5))


def trained(student: nn.Module, steps: int) -> Iterator[dict[str, torch.Tensor]]:
    """The student's weights and buffers after each of some steps that change both."""
    for _ in range(steps):
        student(torch.rand(2, 1, 8, 8))
        with torch.no_grad():
            for parameter in student.parameters():
                parameter.add_(torch.randn_like(parameter))
        yield copy.deepcopy(student.state_dict())


@pytest.mark.parametrize("alpha", [0.99, 0.6, 0.0])
def test_weights_and_buffers_follow_the_definition(alpha):
    student = network()
    teacher = MovingAverage(student, alpha)
    expected = {}
    for count, state in enumerate(trained(student, 6)):
        teacher.update_parameters(student)
        decay = min(1 - 1 / (count + 1), alpha)
        for name, value in state.items():
            before = expected.get(name, torch.zeros_like(value))
            expected[name] = (decay * before + (1 - decay) * value).to(value.dtype)
    assert {"1.running_mean", "1.running_var", "0.weight"} <= expected.keys()
    for name, value in teacher.module.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(value, expected[name])
    assert teacher.updates == 6


def test_short_trainings_are_averaged_evenly():
    student = network()
    teacher = MovingAverage(student, 0.99)
    weights = []
    for state in trained(student, 5):
        teacher.update_parameters(student)
        weights.append(state["0.weight"])
    torch.testing.assert_close(teacher.module.state_dict()["0.weight"], torch.stack(weights).mean(0))


def test_the_teacher_needs_no_gradient_and_stays_in_evaluation_mode():
    teacher = MovingAverage(network(), 0.99).train()
    assert not any(module.training for module in teacher.modules())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


def test_a_restored_teacher_goes_on_bit_for_bit():
    student = network()
    teacher = MovingAverage(student, 0.99)
    for _ in trained(student, 3):
        teacher.update_parameters(student)
    other = MovingAverage(network(), 0.99)
    other.restore(copy.deepcopy(teacher.module.state_dict()), teacher.updates)
    for _ in trained(student, 2):
        teacher.update_parameters(student)
        other.update_parameters(student)
    for name, value in teacher.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


def test_the_student_is_not_changed():
    student = network()
    before = copy.deepcopy(student.state_dict())
    MovingAverage(student, 0.5).update_parameters(student)
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())
    assert student.training and all(parameter.requires_grad for parameter in student.parameters())
