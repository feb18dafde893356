"""The landmarks file: what is written is read back, and what is wrong is told in one sentence."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_semi.errors import UserError
from nnunet_semi.geometry import Geometry
from nnunet_semi.landmark_files import Landmarks, check_names, read, write
from nnunet_semi.landmarks.dataset import check_geometry
from nnunet_semi.landmarks.mirroring import landmark_names, mirroring

OBLIQUE = (0.8, -0.6, 0.0, 0.6, 0.8, 0.0, 0.0, 0.0, 1.0)


def landmarks() -> Landmarks:
    voxel = np.array([[1.5, 2.25, 3.0], [np.nan] * 3, [-4.0, 50.0, 0.125]])
    geometry = Geometry.of((30, 20, 10), (0.5, 0.75, 2.0), (-3.0, 4.0, 5.0), OBLIQUE)
    return Landmarks(("a", "b", "c"), voxel, geometry, {"peak": np.array([0.9, np.nan, 0.1])})


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    write(tmp_path / "case.json", landmarks())
    found = read(tmp_path / "case.json")
    assert (found.names, found.geometry) == (landmarks().names, landmarks().geometry)
    np.testing.assert_allclose(found.voxel, landmarks().voxel, atol=1e-4)
    np.testing.assert_allclose(found.details["peak"], [0.9, np.nan, 0.1])


def test_world_is_that_of_simpleitk() -> None:
    image = sitk.Image(30, 20, 10, sitk.sitkUInt8)
    image.SetSpacing((0.5, 0.75, 2.0))
    image.SetOrigin((-3.0, 4.0, 5.0))
    image.SetDirection(OBLIQUE)
    expected = image.TransformContinuousIndexToPhysicalPoint((3.0, 2.25, 1.5))
    np.testing.assert_allclose(landmarks().world[0], expected)
    np.testing.assert_allclose(landmarks().geometry.voxel(landmarks().world), landmarks().voxel)


def test_points_with_names_become_a_file(tmp_path: Path) -> None:
    geometry = Geometry.of((20, 10), (0.1, 0.2), (1.0, 2.0))
    write(tmp_path / "case.json", Landmarks.of({"a": (3.0, 4.5), "b": None}, geometry))
    found = read(tmp_path / "case.json")
    np.testing.assert_allclose(found.voxel, [[4.5, 3.0], [np.nan, np.nan]])
    np.testing.assert_allclose(found.world[0], [1.3, 2.9])
    assert found.geometry.shape == (10, 20)


def test_world_alone_is_enough(tmp_path: Path) -> None:
    write(tmp_path / "case.json", landmarks())
    content = json.loads((tmp_path / "case.json").read_text())
    for entry in content["landmarks"]:
        del entry["voxel"]
    (tmp_path / "case.json").write_text(json.dumps(content))
    np.testing.assert_allclose(read(tmp_path / "case.json").voxel, landmarks().voxel, atol=1e-3)


def change(*path: Any, to: Any) -> Callable[[dict], None]:
    def apply(content: Any) -> None:
        for key in path[:-1]:
            content = content[key]
        if to is None:
            del content[path[-1]]
        else:
            content[path[-1]] = to

    return apply


@pytest.mark.parametrize(
    ("breakage", "says"),
    [
        (change("landmarks", to=None), "no list 'landmarks'"),
        (change("landmarks", to=[1]), "no list 'landmarks'"),
        (change("landmarks", 1, "label", to=7), "labels"),
        (change("landmarks", 1, "name", to="a"), "names"),
        (change("landmarks", 0, "voxel", to=[1, 2]), "3 numbers"),
        (change("landmarks", 0, "voxel", to=[1, 2, "x"]), "3 numbers"),
        (change("landmarks", 0, "voxel", to=[1, 2, float("nan")]), "3 numbers"),
        (change("landmarks", 0, "voxel", to=[9, 2, 1]), "remove the field that is wrong"),
        (change("size", to=None), "'size'"),
        (change("spacing", to="fine"), "'spacing'"),
        (change("spacing", to=[1, 0, 1]), "not positive"),
        (change("origin", to=[1, 2]), "2 numbers in 'origin'"),
    ],
)
def test_what_is_wrong_is_told(tmp_path: Path, breakage: Callable[[dict], None], says: str) -> None:
    path = tmp_path / "case.json"
    write(path, landmarks())
    content = json.loads(path.read_text())
    breakage(content)
    path.write_text(json.dumps(content))
    with pytest.raises(UserError) as refusal:
        read(path)
    assert str(path) in str(refusal.value) and says in str(refusal.value)


@pytest.mark.parametrize(
    ("names", "says"), [(["a"], "lacks b"), (["a", "b", "c"], "c besides"), (["b", "a"], "another order")]
)
def test_other_names_than_those_of_the_dataset_are_refused(names: list[str], says: str) -> None:
    with pytest.raises(UserError, match=says):
        check_names(Path("case.json"), names, ["a", "b"])


def test_another_image_is_refused() -> None:
    image = Geometry.of((20, 10), (0.5, 0.5))
    check_geometry(Path("case.json"), Geometry.of((20, 10), (0.50001, 0.5)), image)
    for other in (Geometry.of((10, 20), (0.5, 0.5)), Geometry.of((20, 10), (0.6, 0.5))):
        with pytest.raises(UserError, match="size|spacing"):
            check_geometry(Path("case.json"), other, image)


def test_geometry_comes_from_what_nnunet_keeps() -> None:
    itk = {"spacing": (0.5, 0.75, 2.0), "origin": (-3.0, 4.0, 5.0), "direction": OBLIQUE}
    properties = {"shape_before_cropping": (30, 10, 20), "sitk_stuff": itk, "spacing": (2.0, 0.75, 0.5)}
    assert Geometry.from_properties(properties, (2, 0, 1)) == landmarks().geometry
    flat = {"shape_before_cropping": (1, 10, 20), "spacing": (999, 1, 1)}
    assert Geometry.from_properties(flat, (0, 1, 2)) == Geometry.of((20, 10), (1, 1))


LABELS = {"background": 0, "left": 1, "right": 2, "nose": 3}


def test_pairs_change_places_and_the_axis_follows_the_transpose() -> None:
    dataset = {"labels": LABELS, "landmarks": {"left_right": [["left", "right"]]}}
    found = mirroring(dataset, (2, 0, 1), 3)
    assert found is not None and (found.axis, found.order) == (0, (1, 0, 2))
    flat = mirroring(dataset, (0, 1, 2), 2)
    assert flat is not None and flat.axis == 1
    assert mirroring({"labels": LABELS}, (0, 1, 2), 2) is None


@pytest.mark.parametrize(
    "described",
    [
        {"left_right": [["left", "elbow"]]},
        {"left_right": [["left", "right"], ["nose", "left"]]},
        {"left_right": [["left"]]},
        {"left_right": [["left", "right"]], "axis": "z"},
        {"left_right": [["left", "right"]], "axis": "up"},
    ],
)
def test_pairs_that_cannot_be_are_refused(described: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="left_right|axis"):
        mirroring({"labels": LABELS, "landmarks": described}, (0, 1, 2), 2)


@pytest.mark.parametrize(
    "labels",
    [{"background": 0, "a": 2}, {"background": 0, "a": [1, 2], "b": [2]}, {"background": 0, "a": 1, "ignore": 2}],
)
def test_labels_that_are_no_landmarks_are_refused(labels: dict[str, Any]) -> None:
    assert landmark_names({"labels": dict(reversed(LABELS.items()))}) == ["left", "right", "nose"]
    with pytest.raises(UserError, match="one label"):
        landmark_names({"labels": labels})
