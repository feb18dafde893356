"""Types and flags that several verbs of the command line share."""

from __future__ import annotations

import argparse
import math
from argparse import ArgumentParser
from collections.abc import Callable, Sequence
from pathlib import Path


def at_least(least: int) -> Callable[[str], int]:
    """An argparse type: a whole number that is not too small."""

    def number(text: str) -> int:
        value = int(text) if text.strip().isdigit() else least - 1
        if value < least:
            raise argparse.ArgumentTypeError(f"got {text!r}; expected a whole number of {least} or more")
        return value

    return number


def above_zero(text: str) -> float:
    """An argparse type: a finite number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"got {text!r}; expected a number above 0")
    return value


def probability(text: str) -> float:
    """An argparse type: a number from 0 to 1."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"got {text!r}; expected a number from 0 to 1")
    return value


def some_of(names: Sequence[str]) -> Callable[[str], tuple[str, ...]]:
    """An argparse type: some of these names, with commas between them."""

    def chosen(text: str) -> tuple[str, ...]:
        found = tuple(text.split(","))
        if not set(found) <= set(names):
            raise argparse.ArgumentTypeError(f"got {text!r}; expected some of {','.join(names)}")
        return found

    return chosen


def add_json(parser: ArgumentParser) -> None:
    """--json"""
    parser.add_argument("--json", action="store_true", help="print JSON for a script")


def add_output(parser: ArgumentParser, metavar: str, makes: str, required: bool = False) -> None:
    """-o and --overwrite"""
    parser.add_argument("-o", dest="output", metavar=metavar, type=Path, required=required, help=makes)
    parser.add_argument("--overwrite", action="store_true", help="replace files that are there")


def add_processes(parser: ArgumentParser) -> None:
    """-np"""
    parser.add_argument("-np", dest="processes", metavar="N", type=at_least(1), help="processes; default: by the cores")


def fold(text: str) -> int | str:
    """An argparse type: a fold as nnU-Net names it."""
    return "all" if text == "all" else at_least(0)(text)


def add_dataset(parser: ArgumentParser, several: bool = False) -> None:
    """-d"""
    parser.add_argument(
        "-d", dest="dataset", metavar="ID", required=True, nargs="+" if several else None, help="dataset id or name"
    )


def add_plans(parser: ArgumentParser) -> None:
    """-p"""
    parser.add_argument("-p", dest="plans", metavar="PLANS", default="nnUNetPlans", help="plans identifier")


def add_configuration(parser: ArgumentParser, what: str = "configuration") -> None:
    """-c"""
    parser.add_argument("-c", dest="configuration", metavar="CONFIG", required=True, help=what)


def add_trainer(parser: ArgumentParser, default: str) -> None:
    """-tr"""
    parser.add_argument("-tr", dest="trainer", metavar="TRAINER", default=default, help="trainer class name")


def add_model(parser: ArgumentParser, trainer: str, folds: str = "folds, or all") -> None:
    """-d, -c, -tr, -p and -f of a trained model"""
    add_dataset(parser)
    add_configuration(parser)
    add_trainer(parser, trainer)
    add_plans(parser)
    parser.add_argument(
        "-f", dest="folds", metavar="FOLD", nargs="+", type=fold, default=[0], help=f"{folds}; default: 0"
    )


def add_checkpoint(parser: ArgumentParser, what: str = "checkpoint file") -> None:
    """-chk"""
    parser.add_argument("-chk", dest="checkpoint", metavar="NAME", default="checkpoint_final.pth", help=what)


def add_device(parser: ArgumentParser) -> None:
    """-device"""
    parser.add_argument("-device", choices=["cpu", "cuda", "mps"], help="default: cuda if there is one")
