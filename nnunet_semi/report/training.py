"""What a training left in its folder: settings, counts of cases, and curves."""

from __future__ import annotations

import ast
import csv
import json
import math
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nnunet_semi.branches import original_of
from nnunet_semi.errors import UserError, cause_of
from nnunet_semi.report.results import Result

LINE = re.compile(r"\S+ \S+: (?P<name>Epoch time:|Epoch|train_loss|val_loss|Pseudo dice|MRE) (?P<value>.+?) *$")
SPLIT = re.compile(r"This split has (\d+) training and (\d+) validation cases")
UNLABELED = re.compile(r": (\d+) of \d+ unlabeled cases in ")
NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e-?\d+)?|nan")
SETTINGS = {  # of debug.json → in words
    "num_epochs": "epochs",
    "num_iterations_per_epoch": "iterations per epoch",
    "batch_size": "batch size",
    "initial_lr": "initial learning rate",
    "unsupervised_weight": "weight of the unsupervised loss",
    "ramp_length": "length of its ramp (share of training)",
    "seed": "seed",
    "device": "device",
    "versions": "software",
    "torch_version": "PyTorch",
}

Curve = Mapping[int, float]  # epoch → value


@dataclass
class Training:
    """One training as its folder tells it.

    Attributes:
        facts: what was trained on what, in words.
        charts: title of a chart → name of a curve → its values.
        shares: class → share of the pseudo labels at the end; empty for a supervised model.
        notes: sentences about what is not there.
    """

    facts: dict[str, str] = field(default_factory=dict)
    charts: dict[str, dict[str, Curve]] = field(default_factory=dict)
    shares: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def read_training(result: Result) -> Training:
    """Reads the logs, progress_semi.csv, debug.json, plans.json and dataset.json of a fold; each may be missing."""
    training = Training()
    logs = sorted(result.folder.glob("training_log_*.txt"), key=_date)
    text = "\n".join(log.read_text(encoding="utf-8", errors="replace") for log in logs)
    _facts(training, result, text)
    curves = _logged(text)
    losses: dict[str, Curve] = {
        name: curves[key] for name, key in (("training", "train_loss"), ("validation", "val_loss")) if curves[key]
    }
    if losses:
        training.charts["Loss"] = losses
    else:
        training.notes.append("There is no training log with finished epochs: no curves of the loss.")
    if curves["Pseudo dice"]:
        training.charts["Pseudo Dice in validation patches, mean of the classes"] = {"Dice": curves["Pseudo dice"]}
    if curves["MRE"]:
        training.charts["Mean radial error in validation patches, mm"] = {"MRE": curves["MRE"]}
    semi, landmarks = (result.folder / f"progress_{kind}.csv" for kind in ("semi", "landmarks"))
    if semi.is_file():
        _add_semi(training, semi)
    elif landmarks.is_file():
        _add_landmarks(training, landmarks)
    elif not UNLABELED.search(text):
        training.notes.append("There is no progress_semi.csv: the model is supervised, or of stock nnU-Net.")
    return training


def _date(log: Path) -> list[int]:
    """Year, month, day and time of a log's name, in which nnU-Net writes the 9th as 9."""
    return [int(number) for number in re.findall(r"\d+", log.stem)]


def _facts(training: Training, result: Result, log: str) -> None:
    settings, dataset = (_json(path) for path in (result.folder / "debug.json", result.model / "dataset.json"))
    plans = _json(result.model / "plans.json")
    trainer, plans_name, configuration = (result.model.name.split("__") + ["", ""])[:3]
    facts = training.facts
    facts["dataset"] = str(plans.get("dataset_name") or result.model.parent.name)
    facts |= {"trainer": trainer, "plans": plans_name, "configuration": configuration, "fold": result.folder.name[5:]}
    split, unlabeled = SPLIT.findall(log), UNLABELED.findall(log)
    is_branch = original_of(facts["dataset"]) != facts["dataset"]
    cases = "labeled and pseudo-labeled cases" if is_branch else "labeled cases"
    if split:
        facts[cases] = f"{split[-1][0]} for training, {split[-1][1]} for validation"
    elif facts["fold"] == "all" and "numTraining" in dataset:
        facts[cases] = f"{dataset['numTraining']}, all for training and for validation"
    facts["unlabeled cases"] = unlabeled[-1] if unlabeled else "none (supervised)"
    labels = dataset.get("labels")
    if isinstance(labels, dict):
        names = [str(name) for name in labels if name != "background"]
        facts["classes"] = ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
    described = plans.get("configurations", {}).get(configuration, {}) if isinstance(plans, dict) else {}
    for key, name in (("patch_size", "patch size in voxels"), ("spacing", "spacing in mm")):
        if isinstance(described.get(key), list):
            facts[name] = " × ".join(f"{value:g}" for value in described[key])
    facts |= {name: str(settings[key]) for key, name in SETTINGS.items() if key in settings}
    seconds = _logged(log)["Epoch time:"]
    if seconds:
        facts["epochs done"] = f"{max(seconds) + 1}, {sum(seconds.values()) / len(seconds):.1f} s each"
    facts["folder"] = str(result.folder)
    training.facts = {name: value for name, value in facts.items() if value}


