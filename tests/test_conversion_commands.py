"""`nnunet_semi convert` and `restore` as they are typed, and the datasets in the hands of nnU-Net's own commands."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

from conversion_sources import (
    FLARE_SCHEMES,
    blob,
    listing,
    make_aicup,
    make_flare,
    make_fugc,
    make_stack,
    nnunet_folders,  # noqa: F401
    random_image,
    raw,
    write_labelme,
    write_png,
    write_volume,
)
from nnunet_semi.cli import main
from nnunet_semi.conversion import convert
from nnunet_semi.errors import WrongUse
from nnunet_semi.registry import DATASETS
from small_dataset import environment

SIZE = 64
TURNED = (-1, 0, 0, 0, -1, 0, 0, 0, 1)


def test_convert_prints_what_was_made_and_what_comes_next(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = make_fugc(tmp_path / "source")
    arguments = ["convert", "fugc2025", str(source), "--id", "25", "--name", "Cervix", "-np", "1", "--no-verify"]
    assert main(arguments) == 0
    out, err = capsys.readouterr()
    assert out == f"{raw() / 'Dataset025_Cervix'}: 5 labeled, 3 unlabeled, 0 test cases\n"
    assert err.splitlines()[-1] == "next: nnUNetv2_plan_and_preprocess -d 25"
    assert main([*arguments, "--overwrite", "--link", "-q"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("note: files whose bytes stay as they are: 13 hard links\n") and err == ""


def test_a_dry_run_prints_sources_and_targets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = make_flare(tmp_path / "source", count=1)
    assert main(["convert", "flare22", str(source), "--dry-run", "--crop-body"]) == 0
    lines = capsys.readouterr().out.splitlines()
    image = FLARE_SCHEMES["challenge"][3].format(1)
    folder = raw() / "Dataset001_FLARE22"
    assert f"{source / image} → {folder / 'imagesTs/FLARETs_0001_0000.nii.gz'}" in lines
    assert lines[-1] == f"{folder} would hold 1 labeled, 1 unlabeled, 1 test cases"
    assert listing(raw()) == []


def test_options_of_the_folder_converter_reach_it(tmp_path: Path) -> None:
    for number in range(2):
        write_png(tmp_path / f"source/x/a{number}.png", random_image(number, 8, 8))
        write_png(tmp_path / f"source/y/a{number}.png", np.array([0, 1, 255], np.uint8)[blob((8, 8), 2)])
    options = ["--images", "x", "--labels", "y", "--unlabeled", "x", "--test", "x", "--ignore", "255"]
    options += ["--classes", "cell", "--channels", "phase contrast", "--name", "Cells", "--no-verify", "-q"]
    assert main(["convert", "folder", str(tmp_path / "source"), *options]) == 0
    text = (raw() / "Dataset001_Cells/dataset.json").read_text()
    assert "phase contrast" in text and '"ignore": 2' in text and "cell" in text


def test_options_of_another_converter_are_wrong_use(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", "fugc2025", str(tmp_path), "--crop-body"]) == 2
    assert capsys.readouterr().err == "nnunet_semi convert: fugc2025 has no option --crop-body; leave it out\n"
    with pytest.raises(WrongUse, match="got 'fugc'; expected one of fugc2025"):
        convert("fugc", tmp_path)


def test_restore_puts_predictions_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = make_flare(tmp_path / "source", direction=TURNED)
    folder = convert("flare22", source, 22, verify=False, progress=False, num_processes=1).folder
    arguments = ["restore", str(folder / "labelsTr"), "-d", "22", "-o", str(tmp_path / "out"), "-np", "1", "-q"]
    assert main(arguments) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'out'}: 2 predictions on the grid of the original images\n"
    assert listing(tmp_path / "out") == ["FLARE22_Tr_0001.nii.gz", "FLARE22_Tr_0002.nii.gz"]
    assert main(arguments) == 2
    assert "--overwrite" in capsys.readouterr().err


@pytest.mark.parametrize("challenge", DATASETS)
def test_every_converter_of_the_registry_takes_the_same_arguments_first(challenge: str) -> None:
    parameters = list(inspect.signature(import_module(DATASETS[challenge][0]).convert).parameters)
    assert parameters[:3] == ["source", "dataset_id", "name"] and parameters[-1] == "writing"


def test_converters_do_not_import_torch() -> None:
    """Every spawned process imports them: torch would cost each ten seconds and 300 MB."""
    modules = ", ".join(module for module, _ in DATASETS.values())
    code = f"import sys, nnunet_semi.dataset_conversion.restore, {modules}\nprint('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


# --- in the hands of nnU-Net ---


def large_fugc(root: Path) -> Path:
    """Images that are large enough to be trained on."""
    make_fugc(root, labeled=5, unlabeled=3)
    for number, path in enumerate(sorted(root.rglob("images/*.png"))):
        write_png(path, random_image(number, SIZE, SIZE, 3))
    for path in root.rglob("labels/*.png"):
        write_png(path, blob((SIZE, SIZE), 2))
    return root


def large_flare(root: Path) -> Path:
    make_flare(root, count=5, direction=TURNED)
    for number, path in enumerate(sorted(root.rglob("*_0000.nii.gz"))):
        write_volume(path, random_image(number, 8, SIZE, SIZE).astype(np.int16), direction=TURNED)
    for path in root.rglob("labels/*.nii.gz"):
        write_volume(path, blob((8, SIZE, SIZE), 13), direction=TURNED)
    return root


def large_aicup(root: Path) -> Path:
    make_aicup(root, count=5)
    for number, path in enumerate(sorted(root.rglob("*.jpg"))):
        write_png(path, random_image(number, SIZE, SIZE, 3))
    shape = {"label": "STAS", "points": [[5, 5], [50, 9], [30, 60]], "shape_type": "polygon"}
    for path in root.rglob("*.json"):
        write_labelme(path, [shape], imageHeight=SIZE, imageWidth=SIZE)
    return root


def large_stack(root: Path) -> Path:
    images = [random_image(number, SIZE, SIZE) for number in range(8)]
    points = [(n, i, (7.0 * n) % 60, (5.0 * n) % 60) for i in range(1, 9) for n in range(1, 39)]
    return make_stack(root, images, points, scales=(0.5,))


def large_folder(root: Path) -> Path:
    for number in range(5):
        write_png(root / f"images/a{number}.jpg", random_image(number, SIZE, SIZE, 3))
        write_png(root / f"labels/a{number}_mask.png", (blob((SIZE, SIZE), 1) * 255).astype(np.uint8))
        write_png(root / f"unlabeled/u{number}.jpg", random_image(number, SIZE, SIZE, 3))
    return root


LARGE: dict[str, Callable[[Path], Path]] = {
    "fugc2025": large_fugc,
    "flare22": large_flare,
    "cl-detection2023": large_stack,
    "aicup-stas": large_aicup,
    "folder": large_folder,
}


@pytest.mark.slow
@pytest.mark.parametrize("challenge", LARGE)
def test_converted_datasets_are_planned_and_trained_by_command(challenge: str, tmp_path: Path) -> None:
    source = LARGE[challenge](tmp_path / "source")
    env = {**os.environ, **environment(tmp_path)}
    for name in ("nnUNet_preprocessed", "nnUNet_results"):
        Path(env[name]).mkdir()
    trainer = "nnUNetTrainerCPS" if challenge in ("fugc2025", "folder") else "nnUNetTrainer"
    commands = [
        ["nnunet_semi", "convert", challenge, str(source), "--id", "5", "-np", "1"],
        ["nnUNetv2_plan_and_preprocess", "-d", "5", "-c", "2d", "-np", "1", "-npfp", "1"],
        ["nnunet_semi", "narrow", "-d", "5", "-c", "2d", "--width", "4"],
        ["nnUNetv2_train", "5", "2d_w4", "0", "-tr", f"{trainer}_1epochs_1iters", "-device", "cpu"],
    ]
    for program, *arguments in commands:
        line = [str(Path(sys.executable).with_name(program)), *arguments]
        done = subprocess.run(line, env=env, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, f"{line}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    assert list(Path(env["nnUNet_results"]).rglob("fold_0/checkpoint_final.pth"))
