"""The report: one HTML file that is whole in itself, whatever is in the results and whatever is missing."""

from __future__ import annotations

import base64
import json
import math
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from nnunet_semi.cli import main
from nnunet_semi.errors import UserError
from nnunet_semi.evaluation.landmarks import evaluate_landmarks
from nnunet_semi.evaluation.run import evaluate
from nnunet_semi.report.page import LARGEST, report
from nnunet_semi.report.results import find_results
from nnunet_semi.report.scores import read_scores
from nnunet_semi.report.training import read_training

MODEL = "nnUNetTrainerCPS__nnUNetPlans__2d"
HOSTILE = "<script>alert('x')</script> & \"quoted\""
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


# --- what the page holds ---


def test_a_semi_supervised_fold_has_its_facts_curves_shares_scores_and_pictures(dataset, tmp_path):
    page = page_of([make_fold(dataset)], tmp_path)
    words = page.words
    for said in (
        "Dataset007_Heart",
        "nnUNetTrainerCPS, 2d, fold 0",
        "8 for training, 2 for validation",
        "64 × 80",
        "nnunet_semi 0.0",
    ):
        assert said in words
    captions = [
        "Loss",
        "Pseudo Dice in validation patches, mean of the classes",
        "Labeled and unlabeled loss",
        "Weight of the unsupervised loss",
        "Shares of the classes in the pseudo labels",
        "Dice per class; a dot is a case",
        "Worst: case_3",
        "Median: case_2",
        "Best: case_0, Dice 1.0000",
    ]
    assert [caption for caption in captions if caption not in words] == []
    assert "unlabeled cases 60" in words and "40.0 %" in words  # share of the background at the end
    alts = [image["alt"] for image in page.all("img")]
    assert any(alt.startswith("Line chart over 3 epochs. Loss: training from 1.5 to -0.5") for alt in alts)


def test_a_supervised_fold_does_without_the_curves_of_pseudo_labels(dataset, tmp_path):
    page = page_of([make_fold(dataset, semi=False)], tmp_path)
    assert "none (supervised)" in page.words and "There is no progress_semi.csv" in page.words
    assert "Pseudo labels at the end" not in page.words and "Loss" in page.words


def test_the_table_holds_the_means_of_the_summary(scores, tmp_path):
    page = page_of([scores], tmp_path)
    tree = json.loads((scores / "summary.json").read_text())
    mean = tree["mean"]["1"]
    values = [case["metrics"]["1"]["Dice"] for case in tree["metric_per_case"]]
    for value in (
        f"{mean['Dice']:.4f}",
        f"{mean['HD']:.2f}",
        f"{np.std(values, ddof=1):.4f}",
        f"{np.median(values):.4f}",
    ):
        assert value in page.words
    low, high = (tree["nnunet_semi"]["statistics"]["Dice"]["1"][end] for end in ("low", "high"))
    assert f"{low:.4f} to {high:.4f}" in page.words


def test_a_challenge_keeps_its_pixels_and_its_own_mean_of_classes(dataset, tmp_path):
    """FUGC averages Dice over two lips; the region of both is in the table and not in that mean."""
    for folder, start in (("labelsTs", 5), ("predictions", 7)):
        for path in (dataset / folder).glob("*.png"):
            both = np.maximum(np.asarray(Image.open(path)), square((64, 80), (start, 50), 10) * 2)
            Image.fromarray(both).save(path)
    found = evaluate(
        dataset / "labelsTs", dataset / "predictions", challenge="fugc2025", output=dataset / "lips", progress=False
    )
    page = Page(report([dataset / "lips"], tmp_path / "report.html").read_text())
    assert "HD in pixels" in page.words and " mm" not in page.words
    assert f"mean of classes {found.challenge['DSC']:.4f}" in page.words
    assert f"{found.challenge['HD']:.2f}" in page.words.partition("mean of classes")[2]


