"""The classes of a folder: values that become consecutive, VOC's border, and LabelMe's labels."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from conversion_sources import (
    COLUMNS,
    QUIET,
    ROWS,
    blob,
    body,
    check_integrity,
    image_of,
    nnunet_folders,  # noqa: F401
    random_image,
    write_labelme,
    write_png,
    write_volume,
)
from nnunet_semi.dataset_conversion import folder
from nnunet_semi.dataset_conversion.plan import SourceProblems
from nnunet_semi.dataset_conversion.writing import Conversion
from nnunet_semi.errors import WrongUse

GREY, RGB = (ROWS, COLUMNS), (ROWS, COLUMNS, 3)
STRIPES = blob(GREY, 2)


def convert(source: Path, **options: Any) -> Conversion:
    return folder.convert(source, writing=QUIET, **options)


def description_of(done: Conversion) -> dict[str, Any]:
    return json.loads((done.folder / "dataset.json").read_text())


def make(root: Path, label: Callable[[int], np.ndarray] = lambda number: STRIPES) -> Path:
    """Three labeled grey images."""
    for number in range(3):
        write_png(root / f"images/a{number}.png", random_image(number, *GREY))
        write_png(root / f"labels/a{number}.png", label(number))
    return root


# --- kinds of labels ---


def test_masks_of_0_and_255_become_0_and_1(tmp_path: Path) -> None:
    done = convert(make(tmp_path / "source", lambda number: (STRIPES > 0) * np.uint8(255)))
    np.testing.assert_array_equal(image_of(done.folder / "labelsTr/a0.png"), STRIPES > 0)
    assert description_of(done)["labels"] == {"background": 0, "foreground": 1}
    assert done.notes == ["labels: 0 → 0 (background), 255 → 1 (foreground)"]
    check_integrity(done.folder)


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        ((0, 128, 255), {"class128": 1, "class255": 2}),
        ((0, 3, 7), {"class3": 1, "class7": 2}),
        ((1, 2, 3), {"class1": 1, "class2": 2, "class3": 3}),
    ],
)
def test_values_become_consecutive(values: tuple[int, ...], labels: dict[str, int], tmp_path: Path) -> None:
    done = convert(make(tmp_path / "source", lambda number: np.array(values, np.uint8)[STRIPES]))
    assert description_of(done)["labels"] == {"background": 0, **labels}
    expected = STRIPES if values[0] == 0 else STRIPES + 1
    np.testing.assert_array_equal(image_of(done.folder / "labelsTr/a1.png"), expected)
    check_integrity(done.folder)


def test_a_class_that_few_files_hold_has_the_same_number_in_all(tmp_path: Path) -> None:
    done = convert(make(tmp_path / "source", lambda number: np.where(STRIPES == 1, (4, 9, 4)[number], 0).astype("u1")))
    assert [image_of(done.folder / f"labelsTr/a{number}.png").max() for number in range(3)] == [1, 2, 1]


def test_black_and_white_masks_and_masks_in_three_equal_channels_are_read(tmp_path: Path) -> None:
    source = make(tmp_path / "source", lambda number: (STRIPES > 0).astype(np.uint8))
    Image.fromarray(STRIPES > 0).save(source / "labels/a0.png")
    write_png(source / "labels/a1.png", np.repeat((STRIPES > 0)[..., None], 3, 2).astype(np.uint8))
    done = convert(source)
    for number in range(3):
        np.testing.assert_array_equal(image_of(done.folder / f"labelsTr/a{number}.png"), STRIPES > 0)


def test_sixteen_bits_are_enough_for_numbers_above_255(tmp_path: Path) -> None:
    done = convert(make(tmp_path / "source", lambda number: np.array([0, 300, 1035], np.uint16)[STRIPES]))
    assert list(description_of(done)["labels"]) == ["background", "class300", "class1035"]
    np.testing.assert_array_equal(image_of(done.folder / "labelsTr/a0.png"), STRIPES)


def voc(path: Path, indices: np.ndarray) -> None:
    """A mask with a palette, as those of PASCAL VOC."""
    image = Image.fromarray(indices)
    image.putpalette(np.random.default_rng(0).integers(0, 256, 768, np.uint8).tobytes())
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def test_the_border_in_masks_of_voc_becomes_the_ignore_label(tmp_path: Path) -> None:
    indices = np.tile(np.array([[0, 15], [255, 3]], np.uint8), (ROWS // 2, COLUMNS // 2))
    for number in range(2):
        write_png(tmp_path / f"source/JPEGImages/a{number}.jpg", random_image(number, *RGB))
        voc(tmp_path / f"source/SegmentationClass/a{number}.png", indices)
    done = convert(tmp_path / "source", classes=["bicycle", "person"])
    assert description_of(done)["labels"] == {"background": 0, "bicycle": 1, "person": 2, "ignore": 3}
    np.testing.assert_array_equal(image_of(done.folder / "labelsTr/a0.png")[:2, :2], [[0, 2], [3, 1]])
    assert done.notes == ["labels: 0 → 0 (background), 3 → 1 (bicycle), 15 → 2 (person), 255 → 3 (ignore)"]
    check_integrity(done.folder)


def test_a_palette_with_0_and_255_only_is_a_mask_of_one_class(tmp_path: Path) -> None:
    source = make(tmp_path / "source")
    for path in (source / "labels").iterdir():
        voc(path, (STRIPES > 0) * np.uint8(255))
    assert description_of(convert(source))["labels"] == {"background": 0, "foreground": 1}


def test_the_value_of_unlabeled_pixels_can_be_said(tmp_path: Path) -> None:
    source = make(tmp_path / "source", lambda number: np.array([0, 1, 255], np.uint8)[STRIPES])
    done = convert(source, ignore=255)
    assert description_of(done)["labels"] == {"background": 0, "foreground": 1, "ignore": 2}
    check_integrity(done.folder)


def test_names_of_classes_and_channels_must_be_as_many_as_there_are(tmp_path: Path) -> None:
    source = make(tmp_path / "source")
    with pytest.raises(SourceProblems, match="the values 1, 2 for the classes a; expected as many"):
        convert(source, classes=["a"])
    with pytest.raises(WrongUse, match="got 2 channel names"):
        convert(source, channels=["a", "b"])


# --- black and white masks in shades of grey ---


def shaded(kind: str) -> np.ndarray:
    """A white disc that went through JPEG, or whose edge is smooth."""
    y, x = np.mgrid[:64, :64]
    far = np.hypot(y - 30, x - 33)
    if kind == "smooth":
        return (np.clip(20.5 - far, 0, 1) * 255).astype(np.uint8)
    if kind == "resized":
        small = Image.fromarray((far < 20).astype(np.uint8) * 255)
        return np.asarray(small.resize((256, 256), Image.Resampling.BILINEAR))
    file = BytesIO()
    Image.fromarray(((far < 20) if kind == "JPEG" else abs(far - 20) < 1.5).astype(np.uint8) * 255).save(file, "JPEG")
    return np.asarray(Image.open(file))


def make_shaded(root: Path, mask: np.ndarray) -> Path:
    write_png(root / "images/a.png", random_image(0, *mask.shape))
    write_png(root / "labels/a.png", mask)
    return root


@pytest.mark.parametrize("kind", ["JPEG", "thin lines in JPEG", "smooth", "resized"])
def test_black_and_white_masks_in_shades_of_grey_are_refused(kind: str, tmp_path: Path) -> None:
    source = make_shaded(tmp_path / "source", shaded(kind))
    for classes in (None, ["tumour"]):
        with pytest.raises(SourceProblems, match="threshold masks in shades of grey first"):
            convert(source, classes=classes)


def test_shades_can_be_insisted_on_as_classes(tmp_path: Path) -> None:
    mask = shaded("smooth")
    values = [str(value) for value in np.unique(mask)[1:]]
    done = convert(make_shaded(tmp_path / "source", mask), classes=[f"v{value}" for value in values])
    assert len(description_of(done)["labels"]) == len(values) + 1


@pytest.mark.parametrize(
    "values",
    [
        range(120),  # organs
        (0, 50, 100, 200),
        (0, 100, 255),
        (0, 85, 170, 255),
        (0, 50, 100, 150, 200, 255),
        (0, 7, 11, 21, 26, 33, 255),  # Cityscapes
        (0, 1, 60, 181, 255),  # COCO-Stuff
        (0, 30, 60, 90, 120, 150, 180, 210, 240),
    ],
)
def test_values_of_real_label_maps_are_no_shades(values: Sequence[int], tmp_path: Path) -> None:
    mask = np.array(values, np.uint8)[np.arange(64 * 64).reshape(64, 64) % len(values)]
    done = convert(make_shaded(tmp_path / "source", mask))
    assert len(description_of(done)["labels"]) == len(values)


def test_the_numbers_of_freesurfer_are_no_shades(tmp_path: Path) -> None:
    mask = np.array([0, 2, 3, 4, 10, 17, 41, 42, 77], np.uint8)[np.arange(64 * 64).reshape(64, 64) % 9]
    mask[30, 20:25] = range(251, 256)  # the corpus callosum
    assert len(description_of(convert(make_shaded(tmp_path / "source", mask)))["labels"]) == 14


# --- what cannot be meant ---


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"ignore": 0}, "got --ignore 0, but 0 is the background"),
        ({"classes": ["a", "a"]}, "got --classes with a more than once"),
        ({"classes": ["background", "a"]}, "got --classes with background; expected the other classes only"),
        ({"classes": ["a", "Ignore"]}, "--ignore names the value of pixels that nobody has labeled"),
    ],
)
def test_classes_and_ignore_that_mean_nothing_are_wrong_use(options: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(WrongUse, match=said):
        convert(make(tmp_path / "source"), **options)


def test_a_value_to_ignore_has_to_be_in_a_mask(tmp_path: Path) -> None:
    source = make(tmp_path / "source")
    with pytest.raises(SourceProblems, match="got --ignore 255, but 1, 2 in the masks; expected a value that occurs"):
        convert(source, ignore=255)
    assert description_of(convert(source, ignore=2))["labels"] == {"background": 0, "foreground": 1, "ignore": 2}


# --- LabelMe ---


def test_labelme_has_a_label_of_its_own_for_what_is_ignored(tmp_path: Path) -> None:
    write_png(tmp_path / "source/a.png", random_image(0, *RGB))
    write_labelme(tmp_path / "source/a.json", [outline("a", 1, 5)])
    with pytest.raises(SourceProblems, match="--ignore 255 and files of LabelMe; expected shapes with the label __ign"):
        convert(tmp_path / "source", ignore=255)


def outline(label: str, left: int, right: int) -> dict[str, Any]:
    return {"label": label, "points": [[left, 2], [right, 9]], "shape_type": "rectangle"}


@pytest.mark.parametrize("beside", [True, False], ids=["beside the images", "in a folder of its own"])
def test_labels_of_labelme_become_classes_in_alphabetical_order(beside: bool, tmp_path: Path) -> None:
    source = tmp_path / "source"
    labels = source if beside else source / "labels"
    for number, shapes in enumerate([[outline("tumour", 1, 5), outline("cyst", 4, 8)], [outline("tumour", 2, 3)], []]):
        write_png((source if beside else source / "images") / f"a{number}.jpg", random_image(number, *RGB))
        write_labelme(labels / f"a{number}.json", shapes)
    done = convert(source)
    assert description_of(done)["labels"] == {"background": 0, "cyst": 1, "tumour": 2}
    expected = np.zeros(GREY, np.uint8)
    expected[2:10, 1:6], expected[2:10, 4:9] = 2, 1
    np.testing.assert_array_equal(image_of(done.folder / "labelsTr/a0.png"), expected)
    assert not image_of(done.folder / "labelsTr/a2.png").any()
    assert done.notes == ["labels: cyst → 1 (cyst), tumour → 2 (tumour)"]
    check_integrity(done.folder)


def test_the_order_of_labelme_classes_and_its_ignore_label(tmp_path: Path) -> None:
    write_png(tmp_path / "source/a.png", random_image(0, *RGB))
    shapes = [outline("b", 0, 3), outline("a", 4, 7), outline("__ignore__", 8, 11), outline("_background_", 2, 3)]
    write_labelme(tmp_path / "source/a.json", shapes)
    done = convert(tmp_path / "source", classes=["b", "a"])
    assert description_of(done)["labels"] == {"background": 0, "b": 1, "a": 2, "ignore": 3}
    row = image_of(done.folder / "labelsTr/a.png")[5, :13].tolist()
    assert row == [1, 1, 0, 0, 2, 2, 2, 2, 3, 3, 3, 3, 0]
    with pytest.raises(SourceProblems, match="the labels a, b; expected a, c, as you said"):
        folder.convert(tmp_path / "source", 2, classes=["a", "c"], writing=QUIET)


def test_masks_and_labelme_files_cannot_be_mixed(tmp_path: Path) -> None:
    write_volume(tmp_path / "source/images/v.nii.gz", body(0))
    write_labelme(tmp_path / "source/labels/v.json", [outline("a", 1, 2)])
    with pytest.raises(SourceProblems, match=r"outlines in an image of shape \(6, 8, 7\); expected a 2D image"):
        convert(tmp_path / "source")
