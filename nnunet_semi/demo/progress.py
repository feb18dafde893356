"""How far a training is, from what nnU-Net writes: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable

from tqdm import tqdm

_EPOCH_STARTED = re.compile(r"Epoch (\d+) *\n")
_EPOCH_DONE = re.compile(r"Epoch time: ")
_SECONDS_BETWEEN_LINES = 15


class TrainingProgress:
    """Counts the epochs in the output of nnUNetv2_train; a context manager.

    Args:
        epochs: how many there will be.
        report: takes a line of text, where there is no terminal for a bar.
    """

    def __init__(self, epochs: int, report: Callable[[str], None]) -> None:
        self.epochs = epochs
        self.report = report
        self.done: int | None = None  # epochs; unknown until the first one starts, since a training may continue
        self._text = ""
        self._bar = tqdm(total=epochs, unit="epoch", leave=False, disable=not sys.stderr.isatty())

    def __enter__(self) -> TrainingProgress:
        return self

    def __exit__(self, *problem: object) -> None:
        self._bar.close()

    def watch(self, text: str) -> None:
        """Takes further output of the training."""
        self._text += text
        if self.done is None and (started := _EPOCH_STARTED.search(self._text)):
            self.done = self._first = int(started.group(1))
            self._started = self._told = time.monotonic()
            self._bar.update(self.done)
        if self.done is None:
            return
        done = self._first + len(_EPOCH_DONE.findall(self._text))
        if done == self.done:
            return
        self._bar.update(done - self.done)
        self.done = done
        if self._bar.disable and done < self.epochs:
            self._tell(done)

    def _tell(self, done: int) -> None:
        now = time.monotonic()
        if now - self._told >= _SECONDS_BETWEEN_LINES:
            left = (now - self._started) / (done - self._first) * (self.epochs - done)
            self.report(f"    epoch {done} of {self.epochs} done, about {left:.0f} s left")
            self._told = now
