"""`nnunet_semi screen`: pictures of unlabeled cases, and the page on which a person ticks them."""

from __future__ import annotations

import base64
import io
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
import pytest
from PIL import Image

from nnunet_semi.errors import EnvironmentNotReady, UserError, WrongUse
from nnunet_semi.filtering.images import COLOURS, ImageSource, outline
from nnunet_semi.filtering.page import Tile, page
from nnunet_semi.filtering.rules import Rules
from nnunet_semi.filtering.score import score_unlabeled
from nnunet_semi.filtering.screen import BYTES_PER_CASE, screen_unlabeled, thumbnail
from nnunet_semi.filtering.select import select_unlabeled
from nnunet_semi.filtering.table import read_table
from scored_model import make_model


class Page(HTMLParser):
    """What is on a page: tags with their attributes, and the text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    def cases(self) -> list[str | None]:
        return [box["value"] for box in self.all("input")]


def store(folder: Path, name: str, values: np.ndarray) -> None:
    folder.mkdir(exist_ok=True)
    blosc2.asarray(np.ascontiguousarray(values), urlpath=str(folder / f"{name}.b2nd"))


@pytest.fixture
def volume(tmp_path: Path) -> ImageSource:
    """A volume of 5 slices of 20 × 10 pixels, twice as high as wide; foreground is in slice 3 only."""
    image = np.random.default_rng(0).normal(size=(1, 5, 20, 10)).astype(np.float32)
    prediction = np.zeros(image.shape[1:], np.uint8)
    prediction[3, 5:15, 2:8] = 1
    prediction[3, 8:12, 4:6] = 2
    store(tmp_path / "images", "case", image)
    store(tmp_path / "predictions", "case", prediction)
    return ImageSource(tmp_path / "images", tmp_path / "predictions", aspect=2.0)


def has_colour(pixels: np.ndarray, label: int) -> bool:
    return bool((pixels == COLOURS[label - 1]).all(-1).any())


# --- pictures ---


def test_pictures_have_the_shape_of_the_body_and_outlines_of_all_labels(volume: ImageSource) -> None:
    pixels = volume.picture("case", 80)
    assert pixels.shape == (80, 20, 3)  # 20 pixels of height 2 against 10 of width 1
    assert has_colour(pixels, 1) and has_colour(pixels, 2)


def test_without_prediction_the_middle_slice_is_shown(volume: ImageSource, tmp_path: Path) -> None:
    image = blosc2.open(str(volume.images / "case.b2nd"))[:]
    store(tmp_path / "middle", "case", image[:, 2:3])
    plain = ImageSource(volume.images, None, 2.0).picture("case", 80)
    assert np.array_equal(plain, ImageSource(tmp_path / "middle", None, 2.0).picture("case", 80))
    assert not has_colour(plain, 1)


def test_an_image_of_one_value_is_even_grey(tmp_path: Path) -> None:
    store(tmp_path / "images", "case", np.full((1, 1, 8, 8), 3, np.float32))
    assert set(ImageSource(tmp_path / "images", None).picture("case", 8).ravel()) == {127}


def test_colour_images_keep_their_colours(tmp_path: Path) -> None:
    image = np.zeros((3, 1, 8, 8), np.float32)
    image[0, 0, :4] = 1
    store(tmp_path / "images", "case", image)
    pixels = ImageSource(tmp_path / "images", None, colour=True).picture("case", 8)
    assert tuple(pixels[0, 0]) == (255, 0, 0)
    assert len(set(ImageSource(tmp_path / "images", None).picture("case", 8)[0, 0])) == 1  # grey


def test_an_outline_is_the_border_of_a_label_and_not_of_the_image() -> None:
    labels = np.zeros((5, 5), np.uint8)
    labels[:, 2:] = 1
    pixels = np.zeros((5, 5, 3), np.uint8)
    outline(pixels, labels)
    assert pixels.any(-1).sum(0).tolist() == [0, 0, 5, 0, 0]


def test_a_prediction_of_another_image_is_told(volume: ImageSource, tmp_path: Path) -> None:
    (tmp_path / "predictions" / "case.b2nd").unlink()
    store(tmp_path / "predictions", "case", np.zeros((5, 9, 9), np.uint8))
    with pytest.raises(EnvironmentNotReady, match="cannot be read .ValueError: shapes"):
        volume.picture("case", 80)


def test_thumbnails_stay_below_their_size_even_of_noise(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).normal(size=(3, 1, 300, 300)).astype(np.float32)
    store(tmp_path / "images", "case", noise)
    assert len(thumbnail(ImageSource(tmp_path / "images", None, colour=True), "case")) < BYTES_PER_CASE


# --- the page ---


@pytest.fixture
def table(tiny_2d: Path) -> Path:
    make_model(tiny_2d)
    return score_unlabeled(1, "2d", "checkpoints", mirroring=False, device="cpu", progress=False).table


def screen(output: Path, **options: Any) -> Page:
    summary = screen_unlabeled(1, output=output, num_processes=1, progress=False, **options)
    assert summary.path == output and summary.size == output.stat().st_size
    assert summary.size < 10_000 + summary.cases * BYTES_PER_CASE
    return Page(output.read_text(encoding="utf-8"))


def test_the_page_shows_every_case_the_worst_first(table: Path, tmp_path: Path) -> None:
    found = screen(tmp_path / "screen.html")
    rows = sorted(read_table(table), key=lambda row: row.score)
    assert found.cases() == [row.case for row in rows]
    assert all(f"score {row.score:.3f}" in found.text for row in rows)
    sources = [image["src"] or "" for image in found.all("img")]
    pixels = [
        np.asarray(Image.open(io.BytesIO(base64.b64decode(source.removeprefix("data:image/jpeg;base64,")))))
        for source in sources
    ]
    assert len({picture.tobytes() for picture in pixels}) == len(rows)
    coloured = [(np.ptp(picture.astype(int), axis=-1) > 50).any() for picture in pixels]
    assert all(coloured)  # outlines on grey images


def test_without_a_table_it_shows_the_images(tiny_2d: Path, tmp_path: Path) -> None:
    found = screen(tmp_path / "screen.html")
    assert found.cases() == [f"un_{number:03d}" for number in range(4)]
    assert "score" not in found.text.split("select --exclude")[1].split("const boxes")[0]


def test_other_plans_can_be_chosen(tiny_2d: Path, tmp_path: Path) -> None:
    """Where nnUNetPlans are missing, the advice is to choose others with -p."""
    mine = tiny_2d.with_name("nnUNetResEncUNetMPlans.json")
    tiny_2d.rename(mine)
    table = tmp_path / "copied.csv"
    table.write_text("case,score,complete\nun_000,0.5,yes\nun_001,0.4,yes\n")
    try:
        with pytest.raises(EnvironmentNotReady, match="there is nnUNetResEncUNetMPlans: choose with -p"):
            screen(tmp_path / "screen.html")
        assert len(screen(tmp_path / "screen.html", plans=mine.stem).cases()) == 4
        assert select_unlabeled(1, Rules(top=0.5), table, plans=mine.stem).selected.cases == ["un_000"]
    finally:
        mine.rename(tiny_2d)
        for path in tiny_2d.parent.glob("unlabeled_final.*"):
            path.unlink()


def test_the_page_needs_nothing_from_elsewhere(table: Path, tmp_path: Path) -> None:
    found = screen(tmp_path / "screen.html")
    sources = [attributes["src"] or "" for _, attributes in found.tags if "src" in attributes]
    assert len(sources) == 4 and all(source.startswith("data:image/jpeg;base64,") for source in sources)
    assert not [tag for tag, attributes in found.tags if tag == "link" or "href" in attributes]
    assert not re.search(r"@import|url\(|fetch\(|XMLHttpRequest", found.text)
    assert any("default-src 'none'" in (meta.get("content") or "") for meta in found.all("meta"))


def test_names_and_notes_are_escaped() -> None:
    case = "<img src=x onerror=alert(1)>\"&'"
    html = "".join(page(f"T {case}", f"k {case}", [Tile(case, case, "")], [case]))
    found = Page(html)
    assert found.cases() == [case]
    assert [image["alt"] for image in found.all("img")] == [case]
    [body] = found.all("body")
    assert body["data-file"] == "screened.txt"  # as README.md and docs/ have it
    assert body["data-title"] == f"T {case}" and body["data-key"] == f"k {case}"


def test_the_page_can_be_used_by_keyboard_and_on_a_phone() -> None:
    found = Page("".join(page("title", "key", [Tile("a", "", "")], [])))
    assert any(meta.get("name") == "viewport" for meta in found.all("meta"))
    assert found.all("html") == [{"lang": "en"}]
    assert [box["type"] for box in found.all("input")] == ["checkbox"]  # the space bar ticks it


def test_an_existing_page_is_kept(table: Path, tmp_path: Path) -> None:
    path = tmp_path / "screen.html"
    path.write_text("mine")
    with pytest.raises(UserError, match="exists; choose another name"):
        screen(path)
    screen(path, overwrite=True)
    with pytest.raises(WrongUse, match="ends in .html"):
        screen(tmp_path / "screen.txt")


@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed")
def test_the_script_runs_in_a_browser(table: Path, tmp_path: Path) -> None:
    screen(tmp_path / "screen.html")
    page_with_click = (
        (tmp_path / "screen.html")
        .read_text()
        .replace("</body>", "<script>document.querySelectorAll('main input')[1].click()</script></body>")
    )
    (tmp_path / "clicked.html").write_text(page_with_click)
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    url = (tmp_path / "clicked.html").as_uri()
    done = subprocess.run([*command, "--dump-dom", url], capture_output=True, text=True, timeout=300)
    assert "1 of 4 ticked" in done.stdout
