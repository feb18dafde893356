"""Results to report on, as trainings and `evaluate` leave them, and what tests ask about a page."""

from __future__ import annotations

import json
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from nnunet_semi.evaluation.run import evaluate
from nnunet_semi.report.page import LARGEST, report

MODEL = "nnUNetTrainerCPS__nnUNetPlans__2d"
EPOCH = """2026-01-01 00:00:00.000001: Epoch {0}
2026-01-01 00:00:00.000002: Current learning rate: 0.01
2026-01-01 00:00:00.000003: train_loss {1}
2026-01-01 00:00:00.000004: val_loss {2}
2026-01-01 00:00:00.000005: Pseudo dice [np.float32(0.5), nan, np.float32(0.7)]
2026-01-01 00:00:00.000006: Epoch time: 12.5 s
"""


class Page(HTMLParser):
    """What the tests ask about a page; raises where an element is closed that was not opened."""

    EMPTY = {"meta", "img", "br", "link", "input", "hr"}

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] != ["style"]:
            self.text.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def words(self):
        return " ".join(" ".join(self.text).split())


def page_of(folders, tmp_path, name="report.html"):
    path = report(folders, tmp_path / name)
    text = path.read_text(encoding="utf-8")
    assert len(text.encode()) < LARGEST
    return Page(text)


def square(shape, start, size):
    values = np.zeros(shape, np.uint8)
    values[tuple(slice(s, s + size) for s in start)] = 1
    return values


@pytest.fixture
def dataset(tmp_path):
    """Images, references and predictions of four 2D cases, the last the worst, in folders as nnU-Net has them."""
    random = np.random.default_rng(0)
    for number in range(4):
        for folder, values in (
            ("imagesTs", random.integers(0, 255, (64, 80)).astype(np.uint8)),
            ("labelsTs", square((64, 80), (20, 20), 20)),
            ("predictions", square((64, 80), (20, 20 + 3 * number), 20)),
        ):
            (tmp_path / folder).mkdir(exist_ok=True)
            ending = "_0000.png" if folder == "imagesTs" else ".png"
            Image.fromarray(values).save(tmp_path / folder / f"case_{number}{ending}")
    return tmp_path


@pytest.fixture
def scores(dataset):
    """What `evaluate -o` leaves."""
    evaluate(dataset / "labelsTs", dataset / "predictions", ("dice", "hd"), output=dataset / "scores", progress=False)
    return dataset / "scores"


def make_fold(dataset, number=0, semi=True, epochs=3, model=MODEL):
    """A fold folder with log, curves, and a summary in nnU-Net's form about the predictions of `dataset`."""
    fold = dataset / "nnUNet_results" / "Dataset007_Heart" / model / f"fold_{number}"
    (fold / "validation").mkdir(parents=True)
    head = "2026-01-01 00:00:00.000000: This split has 8 training and 2 validation cases. \n"
    head += "2026-01-01 00:00:00.000000: 60 of 64 unlabeled cases in /somewhere\n" if semi else ""
    lines = [EPOCH.format(epoch, 1.5 - epoch, -0.25 * epoch) for epoch in range(epochs)]
    (fold / "training_log_2026_1_1_00_00_00.txt").write_text(head + "".join(lines))
    if semi:
        rows = [f"{epoch},1.5,0.5,0.1,0.9,{0.2 + 0.1 * epoch},nan" for epoch in range(epochs)]
        header = "epoch,semi_loss_labeled,semi_loss_unlabeled,semi_weight,semi_kept,share_background,share_wall"
        (fold / "progress_semi.csv").write_text("\n".join([header, *rows]))
    (fold / "debug.json").write_text(json.dumps({"num_epochs": epochs, "batch_size": 2, "versions": "nnunet_semi 0.0"}))
    (fold.parent / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "wall": 1}, "numTraining": 8}))
    plans = {"dataset_name": "Dataset007_Heart", "configurations": {"2d": {"patch_size": [64, 80], "spacing": [1, 1]}}}
    (fold.parent / "plans.json").write_text(json.dumps(plans))
    found = evaluate(dataset / "labelsTs", dataset / "predictions", progress=False).as_tree()
    del found["nnunet_semi"]
    (fold / "validation" / "summary.json").write_text(json.dumps(found))
    return fold
