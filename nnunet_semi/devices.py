"""The device to compute on."""

from __future__ import annotations

from nnunet_semi.errors import EnvironmentNotReady


def usable_device(name: str | None) -> str:
    """The device asked for, or for None cuda if there is one and else cpu.

    Raises:
        EnvironmentNotReady: PyTorch cannot use it.
    """
    import torch

    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    name = name or ("cuda" if there["cuda"] else "cpu")
    if not there.get(name, True):
        raise EnvironmentNotReady(f"got -device {name}, but PyTorch sees no GPU of that kind; pass -device cpu")
    return name
