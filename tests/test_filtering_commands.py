"""Scores and selection by the commands that a user types, on a training that kept its checkpoints."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import pytest

from nnunet_semi.filtering.table import read_table
from nnunet_semi.narrow import narrow
from small_dataset import environment, make_dataset, plan

pytestmark = pytest.mark.slow

SUPERVISED, CPS = "nnUNetTrainerKeepCheckpoints_3epochs_2iters", "nnUNetTrainerCPS_2epochs_2iters"
LIMIT = 600  # seconds for one command; an idle machine needs a twentieth


def command(name: str, *arguments: object) -> list[str]:
    return [str(Path(sys.executable).parent / name), *map(str, arguments)]


def run(env: dict[str, str], name: str, *arguments: object) -> str:
    done = subprocess.run(command(name, *arguments), env=env, capture_output=True, text=True, timeout=LIMIT)
    assert done.returncode == 0, f"{name} {arguments}: {done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return done.stdout


def score(by: str, table: Path, *options: object) -> list[object]:
    model = ["-d", 1, "-c", "2d_w4", "-tr", SUPERVISED, "-f", "all"]
    return ["score", *model, "--by", by, "-o", table, "-device", "cpu", "-q", *options]


def kill_when_a_case_is_done(process: subprocess.Popen[bytes], folder: Path) -> None:
    """Kills a scoring process group after its first row."""
    deadline = time.monotonic() + LIMIT
    while not any(path.stat().st_size for path in folder.glob("part_*.jsonl")):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def test_train_score_select_and_train_on_the_selection(tmp_path: Path) -> None:
    with mock.patch.dict(os.environ, environment(tmp_path)):
        make_dataset(tmp_path, unlabeled=8)
        plan()
        narrow(1, "2d", width=4)
        env = dict(os.environ)
    run(env, "nnUNetv2_train", 1, "2d_w4", "all", "-tr", SUPERVISED, "-device", "cpu")
    model = tmp_path / "nnUNet_results" / "Dataset001_Tiny" / f"{SUPERVISED}__nnUNetPlans__2d_w4"
    images, output = tmp_path / "nnUNet_raw" / "Dataset001_Tiny" / "imagesTs", tmp_path / "predicted"
    options = ["-d", 1, "-c", "2d_w4", "-tr", SUPERVISED, "-f", "all", "-device", "cpu", "-npp", 0, "-nps", 0]
    run(env, "nnUNetv2_predict", "-i", images, "-o", output, *options, "-chk", "checkpoint_066.pth")
    assert len(list(output.glob("ts_*.png"))) == 2

    for by in ("checkpoints", "mirrors"):
        said = run(env, "nnunet_semi", *score(by, tmp_path / f"{by}.csv"))
        assert f"{by}.csv: 8 cases" in said
    killed = tmp_path / "killed.csv"
    process = subprocess.Popen(command("nnunet_semi", *score("checkpoints", killed)), env=env, start_new_session=True)
    kill_when_a_case_is_done(process, tmp_path / "killed")
    for part in (1, 0):
        run(env, "nnunet_semi", *score("checkpoints", killed, "-num_parts", 2, "-part_id", part))
    assert killed.read_bytes() == (tmp_path / "checkpoints.csv").read_bytes()

    said = run(env, "nnunet_semi", "select", "-d", 1, "--table", killed, "--top", ".5")
    assert "4 of 8 unlabeled cases" in said
    selection = json.loads((tmp_path / "nnUNet_preprocessed" / "Dataset001_Tiny" / "unlabeled_final.json").read_text())
    ranked = sorted(read_table(killed), key=lambda row: (-row.score, row.case))
    assert selection["selected"] == sorted(row.case for row in ranked[:4])
    page = tmp_path / "screen.html"
    run(env, "nnunet_semi", "screen", "-d", 1, "--table", killed, "-o", page)
    assert page.read_text().count('type="checkbox"') == 8

    said = run(env, "nnUNetv2_train", 1, "2d_w4", 0, "-tr", CPS, "-device", "cpu")
    assert "4 of 8 unlabeled cases" in said and "chosen by" in said
    assert (model.parent / f"{CPS}__nnUNetPlans__2d_w4" / "fold_0" / "checkpoint_final.pth").is_file()