def test_values_that_are_not_defined_are_counted_and_left_out(dataset, tmp_path):
    Image.fromarray(np.zeros((64, 80), np.uint8)).save(dataset / "labelsTs" / "case_2.png")
    Image.fromarray(np.zeros((64, 80), np.uint8)).save(dataset / "predictions" / "case_2.png")
    evaluate(dataset / "labelsTs", dataset / "predictions", labels=[1], output=dataset / "scores", progress=False)
    found = read_scores(find_results([dataset / "scores"])[0])
    assert math.isnan(found.table("Dice")[2, 0]) and len(found.ranking()) == 3
    row = re.search(
        r"<tr><th scope=\"row\">1</th>(.*?)</tr>", report([dataset / "scores"], tmp_path / "r.html").read_text()
    )
    assert row and re.findall(r"<td>([^<]*)</td>", row[1])[-2:] == ["3", "1"]


def test_a_class_without_any_value_has_no_row_in_the_box_plot(dataset, tmp_path):
    pictures = {}
    for labels in ([1], [1, 9]):
        folder = dataset / f"scores_{len(labels)}"
        evaluate(dataset / "labelsTs", dataset / "predictions", labels=labels, output=folder, progress=False)
        page = Page(report([folder], tmp_path / f"{len(labels)}.html").read_text())
        (pictures[len(labels)],) = (p["src"] for p in page.all("img") if (p["alt"] or "").startswith("Box plot"))
    assert pictures[1] == pictures[2]
    assert '<th scope="row">9</th>' in (tmp_path / "2.html").read_text()


def test_several_results_have_an_overview_with_links_that_lead_somewhere(dataset, scores, tmp_path):
    folds = [make_fold(dataset, number) for number in (0, 1)]
    page = page_of([folds[0].parent, scores], tmp_path)
    targets = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    links = [link["href"] for link in page.all("a")]
    assert len(links) == 3 and {link.removeprefix("#") for link in links} <= targets
    assert "Report on 3 results" in page.words


def test_pictures_of_cases_show_both_contours(scores, tmp_path):
    page = page_of([scores], tmp_path)
    pictures = [image["src"] for image in page.all("img") if "image/jpeg" in image["src"]]
    assert len(pictures) == 3
    worst = np.asarray(Image.open(BytesIO(base64.b64decode(pictures[0].partition(",")[2]))).convert("RGB")).astype(int)
    red = (worst[..., 0] - worst[..., 1] > 90) & (worst[..., 0] - worst[..., 2] > 90)
    green = (worst[..., 1] - worst[..., 0] > 70) & (worst[..., 1] - worst[..., 2] > 50)
    columns = [np.flatnonzero(mask.any(axis=0)) for mask in (red, green)]
    # the prediction of the worst case lies 9 of 29 columns to the right
    assert columns[0].min() < columns[1].min() - 20 and columns[1].max() > columns[0].max() + 20


def test_landmarks_are_reported_with_pictures_in_three_colours(tmp_path):
    (tmp_path / "imagesTs").mkdir()
    for number in range(3):
        Image.fromarray(np.full((60, 50), 90, np.uint8)).save(tmp_path / "imagesTs" / f"c{number}_0000.png")
        for folder, shift in (("landmarksTs", 0), ("predictions", 3 + 4 * number)):
            entries = [
                {"name": "tip", "label": 1, "voxel": [10 + shift, 20]},
                {"name": "root", "label": 2, "voxel": None if folder == "predictions" and number == 1 else [30, 40]},
            ]
            content = {"size": [50, 60], "spacing": [0.5, 0.5], "landmarks": entries}
            (tmp_path / folder).mkdir(exist_ok=True)
            (tmp_path / folder / f"c{number}.json").write_text(json.dumps(content))
    evaluate_landmarks(tmp_path / "landmarksTs", tmp_path / "predictions", output=tmp_path / "out", progress=False)
    page = page_of([tmp_path / "out"], tmp_path)
    assert "1 tip" in page.words and "SDR 2.5 mm" in page.words and "33.3 %" in page.words  # missed
    assert "Worst: c1, MRE 3.50 mm" in page.words and "Best: c0, MRE 0.75 mm" in page.words
    picture = next(image["src"] for image in page.all("img") if "image/jpeg" in image["src"])
    values = np.asarray(Image.open(BytesIO(base64.b64decode(picture.partition(",")[2]))).convert("RGB")).astype(int)
    for colour in ((255, 64, 64), (64, 230, 90), (255, 225, 60)):
        assert (np.abs(values - colour).max(axis=-1) < 60).any()


