"""Is everything in place? A fact per line, each with its remedy where something is wrong."""

from __future__ import annotations

from collections.abc import Iterator

from nnunet_semi.doctor.fact import Fact, as_json, as_line, summary
from nnunet_semi.doctor.folders import FOLDER_FACTS
from nnunet_semi.doctor.machine import MACHINE_FACTS
from nnunet_semi.doctor.software import SOFTWARE_FACTS

__all__ = ["Fact", "as_json", "as_line", "diagnose", "examine", "summary"]


def diagnose() -> list[Fact]:
    """Looks at software, discovery, folders and machine, in this order; changes nothing."""
    return list(examine())


def examine() -> Iterator[Fact]:
    """The facts one by one, as soon as each is known.

    A check that itself fails becomes a warning, so that the others are still reported.
    """
    for check in [*SOFTWARE_FACTS, *FOLDER_FACTS, *MACHINE_FACTS]:
        try:
            yield from check()
        except Exception as problem:
            yield Fact(check.__name__, "warn", f"could not be looked at: {type(problem).__name__}: {problem}")
