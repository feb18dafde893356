"""The landmarks file: what is written is read back, and what is wrong is told in one sentence."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO, NibabelIOWithReorient
from PIL import Image

from nnunet_semi.errors import UserError
from nnunet_semi.evaluation.landmarks import evaluate_landmarks
from nnunet_semi.geometry import Geometry
from nnunet_semi.landmark_files import Landmarks, as_json, check_names, read, write
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
        (change("size", to=[30, 20.7, 10]), "whole numbers"),
        (change("direction", to=[0] * 9), "do not span the image"),
        (change("direction", to=[1, 0, 0, 1, 0, 0, 0, 0, 1]), "do not span the image"),
        (change("landmarks", 0, "voxel", to=[10**400, 2, 1]), "3 numbers"),
        (change("landmarks", 0, "world", to=[1, -(10**400), 1]), "3 numbers"),
        (change("origin", to=[10**400, 0, 0]), "'origin'"),
        (change("spacing", to=[1, 1, 10**30]), "voxel"),
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


def test_a_further_number_that_no_float_holds_is_left_out(tmp_path: Path) -> None:
    content = as_json(landmarks())
    content["landmarks"][0]["peak"] = 10**400
    (tmp_path / "case.json").write_text(json.dumps(content))
    assert dict(read(tmp_path / "case.json").details) == {}


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


@pytest.mark.parametrize(
    "changed",
    [
        {"spacing": (0.502, 0.5, 3.0)},
        {"origin": (-210.1, -180.0, 900.0)},
        {"origin": (-210.0, -180.0, 900.8)},
        {"direction": (1, 0.02, 0, -0.02, 1, 0, 0, 0, 1)},
    ],
)
def test_training_refuses_what_evaluation_would_refuse(tmp_path: Path, changed: dict[str, Any]) -> None:
    """Or a training would end in a validation that fails."""
    grid: dict[str, Any] = {"size": (40, 40, 20), "spacing": (0.5, 0.5, 3.0), "origin": (-210.0, -180.0, 900.0)}
    image, other = Geometry.of(**grid), Geometry.of(**(grid | changed))
    for folder, geometry in (("landmarksTr", other), ("validation", image)):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder / "case.json", Landmarks.of({"a": (1.0, 2.0, 3.0)}, geometry))
    for refused in (
        lambda: check_geometry(tmp_path / "landmarksTr" / "case.json", other, image),
        lambda: evaluate_landmarks(tmp_path / "landmarksTr", tmp_path / "validation", progress=False),
    ):
        with pytest.raises(UserError, match=next(iter(changed))):
            refused()


def test_rounded_numbers_are_those_of_the_same_image(tmp_path: Path) -> None:
    image = Geometry.of((40, 40, 20), (0.48828125, 0.48828125, 3.0), (-210.1234567, 1.0, 900.7654321))
    rounded = Geometry.of((40, 40, 20), (0.4883, 0.4883, 3.0), (-210.123, 1.0, 900.765))
    assert rounded.difference(image) == image.difference(rounded) == ""


@pytest.mark.parametrize("reader", [NibabelIO, NibabelIOWithReorient])
def test_a_reader_that_does_not_say_where_the_image_is_is_refused(tmp_path: Path, reader: type) -> None:
    sitk.WriteImage(sitk.Image(6, 5, 4, sitk.sitkUInt8), str(tmp_path / "a_0000.nii.gz"))
    _, properties = reader().read_images([str(tmp_path / "a_0000.nii.gz")])
    properties["shape_before_cropping"] = (4, 5, 6)
    with pytest.raises(UserError, match=r'"overwrite_image_reader_writer": "SimpleITKIO" in dataset\.json'):
        Geometry.from_properties(properties, (0, 1, 2))


def test_a_natural_image_has_pixels_of_one_millimetre(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((10, 20), np.uint8)).save(tmp_path / "a_0000.png")
    _, properties = NaturalImage2DIO().read_images([str(tmp_path / "a_0000.png")])
    properties["shape_before_cropping"] = (1, 10, 20)
    assert Geometry.from_properties(properties, (0, 1, 2)) == Geometry.of((20, 10), (1, 1))


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
        {"left_right": [["left", "right"]], "axis": ["x"]},
        {"left_right": [1, 2]},
        {"left_right": ["ab", "cd"]},
        {"left_right": 5},
        {"left_right": {"left": "right"}},
        {"left_right": [[["left"], "right"]]},
        ["left", "right"],
        "left_right",
    ],
)
def test_pairs_that_cannot_be_are_refused(described: Any) -> None:
    with pytest.raises(UserError, match=r"^dataset\.json has .* '(left_right|axis|landmarks)'.*; expected"):
        mirroring({"labels": LABELS, "landmarks": described}, (0, 1, 2), 2)


@pytest.mark.parametrize(
    "labels",
    [{"background": 0, "a": 2}, {"background": 0, "a": [1, 2], "b": [2]}, {"background": 0, "a": 1, "ignore": 2}],
)
def test_labels_that_are_no_landmarks_are_refused(labels: dict[str, Any]) -> None:
    assert landmark_names({"labels": dict(reversed(LABELS.items()))}) == ["left", "right", "nose"]
    with pytest.raises(UserError, match="one label"):
        landmark_names({"labels": labels})