def test_a_fold_of_a_heatmap_trainer_is_measured_again_from_its_points(tmp_path, monkeypatch):
    fold = tmp_path / "nnUNet_results" / "Dataset001_Dots" / "nnUNetTrainerHeatmap__nnUNetPlans__2d" / "fold_0"
    raw = tmp_path / "nnUNet_raw" / "Dataset001_Dots" / "landmarksTr"
    for folder, x in ((fold / "validation", 14), (raw, 10)):
        folder.mkdir(parents=True)
        content = {"size": [50, 60], "spacing": [0.5, 0.5], "landmarks": [{"name": "tip", "label": 1, "voxel": [x, 5]}]}
        (folder / "a.json").write_text(json.dumps(content))
    total = {"MRE": 2.0, "SD": 0.0, "SDR": {}}
    summary = {"mean": total, "per_landmark": {"tip": total}, "metric_per_case": [{"case": "a", **total}]}
    (fold / "validation" / "summary.json").write_text(json.dumps(summary))
    (fold / "debug.json").write_text("{}")
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "nnUNet_raw"))
    found = read_scores(find_results([fold])[0])
    assert found.classes == {"1": "tip"} and found.table("MRE")[0, 0] == pytest.approx(2.0)
    assert found.table("SDR 2 mm")[0, 0] == 0 and found.table("SDR 2.5 mm")[0, 0] == 1
    monkeypatch.delenv("nnUNet_raw")
    found = read_scores(find_results([fold])[0])
    assert found.classes == {"0": "all landmarks"} and found.table("MRE")[0, 0] == 2.0
    assert "all landmarks" in page_of([fold], tmp_path).words


# --- one file, readable by all ---


def test_nothing_is_loaded_from_elsewhere(dataset, scores, tmp_path):
    page = page_of([make_fold(dataset), scores], tmp_path)
    assert all(image["src"].startswith("data:image/") for image in page.all("img"))
    assert page.all("link") == page.all("script") == page.all("iframe") == []
    text = (tmp_path / "report.html").read_text()
    assert not re.search(r"(?:src|href|url\(|@import)\s*=?\s*[\"'(]?\s*(?:https?:|//|file:)", text)
    assert "http://" not in text and "https://" not in text
    policy = next(meta["content"] for meta in page.all("meta") if meta.get("http-equiv"))
    assert policy.startswith("default-src 'none'")


def test_the_page_can_be_read_without_seeing_it(dataset, tmp_path):
    page = page_of([make_fold(dataset)], tmp_path)
    assert page.all("html") == [{"lang": "en"}] and page.all("title") and len(page.all("h1")) == 1
    assert all(len(image.get("alt") or "") > 20 for image in page.all("img"))
    levels = [int(name[1]) for name, _ in page.tags if re.fullmatch(r"h[1-6]", name)]
    assert levels[0] == 1 and all(after - before <= 1 for before, after in zip(levels, levels[1:], strict=False))
    tables, captions = page.all("table"), page.all("caption")
    assert len(tables) == len(captions) > 0
    assert {th.get("scope") for th in page.all("th")} == {"col", "row"}
    assert len(page.all("main")) == len(page.all("header")) == 1


def test_names_are_text_and_never_markup(dataset, tmp_path):
    model = "nnUNetTrainer<img src=x onerror=alert(1)>__nnUNetPlans__2d"
    fold = make_fold(dataset, model=model)
    summary = json.loads((fold / "validation" / "summary.json").read_text())
    summary["metric_per_case"][3]["case"] = HOSTILE
    summary["nnunet_semi"] = {"classes": {"1": HOSTILE}, "notes": [HOSTILE], "challenge": {HOSTILE: HOSTILE}}
    (fold / "validation" / "summary.json").write_text(json.dumps(summary))
    (fold.parent / "dataset.json").write_text(json.dumps({"labels": {HOSTILE: 1, "$x_{1}$": 2}}))
    (fold / "progress_semi.csv").write_text(f'epoch,"share_{HOSTILE.replace(chr(34), chr(34) * 2)}"\n0,0.5\n1,0.25\n')
    page = page_of([fold], tmp_path)
    assert page.all("script") == [] and not any("onerror" in image for image in page.all("img"))
    assert f"Worst: {HOSTILE}" in page.words and page.words.count(HOSTILE) >= 4


