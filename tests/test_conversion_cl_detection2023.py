"""CL-Detection 2023: a stack of any size read slice by slice, landmarks to the digit, millimetres kept."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image

from conversion_sources import (
    COLUMNS,
    QUIET,
    ROWS,
    SHARED,
    check_integrity,
    listing,
    make_stack,
    nnunet_folders,  # noqa: F401
    random_image,
    raw,
    volume_of,
)
from nnunet_semi import mha
from nnunet_semi.cephalograms import grey
from nnunet_semi.dataset_conversion import cl_detection2023
from nnunet_semi.dataset_conversion.landmarks import draw_balls
from nnunet_semi.errors import Unusable


def landmarks_of(folder: Path, number: int, role: str = "Tr") -> dict[str, object]:
    return json.loads((folder / f"landmarks{role}/ceph_{number:03d}.json").read_text())


def role_of(folder: Path, number: int) -> str:
    return "Ts" if (folder / f"imagesTs/ceph_{number:03d}_0000.mha").exists() else "Tr"


@pytest.fixture(params=[False, True], ids=["plain", "compressed"])
def dataset(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Eight images with all landmarks but the 5th, and two scales."""
    points = [
        (name, i, (name % 13) + 0.25, float((3 * name) % 9)) for i in range(1, 9) for name in range(1, 39) if name != 5
    ]
    source = make_stack(tmp_path / "source", points=points, scales=(0.1, 0.125), compressed=request.param)
    return cl_detection2023.convert(source, 23, writing=QUIET).folder


def test_images_lose_their_padding_and_two_of_three_equal_channels(dataset: Path) -> None:
    for number in range(1, 9):
        values, image = volume_of(dataset / f"images{role_of(dataset, number)}/ceph_{number:03d}_0000.mha")
        expected = random_image(number - 1, ROWS - (number - 1) % 3, COLUMNS - (number - 1) % 2)
        np.testing.assert_array_equal(values, expected)
        assert image.GetSpacing() == ((0.1, 0.1) if number % 2 == 0 else (0.125, 0.125))


def test_coordinates_are_exact_in_pixels_and_in_millimetres(dataset: Path) -> None:
    found = landmarks_of(dataset, 3, role_of(dataset, 3))
    assert found["spacing"] == [0.125, 0.125] and found["origin"] == [0, 0] and found["size"] == [COLUMNS, ROWS - 2]
    listed = found["landmarks"]
    assert isinstance(listed, list) and [entry["name"] for entry in listed] == [str(n) for n in range(1, 39)]
    assert listed[0] == {"name": "1", "label": 1, "voxel": [1.25, 3.0], "world": [1.25 * 0.125, 3 * 0.125]}
    assert listed[4] == {"name": "5", "label": 5, "voxel": None, "world": None}


def test_stock_commands_accept_the_dataset(dataset: Path) -> None:
    description = json.loads((dataset / "dataset.json").read_text())
    assert description["labels"]["38"] == 38 and description["numTraining"] == 7
    assert description["landmarks"]["names"] == [str(number) for number in range(1, 39)]
    check_integrity(dataset)


def test_every_image_is_in_one_part_of_the_split(dataset: Path) -> None:
    [split] = json.loads((dataset / "splits_final.json").read_text())
    test = [path.name[:8] for path in (dataset / "imagesTs").iterdir()]
    assert sorted(split["train"] + split["val"] + test) == [f"ceph_{number:03d}" for number in range(1, 9)]
    assert (len(split["train"]), len(split["val"]), len(test)) == (6, 1, 1)
    assert sorted(p.name[:8] for p in (dataset / "imagesTr").iterdir()) == sorted(split["train"] + split["val"])
    assert listing(dataset / "labelsTs") == [f"{test[0]}.mha"] and listing(dataset / "landmarksTs") == [
        f"{test[0]}.json"
    ]


def test_four_hundred_images_are_split_as_the_seed_does(tmp_path: Path) -> None:
    images = [np.full((2, 2), 9, np.uint8)] * 400
    points = [(1, number, 1.0, 1.0) for number in range(1, 401)]
    plan = cl_detection2023.plan(make_stack(tmp_path / "source", images, points))
    order = list(range(1, 401))
    random.seed(2023)
    random.shuffle(order)
    assert plan.splits == [
        {
            "train": sorted(f"ceph_{number:03d}" for number in order[:300]),
            "val": sorted(f"ceph_{number:03d}" for number in order[300:350]),
        }
    ]
    assert {step.files[0][1] for step in plan.steps if step.files[0][1].startswith("imagesTs")} == {
        f"imagesTs/ceph_{number:03d}_0000.mha" for number in order[350:]
    }
    assert not plan.problems and not plan.notes


