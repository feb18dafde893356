"""Whether torch.compile works on this machine, found out by using it."""

from __future__ import annotations

from functools import cache

import torch
from torch import nn


@cache
def compile_problem(device: torch.device) -> str | None:
    """Why a network cannot be compiled for a device, in the first line of the error; None where it can.

    One small network goes forward and backward, so that every part is used: tracing, code generation and the compiler
    of the system. It takes seconds, once in a process.
    """
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.InstanceNorm2d(2), nn.LeakyReLU()).to(device)
    try:
        torch.compile(network)(torch.zeros(1, 1, 8, 8, device=device)).sum().backward()
    except Exception as problem:  # what is missing decides which of many it is
        torch._dynamo.reset()
        lines = (line.strip() for line in str(problem).splitlines())
        return next(filter(None, lines), type(problem).__name__)
    return None
