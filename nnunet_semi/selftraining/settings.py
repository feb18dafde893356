"""What a self-training is asked to do: rounds, trainers of each round, and rules of selection."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from nnunet_semi.errors import WrongUse
from nnunet_semi.filtering.rules import Rules

_SHARE, _COUNT = re.compile(r"\d*\.?\d+"), re.compile(r"0*[1-9]\d*")
RULES = {"top": _SHARE, "threshold": _SHARE, "max": _COUNT, "components": _COUNT}  # what `nnunet_semi select` takes
FLAGS = ("complete",)  # without
DEFAULT_TRAINER = "nnUNetTrainerKeepCheckpoints"
DEFAULT_EPOCHS = (1000, 100)  # of the first training, and of each round after it
_EPOCHS = re.compile(r"_\d+epochs?(?=_|$)")


@dataclass(frozen=True)
class Settings:
    """What the result of a self-training depends on.

    Attributes:
        dataset: full name of the original.
        configuration: for all rounds.
        plans: name of the plans file.
        fold: of the original, a number or "all".
        rounds: trainings on labeled and pseudo-labeled cases, after the first one.
        trainers: class name of the first training and of each round, rounds + 1 of them.
        first: rules by which the first selection is made, such as ["top:.5"].
        later: rules of all further ones.
        by: estimator of `nnunet_semi score`.
        checkpoint: whose predictions are the pseudo labels.
        warm_start: begin each round with the weights of the one before.
        stop_early: end after the first round that does not improve validation.
        skip_bad: go without unlabeled images that cannot be used.
        exclude: file with cases that no round may use, as a person screened them; None for none.
        include: file with the only cases that a round may use; None for all.
    """

    dataset: str
    configuration: str
    plans: str
    fold: int | str
    rounds: int
    trainers: list[str]
    first: list[str]
    later: list[str]
    by: str
    checkpoint: str
    warm_start: bool
    stop_early: bool
    skip_bad: bool
    exclude: str | None = None
    include: str | None = None

    def rules(self, number: int) -> list[str]:
        """The options of `nnunet_semi select` before round `number`, which counts from 1."""
        return [*select_options(self.first if number == 1 else self.later), *self.lists]

    @property
    def lists(self) -> list[str]:
        """A person's lists as options of `nnunet_semi select`."""
        lists = {"--exclude": self.exclude, "--include": self.include}
        return [word for flag, path in lists.items() if path is not None for word in (flag, path)]


def parse_rules(text: str) -> list[str]:
    """Rules such as "threshold:.9,complete", each of which a case must fulfil.

    Raises:
        WrongUse: one of them is none, or `nnunet_semi select` would refuse it after the training.
    """
    rules = [rule.strip() for rule in text.split(",")]
    for rule in rules:
        name, _, value = rule.partition(":")
        if rule not in FLAGS and (name not in RULES or not RULES[name].fullmatch(value)):
            raise WrongUse(
                f"got the rule {rule!r} in {text!r}; expected some of top:SHARE, threshold:SCORE, max:N, components:N "
                "(N from 1 on) and complete, with commas between them"
            )
    names = [rule.partition(":")[0] for rule in rules]
    if len(set(names)) < len(names):
        raise WrongUse(f"got a rule twice in {text!r}; give each at most once")
    values = {name: float(value) for name, colon, value in (rule.partition(":") for rule in rules) if colon}
    Rules(top=values.get("top"), threshold=values.get("threshold"), complete=True)  # says which value cannot be
    return rules


def select_options(rules: Sequence[str]) -> list[str]:
    """The same as options of `nnunet_semi select`: --threshold .9 --complete."""
    return [word for rule in rules for word in _option(*rule.partition(":"))]


def _option(name: str, colon: str, value: str) -> list[str]:
    return [f"--{name}", value] if colon else [f"--{name}"]


def trainer_names(trainer: str, epochs: Sequence[int] | None, rounds: int) -> list[str]:
    """The trainer's class name of the first training and of each round, with its length.

    Args:
        trainer: may have endings, such as _seed0, and also its length if `epochs` does not give it.
        epochs: of the first training and of the rounds after it; the last number holds for all that follow.
        rounds: after the first training.

    Raises:
        WrongUse: the length is given twice, or below 1, or for more rounds than there are.
    """
    given = _EPOCHS.search(trainer)
    if given and epochs is None:
        return [trainer] * (rounds + 1)
    if given:
        raise WrongUse(
            f"got the trainer {trainer}, whose name says how long to train, and --epochs; leave one of them out"
        )
    lengths = list(DEFAULT_EPOCHS if epochs is None else epochs)
    if not lengths or min(lengths) < 1 or len(lengths) > rounds + 1:
        raise WrongUse(
            f"got --epochs {','.join(map(str, lengths))}; expected 1 to {rounds + 1} numbers above 0: of the "
            "first training, and of the rounds after it, the last one for all that follow"
        )
    lengths += lengths[-1:] * (rounds + 1 - len(lengths))
    base, *endings = re.split(r"(?=_(?:\d+iters?|seed\d+)(?:_|$))", trainer)
    return [f"{base}_{length}epochs{''.join(endings)}" for length in lengths]
