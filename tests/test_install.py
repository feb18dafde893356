"""Both ways of installing, each into a fresh environment: nnU-Net finds the trainers, in spawned workers too."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from nnunet_semi.registry import TRAINERS

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent
PARTS = ["nnunet_semi", "trainers", "dataset_conversion", "setup.py", "pyproject.toml", "LICENSE", "README.md"]
NAMES = [*TRAINERS, "nnUNetTrainerCPS_2epochs_seed1", "nnUNetTrainer_2epochs_3iters"]

# A file, not -c: a spawned process imports it again. Each class is found here, found by the worker, and sent to it.
LOOK_UP = """
import json, multiprocessing, sys

def find(name):
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
    return recursive_find_trainer_class_by_name(name)

def place(name):
    return sys.modules[find(name).__module__].__file__

def name_of(trainer):
    return trainer.__name__

if __name__ == "__main__":
    names = sys.argv[1:]
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        answers = [[place(n), pool.apply(place, (n,)), pool.apply(name_of, (find(n),))] for n in names]
    print()
    print(json.dumps(answers))
"""


@dataclass(frozen=True)
class Environment:
    """A virtual environment that sees the libraries of the running one, but not what is installed in editable mode."""

    folder: Path

    @property
    def scripts(self) -> Path:
        return self.folder / ("Scripts" if os.name == "nt" else "bin")

    @property
    def site_packages(self) -> Path:
        return Path(sysconfig.get_path("purelib", vars={"base": str(self.folder), "platbase": str(self.folder)}))

    def run(self, *command: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Runs a command of this environment in an empty folder, with none of our variables but the given ones."""
        ours = ("nnUNet_extTrainer", "NNUNET_SEMI_NO_HOOK", "PYTHONPATH")
        env = {name: value for name, value in os.environ.items() if name not in ours} | variables
        env["PATH"] = f"{self.scripts}{os.pathsep}{env['PATH']}"
        program, *arguments = command
        program = str(self.scripts / program) if program in ("python", "nnunet_semi") else program
        return subprocess.run([program, *arguments], cwd=self.folder, env=env, capture_output=True, text=True)

    def look_up(self, *names: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Looks trainers up with nnU-Net's own function, in a process and in one that it spawns."""
        (self.folder / "look_up.py").write_text(LOOK_UP)
        return self.run("python", str(self.folder / "look_up.py"), *names, **variables)

    def pip(self, *arguments: str) -> None:
        """Runs the running environment's pip on this one."""
        done = self.run(sys.executable, "-m", "pip", "--python", str(self.scripts / "python"), *arguments)
        assert done.returncode == 0, done.stdout + done.stderr


def make_environment(folder: Path) -> Environment:
    """A fresh environment; a line in a .pth file shows it the libraries, whose own .pth files stay unread."""
    venv.create(folder, with_pip=False, symlinks=os.name != "nt")
    environment = Environment(folder)
    (environment.site_packages / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return environment


def copy_checkout(folder: Path) -> Path:
    """The parts that an installation needs, so that building leaves no traces in the checkout."""
    folder.mkdir()
    junk = shutil.ignore_patterns("__pycache__", "*.egg-info", "build")
    for part in filter(Path.exists, (ROOT / name for name in PARTS)):
        if part.is_dir():
            shutil.copytree(part, folder / part.name, ignore=junk)
        else:
            shutil.copy(part, folder / part.name)
    return folder


def installed_from(environment: Environment) -> Path:
    """Where the copy of the checkout lies that was installed; an awkward name, which must be quoted everywhere."""
    return environment.folder.parent / "it's {my} ü checkout"


@pytest.fixture(scope="module", params=["plain", "editable"])
def installed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Environment, Path]:
    """An environment with an installation in it, and the folder in which its files must lie."""
    folder = tmp_path_factory.mktemp(request.param)
    environment = make_environment(folder / "venv")
    checkout = copy_checkout(installed_from(environment))
    # without setuptools here, pip fetches one
    offline = ["--no-build-isolation"] if importlib.util.find_spec("setuptools") else []
    editable = ["-e"] if request.param == "editable" else []
    environment.pip("install", "--quiet", "--no-deps", *offline, *editable, str(checkout))
    return environment, checkout if editable else environment.site_packages


def test_trainers_are_found_here_and_in_spawned_processes(installed: tuple[Environment, Path]) -> None:
    environment, place = installed
    done = environment.look_up(*NAMES)
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout.splitlines()[-1])
    for name, (here, spawned, sent) in zip(NAMES, answers, strict=True):
        assert here == spawned and Path(here).is_relative_to(place), (name, here)
        assert sent == name


