"""AICUP STAS: JPEG becomes PNG, outlines become one mask, and test images are found wherever they are."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from conversion_sources import (
    COLUMNS,
    QUIET,
    ROWS,
    SHARED,
    check_integrity,
    image_of,
    listing,
    make_aicup,
    nnunet_folders,  # noqa: F401
    random_image,
    write_labelme,
    write_png,
)
from nnunet_semi.dataset_conversion import aicup_stas

ANNOTATION = "SEG_Train_Datasets/Train_Annotations/00000000.json"


def test_training_and_test_images_get_their_folders(tmp_path: Path) -> None:
    done = aicup_stas.convert(make_aicup(tmp_path / "source"), writing=QUIET)
    assert listing(done.folder) == [
        "dataset.json",
        "imagesTr/00000000_0000.png",
        "imagesTr/00000001_0000.png",
        "imagesTs/Private_00000000_0000.png",
        "imagesTs/Public_00000000_0000.png",
        "labelsTr/00000000.png",
        "labelsTr/00000001.png",
    ]
    check_integrity(done.folder)


def test_images_are_what_the_jpeg_shows(tmp_path: Path) -> None:
    source = make_aicup(tmp_path / "source")
    done = aicup_stas.convert(source, writing=QUIET)
    expected = image_of(source / "SEG_Train_Datasets/Train_Images/00000000.jpg")
    np.testing.assert_array_equal(image_of(done.folder / "imagesTr/00000000_0000.png"), expected)


def test_the_mask_is_the_union_of_all_shapes_whatever_their_labels(tmp_path: Path) -> None:
    source = make_aicup(tmp_path / "source")
    shapes = [
        {"label": "STAS", "points": [[1, 1], [5, 1], [3, 6]], "shape_type": "polygon"},
        {"label": "../../../etc", "points": [[2, 2], [8, 4]], "shape_type": "rectangle"},
        {"label": None, "points": [[12, 8]], "shape_type": "point"},
    ]
    write_labelme(source / ANNOTATION, shapes, imagePath="../../../../etc/passwd")
    done = aicup_stas.convert(source, writing=QUIET)
    canvas = Image.new("L", (COLUMNS, ROWS))
    pen = ImageDraw.Draw(canvas)
    pen.polygon([(1, 1), (5, 1), (3, 6)], outline=1, fill=1)
    pen.rectangle([2, 2, 8, 4], outline=1, fill=1)
    pen.ellipse([7, 3, 17, 13], outline=1, fill=1)
    np.testing.assert_array_equal(image_of(done.folder / "labelsTr/00000000.png"), np.asarray(canvas))


def test_images_without_shapes_have_an_empty_mask(tmp_path: Path) -> None:
    source = make_aicup(tmp_path / "source")
    write_labelme(source / ANNOTATION, [], encoding="cp950", flags={"備註": True})
    done = aicup_stas.convert(source, writing=QUIET)
    assert not image_of(done.folder / "labelsTr/00000000.png").any()


def test_pictures_that_a_camera_has_turned_are_turned_back(tmp_path: Path) -> None:
    source = make_aicup(tmp_path / "source")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    path = source / "SEG_Train_Datasets/Train_Images/00000000.jpg"
    write_png(path, random_image(0, COLUMNS, ROWS, 3), exif=exif)
    done = aicup_stas.convert(source, writing=QUIET)
    expected = np.rot90(image_of(path), -1)
    np.testing.assert_array_equal(image_of(done.folder / "imagesTr/00000000_0000.png"), expected)


def test_the_inner_folder_is_a_source_too(tmp_path: Path) -> None:
    source = make_aicup(tmp_path / "source")
    plan = aicup_stas.plan(source / "SEG_Train_Datasets")
    assert (plan.count("Tr"), plan.count("Ts"), plan.problems) == (2, 0, [])


@pytest.mark.skipif(not (SHARED / "aicup").is_dir(), reason="needs the AICUP images beside the repository")
def test_real_images_with_annotations_in_two_encodings(tmp_path: Path) -> None:
    for kind in ("Train_Images", "Train_Annotations"):
        (tmp_path / "source" / kind).mkdir(parents=True)
        for path in sorted((SHARED / f"aicup/SEG_Train_Datasets/{kind}").iterdir())[2:4]:
            (tmp_path / "source" / kind / path.name).write_bytes(path.read_bytes())
    with pytest.raises(UnicodeDecodeError):
        (tmp_path / "source/Train_Annotations/00000003.json").read_text(encoding="utf-8")
    done = aicup_stas.convert(tmp_path / "source", writing=QUIET)
    content = json.loads((tmp_path / "source/Train_Annotations/00000003.json").read_bytes().decode("cp950"))
    canvas = Image.new("L", (1716, 942))
    for shape in content["shapes"]:
        ImageDraw.Draw(canvas).polygon([tuple(point) for point in shape["points"]], outline=1, fill=1)
    np.testing.assert_array_equal(image_of(done.folder / "labelsTr/00000003.png"), np.asarray(canvas))
    check_integrity(done.folder)