def test_many_results_stay_below_the_limit(dataset, tmp_path):
    random = np.random.default_rng(0)
    for path in (dataset / "imagesTs").iterdir():  # noise, which compresses badly, on the whole picture
        Image.fromarray(random.integers(0, 255, (600, 600)).astype(np.uint8)).save(path)
    for folder in ("labelsTs", "predictions"):
        for number in range(4):
            values = square((600, 600), (50, 50 + number), 500)
            Image.fromarray(values).save(dataset / folder / f"case_{number}.png")
    folds = [make_fold(dataset, number) for number in range(5)]
    page = page_of([folds[0].parent], tmp_path)
    assert len([image for image in page.all("img") if "image/jpeg" in image["src"]]) == 15


# --- what is missing or wrong ---


def test_a_training_without_validation_and_without_settings_is_still_reported(dataset, tmp_path):
    fold = make_fold(dataset)
    for path in (fold / "validation" / "summary.json", fold / "debug.json", fold.parent / "plans.json"):
        path.unlink()
    (fold.parent / "dataset.json").write_text("no JSON")
    page = page_of([fold], tmp_path)
    assert "the model was not validated" in page.words and "Labeled and unlabeled loss" in page.words


def test_a_fold_with_nothing_but_a_checkpoint_says_what_is_not_there(dataset, tmp_path):
    fold = make_fold(dataset, semi=False)
    (fold / "training_log_2026_1_1_00_00_00.txt").unlink()
    (fold / "debug.json").unlink()
    (fold / "checkpoint_final.pth").touch()
    assert "There is no training log with finished epochs" in page_of([fold], tmp_path).words


def test_images_and_label_maps_that_are_gone_are_told(dataset, scores, tmp_path):
    shutil.rmtree(dataset / "imagesTs")
    (dataset / "predictions" / "case_3.png").unlink()
    page = page_of([scores], tmp_path)
    assert "There is no picture of the worst case case_3" in page.words
    assert "case_2 is drawn on grey: the image of case_2 is not at hand." in page.words


def test_images_that_cannot_be_read_or_have_another_size_are_told(dataset, scores, tmp_path):
    (dataset / "imagesTs" / "case_3_0000.png").write_bytes(b"no picture")
    Image.fromarray(np.zeros((3, 4), np.uint8)).save(dataset / "imagesTs" / "case_0_0000.png")
    words = page_of([scores], tmp_path).words
    assert "The worst case case_3 is drawn on grey: the image " in words and "cannot be read (" in words
    assert "The best case case_0 is drawn on grey: the image " in words and "has the shape (3, 4), not " in words


def test_a_moved_result_finds_its_predictions_beside_the_summary(dataset, tmp_path):
    fold = make_fold(dataset)
    for path in (dataset / "predictions").iterdir():
        path.rename(fold / "validation" / path.name)
    assert "Best: case_0" in page_of([fold], tmp_path).words


def test_an_interrupted_and_resumed_training_is_one_curve(dataset):
    fold = make_fold(dataset, epochs=4)
    (fold / "training_log_2026_1_2_00_00_00.txt").write_text(EPOCH.format(2, 9.0, 8.0) + EPOCH.format(3, 7.0, 6.0))
    found = read_training(find_results([fold])[0])
    assert found.charts["Loss"]["training"] == {0: 1.5, 1: 0.5, 2: 9.0, 3: 7.0}
    (fold / "training_log_2026_1_10_00_00_00.txt").write_text(EPOCH.format(3, 6.0, 6.0))  # nnU-Net pads no day with 0
    assert read_training(find_results([fold])[0]).charts["Loss"]["training"][3] == 6.0
    (fold / "training_log_2026_1_10_00_00_00.txt").unlink()
    assert found.charts["Pseudo Dice in validation patches, mean of the classes"]["Dice"][0] == pytest.approx(0.6)
    assert found.facts["epochs done"] == "4, 12.5 s each"


def test_pseudo_labeled_cases_of_a_round_are_not_called_labeled(dataset, tmp_path, monkeypatch):
    raw = tmp_path / "raw" / "Dataset007_Heart"
    raw.mkdir(parents=True)
    (raw / "branch.json").write_text('{"branch_of": "Dataset001_Heart"}')
    fold = make_fold(dataset)
    assert "labeled cases" in read_training(find_results([fold])[0]).facts
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "raw"))
    facts = read_training(find_results([fold])[0]).facts
    assert facts["labeled and pseudo-labeled cases"] == "8 for training, 2 for validation"