def test_black_rows_below_a_landmark_are_padding_and_those_above_are_not(tmp_path: Path) -> None:
    image = random_image(0, ROWS, COLUMNS)
    image[6:] = 0
    points = [(1, number, 3.0, 8.5 if number == 2 else 2.0) for number in range(1, 9)]
    folder = cl_detection2023.convert(make_stack(tmp_path / "source", [image] * 8, points), writing=QUIET).folder
    rows = [volume_of(folder / f"images{role_of(folder, n)}/ceph_{n:03d}_0000.mha")[0].shape[0] for n in range(1, 9)]
    assert rows == [6, 10, 6, 6, 6, 6, 6, 6]


def test_colours_become_their_luminance() -> None:
    values = random_image(0, 5, 6, 3)
    expected = values @ np.array([0.299, 0.587, 0.114])
    assert np.abs(grey(values) - expected).max() <= 1
    np.testing.assert_array_equal(grey(values[..., :1].repeat(3, 2)), values[..., 0])
    np.testing.assert_array_equal(grey(values[..., 0]), values[..., 0])


# --- discs ---


def test_discs_are_round_in_millimetres() -> None:
    labels = draw_balls({"a": (20.0, 10.0)}, (40, 20), (0.5, 1.0), radius=4)
    y, x = np.indices((20, 40))
    np.testing.assert_array_equal(labels, (((x - 20) * 0.5) ** 2 + (y - 10) ** 2 <= 16).astype(np.uint8))


def test_each_pixel_belongs_to_the_nearest_landmark() -> None:
    points = {"a": (10.3, 10.0), "b": (14.0, 12.2), "c": (12.0, 11.0)}
    labels = draw_balls(points, (30, 30), (1, 1), radius=5)
    y, x = np.indices((30, 30))
    distances = np.stack([np.hypot(x - a, y - b) for a, b in points.values()])
    expected = np.where(distances.min(0) <= 5, distances.argmin(0) + 1, 0)
    assert (labels != expected).sum() <= 3  # the pixels that hold a landmark are its own
    for label, (a, b) in enumerate(points.values(), 1):
        assert labels[round(b), round(a)] == label


def test_discs_smaller_than_a_pixel_still_leave_one() -> None:
    labels = draw_balls({"a": (3.5, 3.2), "b": (4.0, 3.0)}, (8, 8), (1, 1), radius=0.01)
    assert labels[3, 4] == 2 and set(np.unique(labels)) >= {0, 2}


def test_missing_and_outside_landmarks_leave_no_label() -> None:
    labels = draw_balls({"a": None, "b": (-30.0, 4.0), "c": (4.0, 99.0), "d": (0.0, 0.0)}, (8, 8), (1, 1), radius=1)
    assert set(np.unique(labels)) == {0, 4} and labels.sum() == 4 * 3


def test_balls_in_three_dimensions_and_more_than_255_of_them() -> None:
    labels = draw_balls({"a": (2.0, 3.0, 4.0)}, (6, 7, 8), (1, 1, 1), radius=1)
    assert labels.shape == (8, 7, 6) and labels[4, 3, 2] == 1 and labels.sum() == 7
    many = draw_balls({str(i): (float(i), 0.0) for i in range(300)}, (300, 1), (1, 1), radius=0.4)
    np.testing.assert_array_equal(many[0], np.arange(1, 301))


# --- slices ---


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32])
def test_slices_are_those_of_simpleitk_in_any_order(compressed: bool, dtype: type, tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 100, (9, 7, 5, 3)).astype(dtype)
    sitk.WriteImage(sitk.GetImageFromArray(values, isVector=True), str(tmp_path / "a.mha"), compressed)
    header = mha.read_header(tmp_path / "a.mha")
    assert header.size == (5, 7, 9) and header.channels == 3 and header.compressed == compressed
    for index in (0, 1, 1, 8, 3, 0):
        np.testing.assert_array_equal(mha.read_slice(header, index), values[index])
    mha.refuse_incomplete(header)


@pytest.mark.parametrize("compressed", [False, True])
def test_a_stack_that_ends_early_is_refused_where_it_ends(compressed: bool, tmp_path: Path) -> None:
    values = random_image(0, 9, 20, 30)
    path = tmp_path / "a.mha"
    sitk.WriteImage(sitk.GetImageFromArray(values), str(path), compressed)
    path.write_bytes(path.read_bytes()[:-1500])
    header = mha.read_header(path)
    np.testing.assert_array_equal(mha.read_slice(header, 0), values[0])
    with pytest.raises(Unusable, match="an end within slice 9"):
        mha.read_slice(header, 8)
    with pytest.raises(Unusable, match="of 5400 bytes of data"):
        mha.refuse_incomplete(header)