def _json(path: Path) -> dict[str, Any]:
    """A JSON object, or nothing where the file is missing or damaged: what it says is left out then."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _logged(text: str) -> dict[str, dict[int, float]]:
    """Name of a value → epoch → value; an epoch that was trained again after an interruption counts as it was then."""
    found: dict[str, dict[int, float]] = defaultdict(dict)
    epoch = -1
    for line in text.splitlines():
        match = LINE.match(line)
        if match is None:
            continue
        if match["name"] == "Epoch":
            epoch = int(match["value"]) if match["value"].isdigit() else epoch
            continue
        value = _value(match["name"], match["value"])
        if epoch >= 0 and value is not None:
            found[match["name"]][epoch] = value
    return found


def _value(name: str, text: str) -> float | None:
    if name == "Pseudo dice":
        inside = re.sub(r"np\.float\d+\(([^)]*)\)", r"\1", text).replace("nan", "None")
        try:
            values = [float(value) for value in ast.literal_eval(inside) if value is not None]
        except (ValueError, SyntaxError, TypeError):
            return None
        return sum(values) / len(values) if values else None
    number = NUMBER.match(text)
    return float(number[0]) if number else None


def _add_semi(training: Training, path: Path) -> None:
    """The curves of progress_semi.csv: losses and weight, shares of the classes, and whatever else the method logs."""
    columns = _columns(path)
    groups = {
        "Labeled and unlabeled loss": [name for name in columns if name.startswith("semi_loss")],
        "Weight of the unsupervised loss": [name for name in columns if name == "semi_weight"],
        "Shares of the classes in the pseudo labels": [name for name in columns if name.startswith("share_")],
    }
    grouped = {name for names in groups.values() for name in names}
    groups["Pseudo labels"] = [name for name in columns if name not in grouped]
    for title, names in groups.items():
        if names:
            training.charts[title] = {_plain(name): columns[name] for name in names}
    shares = {name[6:]: curve for name, curve in columns.items() if name.startswith("share_") and curve}
    training.shares = {name: curve[max(curve)] for name, curve in shares.items()}


def _add_landmarks(training: Training, path: Path) -> None:
    """The curves of progress_landmarks.csv that the log does not have."""
    columns = _columns(path)
    rates = {name[4:].replace("mm", " mm"): curve for name, curve in columns.items() if name.startswith("sdr_")}
    if rates:
        training.charts["Share of the landmarks that are found in validation patches"] = rates
    others = {_plain(name): curve for name, curve in columns.items() if name.startswith("semi_")}
    if others:
        training.charts["Unlabeled images"] = others


def _columns(path: Path) -> dict[str, Curve]:
    """Name of a column → epoch → value."""
    rows = _rows(path)
    return {name: {int(r["epoch"]): r[name] for r in rows} for name in (rows[0] if rows else {}) if name != "epoch"}


def _rows(path: Path) -> list[dict[str, float]]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
        if any("epoch" not in row or math.isnan(row["epoch"]) for row in rows):
            raise ValueError("no column epoch")
    except (OSError, ValueError, TypeError, csv.Error) as error:
        raise UserError(
            f"{path} cannot be read ({cause_of(error)}); restore it, or delete it to leave its curves out"
        ) from error
    return rows


def _plain(name: str) -> str:
    return name.removeprefix("semi_").removeprefix("share_").replace("_", " ")
