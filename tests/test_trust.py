"""How far pseudo labels are trusted, against the definition."""

from __future__ import annotations

import pytest
import torch

from nnunet_semi.consistency.trust import Trust


def after(
    *stretches: tuple[int, list[float]],
    kept: list[float] | None = None,
    labeled: list[float] | None = None,
    regions: bool = False,
) -> Trust:
    """A trust that has seen these shares for so many steps, one stretch after the other."""
    number = len(stretches[0][1])
    trust = Trust(number, regions)
    for steps, shares in stretches:
        for _ in range(steps):
            trust.update(
                torch.tensor(shares),
                None if kept is None else torch.tensor(kept),
                torch.full((number,), 1 / number) if labeled is None else torch.tensor(labeled),
            )
    return trust


def test_it_follows_the_definition():
    generator = torch.Generator().manual_seed(0)
    falling = torch.cat([torch.ones(300), torch.linspace(1, 0.35, 200), torch.linspace(0.35, 1.1, 500)])
    foreground = 0.2 * falling * (0.7 + 0.6 * torch.rand(1000, generator=generator))
    labels = 0.17 * (0.9 + 0.2 * torch.rand(1000, generator=generator))
    parts = torch.rand((1000, 2), generator=generator)
    trust = Trust(3)
    recent, average, squares, labeled, largest, held, between, capped = 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0, 0
    for step, (value, label, part) in enumerate(zip(foreground.tolist(), labels.tolist(), parts, strict=True), 1):
        shares = torch.tensor([1 - value, *(value * part / part.sum()).tolist()])
        trust.update(shares, None, torch.tensor([1 - label, label / 4, label * 3 / 4]))
        recent += (value - recent) / min(step, 50)
        average += (value - average) / min(step, 500)
        squares += (value**2 - squares) / min(step, 500)
        labeled += (label - labeled) / min(step, 500)
        spread = max(squares - average**2, 0) ** 0.5 / average
        if step >= 50:
            largest = max(largest, average * (1 - 3 * spread / min(step, 1000) ** 0.5))
            left = recent * (1 + 3 * spread / min(step, 100) ** 0.5) / min(largest, labeled)
            held = min(min(max((left - 0.5) / 0.25, 0), 1), held + 1 / 1000)
        assert trust().item() == pytest.approx(held, abs=1e-3)
        between += 0 < held < 1
        capped += labeled < largest
    assert between > 300 and 200 < capped < 1000


def test_a_collapse_stops_pseudo_labels_within_150_steps_and_they_come_back_slowly():
    """As in CPS with one patient of ACDC: all classes shrink together, from 2.3 % to .6 % within 150 steps."""
    trust = after((200, [0.977, 0.015, 0.008]), (150, [0.991, 0.005, 0.004]))
    assert trust() == 0
    for _ in range(300):
        trust.update(torch.tensor([0.97, 0.02, 0.01]), None, torch.tensor([0.95, 0.03, 0.02]))
    assert 0.15 < trust() < 0.3
    for _ in range(1000):
        trust.update(torch.tensor([0.97, 0.02, 0.01]), None, torch.tensor([0.95, 0.03, 0.02]))
    assert trust() == 1


def test_a_class_that_gives_voxels_to_another_one_is_no_collapse():
    assert after((200, [0.97, 0.03, 0.0]), (200, [0.97, 0.01, 0.02]))() == 1


def test_pseudo_labels_that_shrink_to_what_labeled_patches_hold_are_no_collapse():
    assert after((500, [0.93, 0.07]), (200, [0.97, 0.03]), labeled=[0.97, 0.03])() == 1
    assert after((500, [0.93, 0.07]), (200, [0.97, 0.03]), labeled=[0.93, 0.07])() == 0


def test_regions_have_no_background():
    assert after((200, [0.4, 0.2]), (200, [0.1, 0.05]), regions=True)() == 0
    assert after((200, [0.4, 0.2]), (200, [0.1, 0.2]))() == 1


@pytest.mark.parametrize(
    ("kept", "expected"), [([0.9, 0.1], 1), ([0.9, 0.01], 1), ([0.9, 0.004], 0.4), ([0.9, 0.0], 0)]
)
def test_a_class_of_which_too_little_counts_lowers_it(kept, expected):
    assert after((20, [0.9, 0.1]), kept=kept)().item() == pytest.approx(expected, abs=1e-4)


def test_a_class_that_was_never_seen_is_not_waited_for():
    assert after((60, [0.9, 0.1, 0.0]), kept=[0.9, 0.1, 0.0])() == 1
    assert after((60, [1.0, 0.0]))() == 1
    assert after((60, [0.9, 0.1]), labeled=[1.0, 0.0])() == 1
    assert Trust(3)() == 1


@pytest.mark.parametrize(("patches", "least"), [(0.5, 0.99), (0.1, 0.9), (0.05, 0.75)])
def test_a_structure_in_few_patches_is_no_collapse(patches, least):
    """Two patches per step, of which so many hold 2 % of it: chance is no collapse."""
    generator = torch.Generator().manual_seed(0)
    trust, factors = Trust(2), []
    for _ in range(5000):
        share = (torch.rand(2, generator=generator) < patches).float().mean() * 0.02
        trust.update(torch.stack([1 - share, share]), None, torch.tensor([0.98, 0.02]))
        factors.append(trust().item())
    assert sum(factors) / len(factors) > least


def test_its_state_is_what_it_continues_from():
    trust = after((70, [0.9, 0.1]), (60, [0.96, 0.04]))
    other = Trust(2)
    other.load_state_dict(trust.state_dict())
    for each in (trust, other):
        each.update(torch.tensor([0.99, 0.01]), None, torch.tensor([0.9, 0.1]))
    assert torch.equal(trust(), other()) and 0 < trust() < 1