def test_damaged_compressed_data_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.mha"
    sitk.WriteImage(sitk.GetImageFromArray(random_image(0, 9, 20, 30)), str(path), True)
    data = bytearray(path.read_bytes())
    data[-2500] ^= 255
    path.write_bytes(data)
    with pytest.raises(Unusable, match="damaged compressed data"):
        mha.refuse_incomplete(mha.read_header(path))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is asked for in the way of Linux")
def test_memory_does_not_grow_with_the_stack(tmp_path: Path) -> None:
    """Half a gigabyte of pixels in a sparse file, images of the size that the challenge has."""
    count, rows, columns = 25, 2400, 2880
    points = [(1, number, 1.0, 1.0) for number in range(1, count + 1)]
    make_stack(tmp_path / "source", [np.full((2, 2), 9, np.uint8)] * count, points)
    header = "\n".join(
        ["ObjectType = Image", "NDims = 3", "BinaryData = True", "BinaryDataByteOrderMSB = False"]
        + ["CompressedData = False", f"DimSize = {columns} {rows} {count}", "ElementNumberOfChannels = 3"]
        + ["ElementType = MET_UCHAR", "ElementDataFile = LOCAL", ""]
    ).encode()
    size = rows * columns * 3
    with (tmp_path / "source/train_stack.mha").open("wb") as file:
        file.write(header)
        for number in range(count):
            file.seek(len(header) + number * size + (1700 * columns + 1900) * 3)
            file.write(bytes([9, 9, 9]))
        file.truncate(len(header) + count * size)
    code = (
        "import re, sys\n"
        "from nnunet_semi.dataset_conversion import cl_detection2023\n"
        "from nnunet_semi.dataset_conversion.writing import Writing\n"
        "done = cl_detection2023.convert(sys.argv[1], writing=Writing(verify=False, num_processes=1, progress=False))\n"
        "assert sum(done.counts.values()) == 25, done\n"
        "print(re.search(r'VmHWM:\\s+(\\d+) kB', open('/proc/self/status').read())[1])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "source")], capture_output=True, text=True, check=True
    )
    assert float(done.stdout) / 1024 < 300
    [folder] = raw().iterdir()
    assert volume_of(folder / f"images{role_of(folder, 1)}/ceph_001_0000.mha")[0].shape == (1701, 1901)


# --- real X-rays ---


def ceph_as_challenge(root: Path, count: int) -> list[list[list[float]]]:
    """The first cephalograms of ISBI 2015 in the format of the challenge, with 19 of the 38 landmarks."""
    cases = json.loads((SHARED / "ceph/train.json").read_text())["cases"]
    names = sorted(cases)[:count]
    images = []
    for name in names:
        with Image.open(SHARED / f"ceph/images/{name}.jpg") as picture:
            images.append(np.asarray(picture.convert("L")))
    points = [(i, n, x, y) for n, name in enumerate(names, 1) for i, (x, y) in enumerate(cases[name]["senior"], 1)]
    make_stack(root, images, points, scales=(cases[names[0]]["spacing_mm"],))
    return [cases[name]["senior"] for name in names]


@pytest.mark.skipif(not (SHARED / "ceph").is_dir(), reason="needs the cephalograms of ISBI 2015 beside the repository")
def test_real_cephalograms_in_the_format_of_the_challenge(tmp_path: Path) -> None:
    points = ceph_as_challenge(tmp_path / "source", 8)
    folder = cl_detection2023.convert(tmp_path / "source", writing=QUIET).folder
    for number, expected in enumerate(points, 1):
        role = role_of(folder, number)
        listed = landmarks_of(folder, number, role)["landmarks"]
        assert isinstance(listed, list)
        assert [entry["voxel"] for entry in listed] == expected + [None] * 19
        labels, image = volume_of(folder / f"labels{role}/ceph_{number:03d}.mha")
        assert image.GetSpacing() == (0.2, 0.2)
        assert labels.shape == volume_of(folder / f"images{role}/ceph_{number:03d}_0000.mha")[0].shape
        for label, (x, y) in enumerate(expected, 1):
            rows, columns = np.nonzero(labels == label)
            assert np.hypot(rows.mean() - y, columns.mean() - x) * 0.2 < 2
    check_integrity(folder)