def test_unlabeled_images_of_a_landmark_training_are_told(dataset):
    fold = make_fold(dataset)
    (fold / "progress_semi.csv").unlink(missing_ok=True)
    (fold / "progress_landmarks.csv").write_text("epoch,mre_mm,sdr_2mm,semi_kept\n0,9,0.25,0.5\n1,5,0.75,0.625\n")
    found = read_training(find_results([fold])[0])
    assert found.charts["Share of the landmarks that are found in validation patches"] == {"2 mm": {0: 0.25, 1: 0.75}}
    assert found.charts["Unlabeled images"] == {"kept": {0: 0.5, 1: 0.625}}
    assert not any("supervised" in note for note in found.notes)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("no JSON", "cannot be read as JSON"),
        ("[]", "holds a list"),
        ("{}", "holds no scores of cases"),
        ('{"metric_per_case": []}', "holds no scores of cases"),
        ('{"metric_per_case": [{"metrics": {}}]}', "holds cases without scores"),
        ('{"metric_per_case": [3]}', "holds no scores of cases"),
    ],
)
def test_a_summary_that_is_none_is_one_sentence(tmp_path, capsys, content, said):
    (tmp_path / "summary.json").write_text(content)
    assert main(["report", str(tmp_path), "-o", str(tmp_path / "r.html")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line and "summary.json" in line
    assert not (tmp_path / "r.html").exists()


def test_folders_without_results_and_outputs_that_exist_are_refused(scores, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no result; expected a fold folder"):
        report([tmp_path / "empty"], tmp_path / "r.html")
    with pytest.raises(UserError, match="is not a folder"):
        report([tmp_path / "nowhere"], tmp_path / "r.html")
    with pytest.raises(UserError, match="does not exist; make it"):
        report([scores], tmp_path / "nowhere" / "r.html")
    (tmp_path / "r.html").write_text("mine")
    with pytest.raises(UserError, match="pass --overwrite"):
        report([scores], tmp_path / "r.html")
    assert (tmp_path / "r.html").read_text() == "mine"
    report([scores / "summary.json"], tmp_path / "r.html", overwrite=True)
    assert "Report on 1 result" in (tmp_path / "r.html").read_text()


def test_damaged_curves_are_named(dataset, tmp_path):
    fold = make_fold(dataset)
    (fold / "progress_semi.csv").write_text("epoch,semi_weight\n0,x\n")
    with pytest.raises(UserError, match=r"progress_semi\.csv cannot be read"):
        report([fold], tmp_path / "r.html")


# --- in a browser ---

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), ""
)
MEASURE = """<script>
addEventListener("load", () => {
  const inner = document.querySelector("iframe").contentDocument;
  const images = [...inner.images];
  document.title = JSON.stringify({
    wide: inner.documentElement.scrollWidth, broken: images.filter(i => !i.naturalWidth).length,
    images: images.length, height: inner.documentElement.scrollHeight});
});
</script>"""


@pytest.mark.skipif(not CHROMIUM, reason="no Chromium here to look at the page with")
@pytest.mark.parametrize("width", [360, 1200])
def test_a_browser_shows_all_pictures_and_nothing_sticks_out(dataset, scores, tmp_path, width):
    report([make_fold(dataset), scores], tmp_path / "report.html")
    frame = f'<body style="margin:0"><iframe src="report.html" style="border:0;width:{width}px;height:900px"></iframe>'
    (tmp_path / "frame.html").write_text(f"<!DOCTYPE html><title></title>{MEASURE}{frame}")
    command = [CHROMIUM, "--headless", "--disable-gpu", "--no-sandbox", "--allow-file-access-from-files"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=5000", "--dump-dom"]
    environment = {**os.environ, "HOME": str(tmp_path)}
    done = subprocess.run(
        [*command, (tmp_path / "frame.html").as_uri()], capture_output=True, text=True, timeout=120, env=environment
    )
    measured = json.loads(re.search(r"<title>(\{.*?\})</title>", done.stdout)[1])
    assert measured["images"] == 14 and measured["broken"] == 0
    assert measured["wide"] <= width and measured["height"] > 900
