"""LabelMe's files: every shape as LabelMe draws it, every encoding, and nothing but coordinates believed."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from conversion_sources import COLUMNS, ROWS, SHARED, write_labelme
from nnunet_semi.dataset_conversion import labelme
from nnunet_semi.dataset_conversion.aicup_stas import union
from nnunet_semi.errors import Unusable

SIZE = (60, 40)
POINTS = {
    "polygon": [[5, 5], [50.5, 8], [30, 35.25], [12, 20]],
    "rectangle": [[10.2, 30], [40, 5.7]],
    "circle": [[30, 20], [30, 29.5]],
    "line": [[5, 5], [55, 30]],
    "linestrip": [[5, 5], [30, 30], [55, 6]],
    "point": [[20, 20]],
}


def drawn_by_hand(kind: str, points: list[list[float]]) -> np.ndarray:
    """What LabelMe draws, written down again from its rules: lines 10 wide, points with radius 5, edges included."""
    canvas = Image.new("L", SIZE)
    pen = ImageDraw.Draw(canvas)
    xy = [tuple(point) for point in points]
    if kind == "polygon":
        pen.polygon(xy, outline=1, fill=1)
    elif kind == "rectangle":
        (a, b), (c, d) = xy
        pen.rectangle([min(a, c), min(b, d), max(a, c), max(b, d)], outline=1, fill=1)
    elif kind in ("line", "linestrip"):
        pen.line(xy, fill=1, width=10)
    else:
        x, y = xy[0]
        radius = 5 if kind == "point" else math.hypot(x - xy[1][0], y - xy[1][1])
        pen.ellipse([x - radius, y - radius, x + radius, y + radius], outline=1, fill=1)
    return np.asarray(canvas)


def read(folder: Path, shapes: list[dict[str, Any]], **more: Any) -> labelme.Annotation:
    return labelme.read(write_labelme(folder / "a.json", shapes, **more))


@pytest.mark.parametrize("kind", POINTS)
def test_every_shape_is_drawn_as_labelme_draws_it(kind: str, tmp_path: Path) -> None:
    annotation = read(tmp_path, [{"label": "a", "points": POINTS[kind], "shape_type": kind}])
    expected = drawn_by_hand(kind, POINTS[kind])
    assert expected.sum() > 50
    np.testing.assert_array_equal(labelme.draw(annotation.shapes, [1], SIZE), expected)


def test_shapes_of_old_versions_are_polygons(tmp_path: Path) -> None:
    for shape in ({"points": POINTS["polygon"]}, {"points": POINTS["polygon"], "shape_type": None}):
        assert read(tmp_path, [shape]).shapes[0].kind == "polygon"


@pytest.mark.parametrize("count", [1, 2])
def test_a_polygon_of_one_or_two_points_leaves_its_points(count: int, tmp_path: Path) -> None:
    points = [[3, 4], [9, 4]][:count]
    drawn = labelme.draw(read(tmp_path, [{"points": points, "shape_type": "polygon"}]).shapes, [1], SIZE)
    assert drawn[4, 3] == 1 and drawn.sum() == (1 if count == 1 else 7)


def test_later_shapes_lie_over_earlier_ones(tmp_path: Path) -> None:
    shapes = read(tmp_path, [{"points": POINTS["rectangle"], "shape_type": "rectangle"}] * 2).shapes
    assert set(np.unique(labelme.draw(shapes, [1, 2], SIZE))) == {0, 2}


def test_what_lies_outside_of_the_image_is_cut_off(tmp_path: Path) -> None:
    shapes = read(tmp_path, [{"points": [[-50, -50], [200, 300]], "shape_type": "rectangle"}]).shapes
    assert labelme.draw(shapes, [1], SIZE).all()


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp950", "big5", "latin-1"])
def test_files_in_other_encodings_give_the_same_points(encoding: str, tmp_path: Path) -> None:
    label = "été" if encoding == "latin-1" else "腫瘤功"  # the last character ends in a backslash in cp950
    path = write_labelme(tmp_path / "a.json", [{"label": label, "points": POINTS["polygon"]}], encoding)
    shape = labelme.read(path).shapes[0]
    assert shape.points == tuple((float(x), float(y)) for x, y in POINTS["polygon"])
    assert shape.label == label or encoding == "latin-1"


@pytest.mark.parametrize("image_path", ["/etc/passwd", "../../secret.png", "..\\..\\x.jpg", "C:\\x.jpg", 7, None])
def test_image_path_is_never_looked_at(image_path: Any, tmp_path: Path) -> None:
    plain = read(tmp_path, [{"points": POINTS["polygon"]}])
    assert read(tmp_path, [{"points": POINTS["polygon"]}], imagePath=image_path, imageData="x") == plain


def test_the_size_is_none_where_the_file_does_not_say_it(tmp_path: Path) -> None:
    assert read(tmp_path, []).size == (COLUMNS, ROWS)
    assert read(tmp_path, [], imageHeight=None).size is None


BROKEN = {
    "no JSON": ("{", "no JSON"),
    "too deep": ("[" * 100_000, "no JSON"),
    "a list": ("[]", "without a list `shapes`"),
    "no shapes": ("{}", "without a list `shapes`"),
    "shapes of another type": ('{"shapes": {}}', "without a list `shapes`"),
    "a shape that is none": ('{"shapes": [1]}', "shape 1 without points"),
    "no points": ('{"shapes": [{"label": "a"}]}', "shape 1 without points"),
    "an empty polygon": ('{"shapes": [{"points": []}]}', "a polygon of 0 points; expected 1 or more"),
    "points in words": ('{"shapes": [{"points": [["a", "b"]]}]}', "points that are no numbers"),
    "points in three dimensions": ('{"shapes": [{"points": [[1, 2, 3]]}]}', "points that are no numbers"),
    "undefined points": ('{"shapes": [{"points": [[NaN, 1]]}]}', "far outside or undefined"),
    "points at infinity": ('{"shapes": [{"points": [[1e999, 1]]}]}', "far outside or undefined"),
    "an unknown type": ('{"shapes": [{"points": [[1, 1]], "shape_type": "mask"}]}', "of the type 'mask'"),
    "a type that is no string": ('{"shapes": [{"points": [[1, 1]], "shape_type": [1]}]}', "of the type [1]"),
    "a circle of one point": ('{"shapes": [{"points": [[1, 1]], "shape_type": "circle"}]}', "expected 2"),
    "a rectangle of four": (
        json.dumps({"shapes": [{"points": [[1, 1]] * 4, "shape_type": "rectangle"}]}),
        "a rectangle of 4 points; expected 2",
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_files_are_refused_by_name(kind: str, tmp_path: Path) -> None:
    text, said = BROKEN[kind]
    path = tmp_path / "broken.json"
    path.write_text(text)
    with pytest.raises(Unusable) as refusal:
        labelme.read(path)
    assert refusal.value.problem.file == path
    assert said in str(refusal.value.problem)


@pytest.mark.skipif(not (SHARED / "aicup").is_dir(), reason="needs the AICUP images beside the repository")
def test_real_outlines_equal_the_polygons_that_the_seed_drew() -> None:
    folder = SHARED / "aicup/SEG_Train_Datasets"
    for path in sorted((folder / "Train_Annotations").iterdir()):
        data = path.read_bytes()
        try:
            content = json.loads(data.decode("utf-8"))
        except UnicodeDecodeError:
            content = json.loads(data.decode("cp950"))
        canvas = Image.new("L", (content["imageWidth"], content["imageHeight"]))
        for shape in content["shapes"]:
            ImageDraw.Draw(canvas).polygon([tuple(p) for p in shape["points"]], outline=1, fill=1)
        np.testing.assert_array_equal(union(path, canvas.size[::-1]), np.asarray(canvas))
