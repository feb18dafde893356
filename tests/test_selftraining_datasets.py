"""Self-training of what a user has: a challenge's files after their conversion, and volumes in 3D; one round each."""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest

from nnunet_semi.narrow import narrow
from small_dataset import environment, plan
from test_selftraining_rounds import environment_of, run

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
LABELED, UNLABELED = 5, 4

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(not DATA.is_dir(), reason="needs the data beside the repository"),
]


def fugc(root: Path) -> Path:
    for kind, folders, count in (
        ("labeled_data", ("images", "labels"), LABELED),
        ("unlabeled_data", ("images",), UNLABELED),
    ):
        for folder in folders:
            copy_first(DATA / "fugc_layout" / "train" / kind / folder, root / "train" / kind / folder, 0, count)
    return root


def hippocampus(root: Path) -> Path:
    for source, target, first, count in (
        ("images", "images", 0, LABELED),
        ("labels", "labels", 0, LABELED),
        ("images", "unlabeled", LABELED, UNLABELED),
    ):
        copy_first(DATA / "hippocampus" / source, root / target, first, count)
    return root


def copy_first(source: Path, target: Path, first: int, count: int) -> None:
    target.mkdir(parents=True)
    for path in sorted(source.iterdir())[first : first + count]:
        shutil.copyfile(path, target / path.name)


@pytest.mark.parametrize(
    ("make", "conversion", "configuration"),
    [(fugc, "fugc2025", "2d"), (hippocampus, "folder", "3d_fullres")],
)
def test_a_round_on_a_converted_dataset(
    make: Callable[[Path], Path], conversion: str, configuration: str, tmp_path: Path
) -> None:
    env = environment_of(tmp_path)
    for name in environment(tmp_path):
        Path(env[name]).mkdir(exist_ok=True)
    run(env, "nnunet_semi", "convert", conversion, str(make(tmp_path / "source")), "--id", "1", "--name", "Mine")
    with mock.patch.dict(os.environ, environment(tmp_path)):
        plan(1, (configuration,))
        narrow(1, configuration, width=4)
    trainer = "nnUNetTrainerKeepCheckpoints_3epochs_1iters_seed0"
    words = ["-d", "1", "-c", f"{configuration}_w4", "--rounds", "1", "-tr", trainer, "--first", "top:.5"]
    screened = tmp_path / "screened.txt"
    images = (tmp_path / "nnUNet_raw/Dataset001_Mine/imagesUn").iterdir()
    unlabeled = sorted({path.name.rpartition("_")[0] for path in images})
    screened.write_text(f"{unlabeled[0]}\n")
    options = ["--warm-start", "--exclude", str(screened), "-device", "cpu", "-o", str(tmp_path / "run")]
    said = run(env, "nnunet_semi", "selftrain", *words, *options)
    assert "predict with the best model: nnUNetv2_predict " in said
    selection = json.loads((tmp_path / "run/round_1/selection.json").read_text())
    assert 1 <= len(selection["selected"]) <= 2 and unlabeled[0] not in selection["selected"]
    assert f"excluded by {screened}" in selection["left_out"][unlabeled[0]]
    with (tmp_path / "run/summary.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["pseudo_labeled"]) for row in rows] == [0, len(selection["selected"])]
    assert "Loading pretrained weights" in (tmp_path / "run/logs/round_1_train.log").read_text()