def test_switch_turns_the_start_up_line_off_and_env_serves_instead(installed: tuple[Environment, Path]) -> None:
    environment, place = installed
    name = next(iter(TRAINERS))
    refused = environment.look_up(name, NNUNET_SEMI_NO_HOOK="1")
    assert refused.returncode != 0 and f"Could not find requested nnunet trainer {name}" in refused.stderr
    command = f'eval "$(nnunet_semi env)"; exec python look_up.py {name}'
    by_hand = environment.run("bash", "-c", command, NNUNET_SEMI_NO_HOOK="1")
    assert by_hand.returncode == 0, by_hand.stderr
    ((here, _, _),) = json.loads(by_hand.stdout.splitlines()[-1])
    assert Path(here).is_relative_to(place)


def test_everything_that_is_needed_was_installed(installed: tuple[Environment, Path]) -> None:
    environment, place = installed
    code = (
        "import json, nnunet_semi, nnunet_semi.trainers, nnunet_semi.dataset_conversion\n"
        "from nnunet_semi.discovery import hook_folder\n"
        "packages = [nnunet_semi, nnunet_semi.trainers, nnunet_semi.dataset_conversion]\n"
        "print(json.dumps([*(p.__file__ for p in packages), str(hook_folder() / 'nnunet_semi_trainers.py')]))"
    )
    done = environment.run("python", "-c", code)
    assert done.returncode == 0, done.stderr
    for path in map(Path, json.loads(done.stdout)):
        assert path.is_file() and path.is_relative_to(place)
    for package in ("trainers", "dataset_conversion"):  # as top-level packages they would break other people's trainers
        assert environment.run("python", "-c", f"import {package}").returncode != 0
    source = installed_from(environment) / "nnunet_semi"
    for path in source.rglob("*.py"):
        assert (place / "nnunet_semi" / path.relative_to(source)).is_file()


def test_the_command_is_there(installed: tuple[Environment, Path]) -> None:
    environment, _ = installed
    for command in (["nnunet_semi", "list"], ["python", "-m", "nnunet_semi", "list"]):
        done = environment.run(*command)
        assert done.returncode == 0 and all(name in done.stdout for name in TRAINERS)


@pytest.fixture
def after_uninstalling(installed: tuple[Environment, Path]) -> Iterator[Environment]:
    """The environment without the installation; runs last of those on the same environment."""
    environment, _ = installed
    environment.pip("uninstall", "--quiet", "--yes", "nnunet_semi")
    yield environment


def test_uninstalling_leaves_no_start_up_line(after_uninstalling: Environment) -> None:
    left = [path.name for path in after_uninstalling.site_packages.iterdir() if "nnunet_semi" in path.name]
    assert left == []
    show = "import os; print(os.environ.get('nnUNet_extTrainer'))"
    assert after_uninstalling.run("python", "-c", show).stdout.strip() == "None"


def test_a_bare_checkout_can_be_used_without_installing(tmp_path: Path) -> None:
    environment = make_environment(tmp_path / "venv")
    checkout = copy_checkout(tmp_path / "checkout")
    shim = checkout / "nnunet_semi" / "discovery" / "shim"
    name = next(iter(TRAINERS))
    done = environment.look_up(name, PYTHONPATH=str(checkout), nnUNet_extTrainer=str(shim))
    assert done.returncode == 0, done.stderr
    ((here, spawned, _),) = json.loads(done.stdout.splitlines()[-1])
    assert here == spawned and Path(here).is_relative_to(checkout / "trainers")
