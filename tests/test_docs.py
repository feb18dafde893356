"""The code in the documentation runs, and its commands and paths exist."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from nnunet_semi.cli import main
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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_and_links_exist(page, capsys):
    text = page.read_text()
    for verb in set(re.findall(r"nnunet_semi ([a-z_]+) ", text)):
        with pytest.raises(SystemExit) as stopped:
            main([verb, "--help"])
        assert stopped.value.code == 0, verb
    for link in re.findall(r"\]\(([^)#:]+)\)", text):
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
