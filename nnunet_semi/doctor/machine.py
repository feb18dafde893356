"""Facts on the machine: memory, shared memory, compilation, and cores against workers."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from nnunet_semi.cores import usable_cores
from nnunet_semi.doctor.fact import Fact

_NO_WORKERS = "nnUNet_n_proc_DA=0 trains without workers, and shows their real errors"


def memory() -> list[Fact]:
    """Memory available now, within the limit of a container; nothing where the system does not tell."""
    free = _available_memory()
    if free is None:
        return []
    if free >= 8e9:
        return [Fact("memory", "ok", f"{free / 1e9:.0f} GB available")]
    remedy = f"augmentation workers may be killed: set nnUNet_n_proc_DA to 2 or less; {_NO_WORKERS}"
    return [Fact("memory", "warn", f"{free / 1e9:.1f} GB available", remedy)]


def _available_memory(root: Path = Path("/")) -> float | None:
    """Bytes: the smaller of what the system has left and the limit of the control group."""
    try:
        lines = dict(line.split(":", 1) for line in (root / "proc/meminfo").read_text().splitlines())
    except OSError:
        return None
    free = float(lines["MemAvailable"].split()[0]) * 1024
    try:
        return min(free, float((root / "sys/fs/cgroup/memory.max").read_text()))
    except (OSError, ValueError):  # no control group, or "max": no limit
        return free


def shared_memory() -> list[Fact]:
    """Size of /dev/shm, through which workers hand over batches; nothing where there is none."""
    if not Path("/dev/shm").is_dir():
        return []
    size = shutil.disk_usage("/dev/shm").total / 1e9
    if size >= 1:
        return [Fact("/dev/shm", "ok", f"{size:.1f} GB")]
    remedy = f"start the container with --shm-size=8g (or --ipc=host); {_NO_WORKERS}"
    return [Fact("/dev/shm", "warn", f"{size:.2f} GB: workers may die of it", remedy)]


def compilation() -> list[Fact]:
    """Whether torch.compile, nnU-Net's default on CUDA, works: a small network is compiled."""
    import torch

    from nnunet_semi.compilation import compile_problem

    wanted = os.environ.get("nnUNet_compile", "true").lower() in ("true", "1", "t")
    if not wanted or not torch.cuda.is_available() or os.name == "nt":
        return [Fact("compile", "ok", "not used: nnU-Net compiles on CUDA only, and not with nnUNet_compile=f")]
    problem = compile_problem(torch.device("cuda"))
    if problem is None:
        return [Fact("compile", "ok", "a small network was compiled")]
    missing = [] if importlib.util.find_spec("triton") else ["triton"]
    missing += [] if any(map(shutil.which, (os.environ.get("CC", "cc"), "gcc", "clang"))) else ["a C compiler"]
    remedy = f"install {' and '.join(missing)}" if missing else "repair what it names"
    remedy += ", or `export nnUNet_compile=f`; trainers of this project train without it, others fail"
    return [Fact("compile", "warn", f"torch.compile fails: {problem}", remedy)]


def cores() -> list[Fact]:
    """Threads and augmentation workers, as this project's trainers choose them, against the cores they may use."""
    import torch

    from nnunet_semi.plugin_trainer import share_cores

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    usable, (threads, workers) = usable_cores(), share_cores(device)
    busy = workers + (threads if device.type == "cpu" else 0)
    text = f"{usable}; training starts {workers} augmentation workers"
    if busy <= max(usable, 2):
        return [Fact("cores", "ok", text)]
    remedy = f"`export nnUNet_n_proc_DA={max(1, usable - 1)}`: more workers than cores slow each other down"
    return [Fact("cores", "warn", text, remedy)]


MACHINE_FACTS: list[Callable[[], list[Fact]]] = [memory, shared_memory, compilation, cores]
