"""The report: one HTML file that is whole in itself and holds what is in the results."""

from __future__ import annotations

import base64
import json
import math
import os
import re
import shutil
import subprocess
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from nnunet_semi.evaluation.landmarks import evaluate_landmarks
from nnunet_semi.evaluation.run import evaluate
from nnunet_semi.pictures.landmarks import GREEN, YELLOW
from nnunet_semi.report.cases import draw_case
from nnunet_semi.report.page import report
from nnunet_semi.report.results import find_results
from nnunet_semi.report.scores import Case, read_scores
from reported_results import Page, make_fold, page_of, square
from reported_results import dataset as dataset
from reported_results import scores as scores

HOSTILE = "<script>alert('x')</script> & \"quoted\""


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


@pytest.mark.parametrize(("place", "joined"), [([10, 20], True), ([60, 20], False)])
def test_a_reference_outside_of_the_image_is_not_drawn_as_it_is_not_scored(tmp_path, place, joined):
    for name, voxel in (("reference", place), ("prediction", [40, 20])):
        content = {"size": [50, 60], "spacing": [0.5, 0.5], "landmarks": [{"name": "tip", "label": 1, "voxel": voxel}]}
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    case = Case("a", {}, tmp_path / "reference.json", tmp_path / "prediction.json")
    page = Image.open(BytesIO(draw_case(case, landmarks=True, size=400)[0]))
    values = np.asarray(page.convert("RGB")).astype(int)
    green, yellow = ((np.abs(values - colour).max(axis=-1) < 40).any() for colour in (GREEN, YELLOW))
    assert green and yellow == joined


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
