"""The agreement of two networks on each case, on hand-made pseudo labels."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from nnunet_semi.consistency.agreement import NEVER, CaseAgreement, dice_scores, overlaps


def tracker(*cases: str, num_classes: int = 2) -> CaseAgreement:
    return CaseAgreement(cases, num_classes)


def counts(*classes: tuple[int, int, int]) -> np.ndarray:
    """Of one patch: |A|, |B| and |A ∩ B| of each class."""
    return np.array([classes], dtype=np.int64)


def settled(**scores: float) -> CaseAgreement:
    """A tracker whose cases have about these scores, in hundredths."""
    agreement = tracker(*scores, num_classes=1)
    for case, score in scores.items():
        agreement.add([case], counts((100, 100, round(100 * score))))
    agreement.settle()
    return agreement


def test_overlaps_count_voxels_of_classes_without_background() -> None:
    first = torch.tensor([[0, 1, 1, 2], [2, 2, 0, 0]]).reshape(2, 1, 2, 2)
    second = torch.tensor([[0, 1, 2, 2], [0, 0, 0, 0]]).reshape(2, 1, 2, 2)
    expected = [[[2, 1, 1], [1, 2, 1]], [[0, 0, 0], [2, 0, 0]]]
    assert overlaps(first, second, 3).tolist() == expected


def test_overlaps_of_regions_take_every_region() -> None:
    first = torch.tensor([[[True, True, False]], [[True, False, False]]]).reshape(1, 2, 1, 3)
    second = torch.tensor([[[True, False, True]], [[True, False, False]]]).reshape(1, 2, 1, 3)
    assert overlaps(first, second, 2).tolist() == [[[2, 2, 1], [1, 1, 1]]]


def test_a_score_is_the_mean_dice_of_the_classes_that_the_first_network_predicts() -> None:
    one_class_absent = counts((10, 30, 5), (0, 40, 0))
    assert dice_scores(one_class_absent)[0] == pytest.approx(2 * 5 / 40)
    both = counts((10, 30, 5), (8, 8, 8))
    assert dice_scores(both)[0] == pytest.approx((0.25 + 1) / 2)
    assert dice_scores(counts((0, 40, 0), (0, 0, 0)))[0] == 0


def test_the_dice_of_a_case_is_that_of_its_patches_together_in_any_order() -> None:
    patches = [counts((10, 10, 10), (0, 0, 0)), counts((30, 10, 0), (0, 0, 0)), counts((0, 0, 0), (4, 4, 2))]
    found = []
    for order in ((0, 1, 2), (2, 0, 1)):
        agreement = tracker("a", "b")
        agreement.add(["a"] * 3, np.concatenate([patches[index] for index in order]))
        agreement.settle()
        found.append(agreement.scores[0])
    assert found[0] == found[1] == pytest.approx((2 * 10 / 60 + 0.5) / 2)
    assert math.isnan(agreement.scores[1])


def test_the_most_certain_are_chosen_and_the_share_counts() -> None:
    agreement = settled(a=0.2, b=0.9, c=0.5, d=0.7)
    order = range(4)
    assert agreement.most_certain(0.25, order) == ["b"]
    assert agreement.most_certain(0.5, order) == ["b", "d"]
    assert agreement.most_certain(0.51, order) == ["b", "c", "d"]
    assert agreement.most_certain(1.0, order) == ["a", "b", "c", "d"]
    assert agreement.most_certain(0.0, order) == ["b"]  # never none


def test_a_larger_share_holds_the_smaller_one() -> None:
    random = np.random.default_rng(0)
    agreement = settled(**{f"case{number}": float(random.uniform()) for number in range(30)})
    chosen = [set(agreement.most_certain(share, range(30))) for share in np.linspace(0, 1, 31)]
    assert all(small <= large for small, large in zip(chosen[:-1], chosen[1:], strict=True))
    assert [len(part) for part in chosen] == [1, *range(1, 31)]


def test_ties_are_decided_by_the_order_given_and_not_by_name() -> None:
    agreement = settled(a=0.5, b=0.5, c=0.5, d=0.1)
    assert agreement.most_certain(0.25, [2, 1, 0, 3]) == ["c"]
    assert agreement.most_certain(0.25, [2, 0, 1, 3]) == ["b"]


def test_cases_never_seen_come_last_and_empty_ones_before_them() -> None:
    agreement = tracker("new", "empty", "good", num_classes=1)
    agreement.add(["empty", "good"], np.concatenate([counts((0, 5, 0)), counts((5, 5, 5))]))
    agreement.settle()
    assert agreement.most_certain(1 / 3, range(3)) == ["good"]
    assert agreement.most_certain(2 / 3, range(3)) == ["empty", "good"]


def test_a_case_not_seen_keeps_its_score_and_a_seen_one_forgets_the_period_before() -> None:
    agreement = settled(a=0.3, b=0.8)
    agreement.add(["a"], counts((100, 100, 60)))
    agreement.settle()
    assert agreement.scores.tolist() == pytest.approx([0.6, 0.8])
    assert agreement.seen.tolist() == [1, 0]


def test_a_few_patches_that_miss_the_foreground_say_nothing_of_a_case_and_many_do() -> None:
    agreement = settled(few=0.8, many=0.8, one_sided=0.8)
    agreement.add(["few"] * 2 + ["many"] * 3, np.repeat(counts((0, 0, 0)), 5, axis=0))
    agreement.add(["one_sided"], counts((0, 9, 0)))  # the networks disagree on what is there
    agreement.settle(few=2)
    assert dict(zip(agreement.cases, agreement.scores.tolist(), strict=True)) == {
        "few": pytest.approx(0.8),
        "one_sided": 0.0,
        "many": 0.0,
    }
    assert agreement.seen.tolist() == [1, 1, 1]
    blank = tracker("blank")
    blank.add(["blank"], counts((0, 0, 0), (0, 0, 0)))
    blank.settle(few=2)
    assert blank.scores.tolist() == [0.0]


def test_those_not_seen_for_longest_are_looked_at_first() -> None:
    agreement = tracker("a", "b", "c", "d", num_classes=1)
    agreement.add(["d", "b"], np.concatenate([counts((1, 1, 1))] * 2))
    agreement.settle()
    agreement.add(["b", "b"], np.concatenate([counts((1, 1, 1))] * 2))
    agreement.settle()
    agreement.add(["c"], counts((1, 1, 1)))
    assert list(agreement.unseen(2).items()) == [("a", 2), ("c", 1), ("d", 2), ("b", 2)]
    assert "c" not in agreement.unseen(1)


def test_the_state_is_whole_and_plain_and_survives_changed_cases() -> None:
    agreement = settled(a=0.3, b=0.8)
    agreement.add(["b"], counts((7, 6, 5)))
    state = agreement.state()
    assert {type(value) for value in state["scores"].values()} == {float}
    again = tracker("b", "a", num_classes=1)
    again.load_state(state)
    assert again.state() == state
    other = tracker("b", "z", num_classes=1)
    other.load_state(state)
    assert other.patches.tolist() == [1, 0]
    assert other.scores[0] == pytest.approx(0.8) and math.isnan(other.scores[1])
    assert other.seen.tolist() == [0, NEVER]
