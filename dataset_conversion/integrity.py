"""nnU-Net's own integrity check, in a process of its own: it prints, and it imports torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from nnunet_semi.errors import UserError

CODE = """
import sys
from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity
verify_dataset_integrity(sys.argv[1], int(sys.argv[2]))
"""


class IntegrityProblem(UserError):
    """nnU-Net refuses the dataset."""


def verify(folder: Path, num_processes: int) -> list[str]:
    """Checks a dataset that has labeled cases; gives nnU-Net's warnings in one sentence.

    Raises:
        IntegrityProblem: nnU-Net refuses the dataset.
    """
    command = [sys.executable, "-c", CODE, str(folder), str(num_processes)]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    if done.returncode != 0:
        errors = [line for line in done.stdout.splitlines() if line.startswith(("Error", "Images contain", "Segm"))]
        last = done.stderr.strip().splitlines()[-1:]
        raise IntegrityProblem(
            f"nnU-Net's integrity check refuses the dataset ({'; '.join([*errors[:3], *last])}); nothing was written: "
            "correct the source, or look for yourself at what --no-verify writes"
        )
    warnings = [line.strip() for line in done.stdout.splitlines() if line.upper().startswith("WARNING")]
    if not warnings:
        return []
    return [f"nnU-Net's integrity check warns {len(warnings)} times, first: {warnings[0]}"]
