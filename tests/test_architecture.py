"""Imports run one way: three floors, no circles, and nothing heavy before it is needed."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = {"nnunet_semi": "nnunet_semi", "trainers": "nnunet_semi.trainers"}
FOLDERS["dataset_conversion"] = "nnunet_semi.dataset_conversion"

# The ground floor: each of these rooms knows nnU-Net, the libraries and the single files of the core, and none of
# the other rooms. What is named in no floor is a single file of the core, below all rooms.
ROOMS = {"unlabeled", "perturbation", "consistency", "landmarks", "evaluation", "report"}
MIDDLE = {"trainers", "dataset_conversion", "filtering"}
TOP = {"selftraining", "cli", "verbs", "__main__", "demo"}


def modules() -> dict[str, Path]:
    """All modules of the project by their installed name."""
    found = {}
    for folder, package in FOLDERS.items():
        for path in (ROOT / folder).rglob("*.py"):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            found[".".join([package, *(part for part in parts if part != "__init__")])] = path
    return found


MODULES = modules()


def imported_by(name: str) -> set[str]:
    """Modules of the project that a module imports anywhere in it, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} imports relatively; the names here are all whole"
            found |= {node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)}
    return {module for module in found if module in MODULES and not name.startswith(f"{module}.")} - {name}


GRAPH = {name: imported_by(name) for name in MODULES}


def room(module: str) -> str:
    """The part of the project to which a module belongs; "" for nnunet_semi itself."""
    return f"{module}.".split(".")[1]


def floor(module: str) -> int:
    """0 for single files of the core, 1 for the rooms of the ground floor, 2 above, 3 on top."""
    for number, rooms in ((1, ROOMS), (2, MIDDLE), (3, TOP)):
        if room(module) in rooms:
            return number
    return 0


def edges() -> list[tuple[str, str]]:
    return [(module, imported) for module, others in GRAPH.items() for imported in others]


def test_the_graph_is_not_empty() -> None:
    assert ("nnunet_semi.cli", "nnunet_semi.verbs") in edges()
    assert ("nnunet_semi.trainers.nnUNetTrainerCPS", "nnunet_semi.trainers.nnUNetTrainerSemi") in edges()
    assert {floor(module) for module in MODULES} == {0, 1, 2, 3}


def test_no_import_runs_upwards() -> None:
    assert [(a, b) for a, b in edges() if floor(b) > floor(a)] == []


def test_the_rooms_of_the_ground_floor_do_not_know_each_other() -> None:
    assert [(a, b) for a, b in edges() if floor(a) == floor(b) == 1 and room(a) != room(b)] == []


def test_no_import_runs_in_a_circle() -> None:
    order = list(TopologicalSorter(GRAPH).static_order())  # raises CycleError, which names the circle
    assert set(order) == set(MODULES)


def test_the_core_never_imports_a_trainer() -> None:
    above = ("nnunet_semi.trainers", "nnunet_semi.dataset_conversion")
    assert [(a, b) for a, b in edges() if b.startswith(above) and not a.startswith(above)] == []


def test_nothing_imports_tests_or_benchmarks() -> None:
    for name, path in MODULES.items():
        names = {node.module for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)}
        assert not any(str(module).split(".")[0] in ("tests", "benchmarks", "trainers") for module in names), name


@pytest.mark.parametrize(
    "statement",
    [
        "import nnunet_semi",
        "import nnunet_semi.errors, nnunet_semi.registry, nnunet_semi.discovery, nnunet_semi.discovery.startup",
        "import nnunet_semi.cli; nnunet_semi.cli.build_parser().format_help()",
        "import nnunet_semi.doctor",
        "import nnunet_semi.discovery.suggestions as s; s.explain_unknown('nnUNetTrainerCSP')",
    ],
)
def test_nothing_heavy_is_imported_before_it_is_needed(statement: str) -> None:
    code = f"import sys\n{statement}\nprint([m for m in ('torch', 'numpy', 'nnunetv2') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_module_says_in_a_line_what_it_is() -> None:
    for name, path in MODULES.items():
        first = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").partition("\n")[0]
        assert first, f"{name} has no docstring"
