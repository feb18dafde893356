"""Trainer classes made from their names: nnUNetTrainerCPS_100epochs_50iters_seed3 needs no class written by hand."""

from __future__ import annotations

import contextlib
import importlib
import io
import re
from collections.abc import Iterator
from typing import Any

from nnunet_semi.registry import TRAINERS

_SUFFIX = re.compile(
    r"_(?:(?P<epochs>\d+)epochs?|(?P<iterations>\d+)iters?|seed(?P<seed>\d+)|(?P<mirroring>nomirror))$"
)
_READABLE = {"epochs": "_Nepochs", "iterations": "_Miters", "seed": "_seedK", "mirroring": "_nomirror"}
_made: dict[str, type] = {}


class NotAVariant(LookupError):
    """The name is not that of a variant; the message, if any, says what is wrong with its endings."""


def variant(name: str) -> type:
    """The trainer class called `name`, made from its base and its endings; the same object for the same name.

    Endings, in any order and each at most once: `_Nepochs`, `_Miters` (training iterations per epoch; validation
    iterations are a fifth of them, as in nnU-Net), `_seedK` (of every random source) and `_nomirror`.

    Raises:
        NotAVariant: no such ending, no such base, a zero, or an ending given twice.
    """
    if name not in _made:
        base, settings = _base_and_settings(name)
        content = {**_attributes(settings), "__module__": __name__, "__doc__": base.__doc__}
        _made[name] = type(name, _bases(base), content)
    return _made[name]


def _base_and_settings(name: str) -> tuple[type, dict[str, int]]:
    """The base that exists, with as many endings taken off as possible: nnUNetTrainerBenchmark_5epochs is one."""
    readings = parse(name)
    for base_name, settings in readings:
        if (base := _find_base(base_name)) is not None:
            return base, settings
    from nnunet_semi.discovery.suggestions import explain_unknown

    raise NotAVariant(explain_unknown(readings[0][0]))


def registered(name: str) -> type:
    """The trainer class that the registry knows by this name."""
    return getattr(importlib.import_module(TRAINERS[name][0]), name)


def parse(name: str) -> list[tuple[str, dict[str, int]]]:
    """What a name may mean: its base and the settings that its endings give, all endings taken off first.

    Settings are `epochs`, `iterations`, `seed` and `mirroring`, the last one always 0.

    Raises:
        NotAVariant: see `variant`; what is wrong is only said where there are endings.
    """
    readings: list[tuple[str, dict[str, int]]] = []
    settings: dict[str, int] = {}
    for kind, number, base in _suffixes(name):
        if kind in settings:
            raise NotAVariant(f"{name} carries {_READABLE[kind]} twice; give it once.")
        if number == 0 and kind in ("epochs", "iterations"):
            raise NotAVariant(f"{name} asks for 0 {kind}; give {_READABLE[kind]} a number of 1 or more.")
        settings = {**settings, kind: number}
        readings.insert(0, (base, settings))
    if not readings:
        raise NotAVariant
    return readings


def _suffixes(name: str) -> Iterator[tuple[str, int, str]]:
    """Kind and number of each suffix, from the right, and what stands before it."""
    while found := _SUFFIX.search(name):
        kind = found.lastgroup or ""
        name = name[: found.start()]
        yield kind, 0 if kind == "mirroring" else int(found.group(kind)), name


def _find_base(name: str) -> type | None:
    """A registered trainer, or one that nnU-Net finds in its own package or in the user's folders."""
    if name in TRAINERS:
        return registered(name)
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            return recursive_find_trainer_class_by_name(name)
    except RuntimeError as problem:
        if "Could not find requested nnunet trainer" not in str(problem):
            raise
        return None


def _bases(base: type) -> tuple[type, ...]:
    """PluginTrainer reads the attributes of a variant, so it comes first, unless it is among the ancestors already."""
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    from nnunet_semi.plugin_trainer import PluginTrainer

    if issubclass(base, PluginTrainer):
        return (base,)
    return (PluginTrainer,) if base is nnUNetTrainer else (PluginTrainer, base)


def _attributes(settings: dict[str, int]) -> dict[str, Any]:
    """The class attributes that PluginTrainer reads."""
    attributes = {}
    if "epochs" in settings:
        attributes["num_epochs"] = settings["epochs"]
    if "iterations" in settings:
        attributes["num_iterations_per_epoch"] = settings["iterations"]
        attributes["num_val_iterations_per_epoch"] = max(1, round(settings["iterations"] / 5))
    if "seed" in settings:
        attributes["seed"] = settings["seed"]
    if "mirroring" in settings:
        attributes["allow_mirroring"] = False
    return attributes


def __getattr__(name: str) -> type:
    """Makes the class anew where a pickle names it: in a spawned process, or one forked from a server."""
    try:
        return variant(name)
    except NotAVariant:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
