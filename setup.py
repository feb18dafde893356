"""Installs nnunet_semi, and beside it the start-up line by which nnU-Net finds its trainers."""

from __future__ import annotations

import re
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py
from setuptools.command.editable_wheel import editable_wheel

ROOT = Path(__file__).resolve().parent
MAPPED = {"nnunet_semi.trainers": "trainers", "nnunet_semi.dataset_conversion": "dataset_conversion"}
SHIM = ("nnunet_semi", "discovery", "shim")

# Python reads `nnunet_semi.pth` at every start (`.start` from 3.15 on) and runs this line. It appends one folder to the
# environment variable nnUNet_extTrainer, in which nnU-Net looks for trainers. Standard library only, nothing imported
# from this project, so that another copy of it on the path is not pushed aside. Whatever goes wrong in it stays silent,
# or every start of Python would print it; `nnunet_semi doctor` looks a trainer up for real and tells what is missing.
START_UP = """
try:
    if os.environ.get("NNUNET_SEMI_NO_HOOK", "0") in ("", "0"):
        _folder = {folder}
        _given = os.environ.get("nnUNet_extTrainer", "")
        if os.path.isdir(_folder) and _folder not in _given.split(os.pathsep):
            os.environ["nnUNet_extTrainer"] = _given + os.pathsep + _folder if _given else _folder
except Exception:
    pass
"""


def write_start_up(target: Path, folder: str) -> list[str]:
    """Writes the start-up files into the root of a wheel; `folder` is the Python expression of the shim's folder."""
    code = START_UP.format(folder=folder).lstrip()
    (target / "nnunet_semi.pth").write_text(f"import os; exec({ascii(code)})\n", encoding="ascii")
    (target / "nnunet_semi.start").write_text("nnunet_semi.discovery.startup:append_folder\n", encoding="ascii")
    return [str(target / "nnunet_semi.pth"), str(target / "nnunet_semi.start")]


class BuildPy(build_py):
    """Adds the start-up files to an ordinary wheel; `sitedir` is what `site` calls the folder of the .pth file."""

    _start_up: list[str] = []

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            self._start_up = write_start_up(Path(self.build_lib), f"os.path.join(sitedir, *{SHIM!r})")

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        return super().get_outputs(include_bytecode) + self._start_up


class EditableWheel(editable_wheel):
    """Adds the start-up files to an editable wheel, from which setuptools drops whatever is not a package.

    This overrides a private method; a test installs the project both ways and looks a trainer up.
    """

    def _install_namespaces(self, installation_dir: str, pth_prefix: str) -> None:
        super()._install_namespaces(installation_dir, pth_prefix)
        write_start_up(Path(installation_dir), ascii(str(ROOT.joinpath(*SHIM))))


def version() -> str:
    """The version written in nnunet_semi/__init__.py, read without importing it."""
    found = re.search(r'__version__ = "([^"]+)"', (ROOT / "nnunet_semi/__init__.py").read_text(encoding="utf-8"))
    assert found, "nnunet_semi/__init__.py states no __version__"
    return found.group(1)


def packages() -> list[str]:
    """All packages: those under nnunet_semi/ and those mapped into it from the top level."""
    names = find_packages(str(ROOT), include=["nnunet_semi", "nnunet_semi.*"])
    for name, folder in MAPPED.items():
        names += [name, *(f"{name}.{sub}" for sub in find_packages(str(ROOT / folder)))]
    return names


def readme() -> str:
    """The README as the long description; empty where only the package was copied."""
    path = ROOT / "README.md"
    return path.read_text(encoding="utf-8") if path.is_file() else ""


setup(
    name="nnunet_semi",
    version=version(),
    description="Semi-supervised trainers for nnU-Net: unlabeled images go into imagesUn, the rest stays nnU-Net.",
    long_description=readme(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.10,<3.14",
    packages=packages(),
    package_dir=MAPPED,
    package_data={
        "nnunet_semi": ["py.typed"],
        "nnunet_semi.discovery": ["shim/*.py"],
        "nnunet_semi.report": ["*.j2"],
    },
    install_requires=[
        "nnunetv2>=2.8,<2.9",  # trainers override its methods: a new minor version is tried before it is allowed
        "torch",
        "SimpleITK",
        "batchgenerators",
        "batchgeneratorsv2",
        "dynamic-network-architectures",
        "numpy",
        "scipy",
        "scikit-image",
        "tqdm",
        "filelock",
        "blosc2",
        "nibabel",
        "tifffile",
        "matplotlib>=3.10",  # boxplot(orientation=…)
        "jinja2",
        "pillow",
    ],
    extras_require={"dev": ["pytest", "pytest-timeout", "ruff", "mypy"]},
    entry_points={"console_scripts": ["nnunet_semi = nnunet_semi.cli:main"]},
    cmdclass={"build_py": BuildPy, "editable_wheel": EditableWheel},
    zip_safe=False,
)
