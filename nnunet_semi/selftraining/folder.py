"""The folder of a self-training: what it was started with and which steps are done, so that it can be killed."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

from nnunet_semi.errors import UserError, WrongUse
from nnunet_semi.selftraining.settings import Settings
from nnunet_semi.storage import write_json

STATE = "selftrain.json"


class RunFolder:
    """A self-training, begun or finished.

    Attributes:
        path: the folder.
        numbers: the dataset ids of the rounds.
        fold: the number of the fold in the datasets of the rounds.
    """

    def __init__(self, path: Path, settings: Settings, numbers: Sequence[int], fold: int) -> None:
        self.path, self.settings = path, settings
        self.numbers, self.fold = list(numbers), fold
        self._seconds: dict[str, float] = {}

    @property
    def exists(self) -> bool:
        """Whether it was begun."""
        return (self.path / STATE).is_file()

    def is_done(self, step: str) -> bool:
        """Whether a step was finished, now or in an earlier run."""
        return step in self._seconds

    def mark_done(self, step: str, seconds: float) -> None:
        """Notes that a step is finished."""
        self._seconds[step] = round(seconds, 1)
        self.write()

    def seconds(self, prefix: str) -> float:
        """What the finished steps whose names begin so have taken."""
        return sum(seconds for step, seconds in self._seconds.items() if step.startswith(prefix))

    def write(self) -> None:
        """Writes the state, whole."""
        write_json(
            self.path / STATE,
            {
                "settings": asdict(self.settings),
                "datasets": self.numbers,
                "fold": self.fold,
                "done": self._seconds,
            },
        )

    @classmethod
    def load(cls, path: Path, settings: Settings, number: int | None) -> RunFolder | None:
        """The self-training in a folder; None where there is none.

        Args:
            path: the folder.
            settings: what is asked for now.
            number: the id asked for the first round's dataset, if any.

        Raises:
            WrongUse: the folder holds a self-training with other settings; rules for what is to come may differ.
            UserError: its state cannot be read.
        """
        file = path / STATE
        if not file.is_file():
            return None
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            before, numbers, fold = dict(content["settings"]), list(content["datasets"]), int(content["fold"])
            done = dict(content["done"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{file} cannot be read ({error!r}); choose another folder with -o") from error
        wanted = asdict(settings)
        for name in {**wanted, **before}:
            if before.get(name) != wanted.get(name) and not _may_change(name, done):
                raise WrongUse(
                    f"{path} holds a self-training with {name} {_shown(before.get(name))}, but "
                    f"{_shown(wanted.get(name))} was asked for; give the same settings to go on with it, or another "
                    "folder with -o"
                )
        if number is not None and numbers[:1] != [number]:
            raise WrongUse(
                f"{path} holds a self-training whose first dataset has the id {numbers[0]}, but --id {number} was "
                "asked for; leave --id out to go on with it, or choose another folder with -o"
            )
        run = cls(path, settings, numbers, fold)
        run._seconds = done
        return run


def _may_change(setting: str, done: Iterable[str]) -> bool:
    """Rules may, or those that no case fulfils would be a dead end; what they chose before is kept with each round."""
    anytime = ("later", "exclude", "include")
    return setting in anytime or (setting == "first" and "round_1/select" not in done)


def _shown(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)
