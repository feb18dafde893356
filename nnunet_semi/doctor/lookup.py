"""Asks nnU-Net itself for trainers, in a fresh process with the user's environment."""

from __future__ import annotations

import json
import subprocess
import sys

# Python puts the present folder on the path of a `-c` script, which nnU-Net's commands do not have.
_SCRIPT = """
import json, sys
if sys.path[0] == "":
    del sys.path[0]
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
answers = {}
for name in sys.argv[1:]:
    try:
        trainer = recursive_find_trainer_class_by_name(name)
        answers[name] = f"found in {sys.modules[trainer.__module__].__file__}"
    except Exception as problem:
        answers[name] = f"{type(problem).__name__}: {str(problem).strip().splitlines()[0]}"
print()
print("ANSWERS " + json.dumps(answers))
"""


def look_up(names: list[str], timeout: float = 300) -> tuple[dict[str, str], str]:
    """What nnU-Net's look-up answers for each name: "found in FILE", or the error.

    Returns:
        The answers by name, and what stands in for those that are missing because the process died.
    """
    command = [sys.executable, "-c", _SCRIPT, *names]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
    except subprocess.TimeoutExpired:
        return {}, f"nnU-Net's look-up gave no answer within {timeout:.0f} s"
    marked = [line for line in done.stdout.splitlines() if line.startswith("ANSWERS ")]
    if marked:
        return json.loads(marked[-1].removeprefix("ANSWERS ")), ""
    said = done.stderr.strip().splitlines()
    return {}, f"nnU-Net's look-up ended with code {done.returncode}: {said[-1] if said else 'without a word'}"
