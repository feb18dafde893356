"""The code in the documentation runs, and its commands and paths exist."""

from __future__ import annotations

import re
import shlex
import sys
import types
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from nnunet_semi.cli import build_parser
from nnunet_semi.discovery import find_trainer
from nnunet_semi.registry import TRAINERS
from tiny_trainer import make_trainer, random_batch

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def trainer_in(page: Path) -> type:
    """The last trainer class that the page's Python blocks define."""
    module = types.ModuleType("documented")
    sys.modules["documented"] = module
    for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL):
        exec(compile(block, page.name, "exec"), module.__dict__)
    return [value for value in vars(module).values() if getattr(value, "__module__", "") == "documented"][-1]


@pytest.mark.parametrize("page", ["README.md", "docs/new_method.md"])
def test_documented_trainers_train(page, tiny_2d):
    trainer = make_trainer(trainer_in(ROOT / page), tiny_2d)
    trainer.initialize()
    trainer.on_train_epoch_start()
    output = trainer.train_step(random_batch(trainer))
    assert np.isfinite(output["loss"])
    assert np.isfinite(output["curves"]).all()


def commands_in(page: Path) -> list[list[str]]:
    """The words of every command in the page's shell blocks, without comments."""
    blocks = re.findall(r"```bash\n(.*?)```", page.read_text(), re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    commands = [shlex.split(part, comments=True) for line in lines for part in line.split(" && ")]
    return [[Path(words[0]).name, *words[1:]] for words in commands if words]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_and_links_exist(page):
    for command, *arguments in commands_in(page):
        if command == "nnunet_semi":
            build_parser().parse_args(arguments)
        trainers = [trainer for option, trainer in pairwise(arguments) if option == "-tr"]
        assert [find_trainer(trainer).__name__ for trainer in trainers] == trainers
    for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
        assert (page.parent / link).exists(), link


def test_continuous_integration_runs_the_test_command_of_the_readme():
    """In an environment that it keeps; what is installed and what is run are the same."""
    (line,) = re.findall(r"^(python3 -m venv .*pytest)$", (ROOT / "README.md").read_text(), re.MULTILINE)
    _, installation, tests = line.split(" && ")
    script = (ROOT / ".ci" / "run").read_text()
    assert installation.removeprefix(".venv/bin/pip install ") in script
    assert tests.removeprefix(".venv/bin/") in script


def test_the_readme_names_every_trainer():
    text = (ROOT / "README.md").read_text()
    assert [name for name in TRAINERS if f"`{name}`" not in text] == []
