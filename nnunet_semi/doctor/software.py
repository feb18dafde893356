"""Facts on what is installed: Python, the packages, and whether nnU-Net finds the trainers."""

from __future__ import annotations

import importlib.util
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from nnunet_semi import __version__, discovery
from nnunet_semi.doctor.fact import Fact, Status
from nnunet_semi.doctor.lookup import look_up
from nnunet_semi.registry import TRAINERS
from nnunet_semi.versions import version_of

_REINSTALL = 'install nnunet_semi again, or `eval "$(nnunet_semi env)"`'


def python() -> list[Fact]:
    """Version and interpreter; trainers are tried with 3.10 to 3.13."""
    fits = (3, 10) <= sys.version_info[:2] <= (3, 13)
    text = f"{platform.python_version()} ({sys.executable})"
    return [Fact("python", "ok" if fits else "warn", text, "" if fits else "use Python 3.10 to 3.13")]


def nnunetv2() -> list[Fact]:
    """Which nnU-Net is imported, and whether it is the 2.8 that the trainers are made for."""
    location = _location("nnunetv2")
    if location is None:
        return [Fact("nnunetv2", "FAIL", "not installed", 'pip install "nnunetv2>=2.8,<2.9"')]
    version = version_of("nnunetv2")
    fits = version.split(".")[:2] == ["2", "8"]
    remedy = "" if fits else 'pip install "nnunetv2>=2.8,<2.9"'
    return [Fact("nnunetv2", "ok" if fits else "FAIL", f"{version} ({location})", remedy), *_other_copies("nnunetv2")]


def nnunet_semi() -> list[Fact]:
    """Which copy of this project is imported."""
    text = f"{__version__} ({_location('nnunet_semi')})"
    return [Fact("nnunet_semi", "ok", text), *_other_copies("nnunet_semi")]


def torch() -> list[Fact]:
    """Version of torch and the device that training would use."""
    try:
        import torch
    except Exception as problem:
        return [Fact("torch", "FAIL", f"cannot be imported: {problem}", "install it as pytorch.org says")]
    slow = torch.__version__.startswith("2.9.")
    remedy = "install another version: 3D convolutions of 2.9 are slow, and nnU-Net excludes it" if slow else ""
    return [Fact("torch", "FAIL" if slow else "ok", torch.__version__, remedy), _device()]


def _device() -> Fact:
    import torch

    if torch.cuda.is_available():
        memory = torch.cuda.get_device_properties(0).total_memory / 2**30
        return Fact("device", "ok", f"cuda: {torch.cuda.get_device_name(0)}, {memory:.0f} GB")
    name = "mps" if torch.backends.mps.is_available() else "cpu"
    remedy = f"pass `-device {name}` to nnU-Net's commands, whose default is cuda"
    return Fact("device", "warn", f"no CUDA device, {name} only", remedy)


def hook() -> list[Fact]:
    """Does nnUNet_extTrainer lead to this copy's trainers, by the start-up line or by hand?"""
    folder = str(discovery.hook_folder())
    if _start_up_sets(folder):
        return [Fact("hook", "ok", f"the start-up line puts {folder} into {discovery.VARIABLE}")]
    if folder in discovery.search_path():
        return [Fact("hook", "ok", f"{discovery.VARIABLE} in this shell contains {folder}")]
    off = os.environ.get("NNUNET_SEMI_NO_HOOK", "0") not in ("", "0")
    remedy = 'unset NNUNET_SEMI_NO_HOOK, or `eval "$(nnunet_semi env)"`' if off else _REINSTALL
    why = "the start-up line is switched off by NNUNET_SEMI_NO_HOOK" if off else "the start-up line is missing"
    return [Fact("hook", "FAIL", f"{why}, and {discovery.VARIABLE} does not contain {folder}", remedy)]


def _start_up_sets(folder: str) -> bool:
    """Whether a fresh Python, started without the folder in the variable, has it there."""
    others = os.pathsep.join(entry for entry in discovery.search_path() if entry != folder)
    environment = {**os.environ, discovery.VARIABLE: others}
    show = f"import os; print(os.environ.get({discovery.VARIABLE!r}, ''))"
    done = subprocess.run([sys.executable, "-c", show], env=environment, capture_output=True, text=True, timeout=60)
    return folder in done.stdout.strip().split(os.pathsep)


def search_folders() -> list[Fact]:
    """Each of the user's own entries in nnUNet_extTrainer: nnU-Net passes over those that do not exist."""
    facts = []
    for entry in discovery.search_path():
        if not os.path.isdir(entry):
            facts.append(Fact(discovery.VARIABLE, "warn", f"{entry!r} is no folder", "correct or remove this entry"))
        elif entry != str(discovery.hook_folder()) and Path(entry, "nnunet_semi_trainers.py").is_file():
            remedy = "keep one installation, and open a new shell"
            facts.append(Fact(discovery.VARIABLE, "warn", f"{entry} belongs to another copy of nnunet_semi", remedy))
    return facts


def trainers() -> list[Fact]:
    """One fact per trainer, and one for a name with an ending, from nnU-Net's own look-up in a fresh process."""
    names = [*TRAINERS, "nnUNetTrainer_3epochs"]
    found, problem = look_up(names)
    return [_trainer_fact(name, found.get(name, problem)) for name in names]


def _trainer_fact(name: str, answer: str) -> Fact:
    status: Status = "ok" if answer.startswith("found") else "FAIL"
    return Fact(
        name,
        status,
        answer,
        "" if status == "ok" else "mend `hook` and `nnunetv2` first; if both are ok, install nnunet_semi again",
    )


def _location(package: str) -> str | None:
    spec = importlib.util.find_spec(package)
    folders = list(spec.submodule_search_locations or []) if spec else []
    return folders[0] if folders else None


def _other_copies(package: str) -> list[Fact]:
    """A warning for each further folder on the path that holds the same package."""
    first = _location(package)
    folders = {str(Path(entry or ".", package).resolve()) for entry in sys.path}
    others = [f for f in sorted(folders) if Path(f, "__init__.py").is_file() and not _same(f, first)]
    return [Fact(package, "warn", f"a second copy lies in {other}", "uninstall one of them") for other in others]


def _same(a: str, b: str | None) -> bool:
    return b is not None and os.path.realpath(a) == os.path.realpath(b)


SOFTWARE_FACTS: list[Callable[[], list[Fact]]] = [
    python,
    nnunetv2,
    nnunet_semi,
    torch,
    hook,
    search_folders,
    trainers,
]
