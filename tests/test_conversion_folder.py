"""Folders of images and masks: every format, every kind of label, and what belongs to what by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from conversion_sources import (
    COLUMNS,
    QUIET,
    ROWS,
    SHARED,
    blob,
    body,
    check_integrity,
    image_of,
    listing,
    nnunet_folders,  # noqa: F401
    random_image,
    volume_of,
    write_png,
    write_volume,
)
from nnunet_semi.dataset_conversion import folder
from nnunet_semi.dataset_conversion.folder_layout import has_channels
from nnunet_semi.dataset_conversion.plan import SourceProblems, case_name
from nnunet_semi.dataset_conversion.writing import Conversion
from nnunet_semi.errors import WrongUse

GREY, RGB = (ROWS, COLUMNS), (ROWS, COLUMNS, 3)
STRIPES = blob(GREY, 2)


def convert(source: Path, **options: Any) -> Conversion:
    return folder.convert(source, writing=QUIET, **options)


def description_of(done: Conversion) -> dict[str, Any]:
    return json.loads((done.folder / "dataset.json").read_text())


def make(root: Path, label: Callable[[int], np.ndarray] = lambda number: STRIPES, suffix: str = "") -> Path:
    """Three labeled grey images and two unlabeled ones."""
    for number in range(3):
        write_png(root / f"images/a{number}.png", random_image(number, *GREY))
        write_png(root / f"labels/a{number}{suffix}.png", label(number))
    for number in range(2):
        write_png(root / f"unlabeled/u{number}.png", random_image(9 + number, *GREY))
    return root


# --- formats ---


def test_png_with_usual_folder_names_keeps_its_bytes(tmp_path: Path) -> None:
    done = convert(make(tmp_path / "source"))
    assert done.counts == {"labeled": 3, "unlabeled": 2, "test": 0} and not done.notes
    for old, new in {"images/a0.png": "imagesTr/a0_0000.png", "labels/a0.png": "labelsTr/a0.png"}.items():
        assert (tmp_path / "source" / old).read_bytes() == (done.folder / new).read_bytes()
    assert description_of(done)["channel_names"] == {"0": "image"}
    check_integrity(done.folder)


def test_jpeg_bmp_and_png_may_be_mixed_and_become_png(tmp_path: Path) -> None:
    for number, ending in enumerate((".jpg", ".JPEG", ".bmp", ".png")):
        write_png(tmp_path / f"source/images/a{number}{ending}", random_image(number, *RGB))
        write_png(tmp_path / f"source/labels/a{number}.png", STRIPES)
    done = convert(tmp_path / "source")
    for path in (tmp_path / "source/images").iterdir():
        np.testing.assert_array_equal(image_of(done.folder / f"imagesTr/{path.stem}_0000.png"), image_of(path))
    assert description_of(done)["channel_names"] == {"0": "R", "1": "G", "2": "B"}
    check_integrity(done.folder)


def test_images_with_a_palette_become_rgb_and_black_and_white_becomes_grey(tmp_path: Path) -> None:
    source = make(tmp_path / "source")
    Image.fromarray(random_image(0, *GREY) > 128).save(source / "images/a0.png")
    done = convert(source)
    assert set(np.unique(image_of(done.folder / "imagesTr/a0_0000.png"))) == {0, 255}
    for name in ("images/a0", "images/a1", "images/a2", "unlabeled/u0", "unlabeled/u1"):
        Image.fromarray(random_image(0, *RGB)).quantize(16).save(source / f"{name}.png")
    done = folder.convert(source, 2, writing=QUIET)
    assert image_of(done.folder / "imagesTr/a0_0000.png").shape == RGB
    check_integrity(done.folder)


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".nrrd", ".mha", ".gipl"])
def test_volumes_keep_their_bytes_and_their_ending(ending: str, tmp_path: Path) -> None:
    for number in range(2):
        write_volume(tmp_path / f"source/images/v{number}{ending}", body(number), spacing=(1, 2, 3))
        write_volume(tmp_path / f"source/labels/v{number}{ending}", blob((6, 8, 7), 2), spacing=(1, 2, 3))
    write_volume(tmp_path / f"source/test/t{ending}", body(7), spacing=(1, 2, 3))
    done = convert(tmp_path / "source", channels=["CT"])
    assert listing(done.folder / "imagesTs") == [f"t_0000{ending}"]
    old, new = tmp_path / f"source/images/v0{ending}", done.folder / f"imagesTr/v0_0000{ending}"
    assert old.read_bytes() == new.read_bytes()
    assert description_of(done)["channel_names"] == {"0": "CT"}
    check_integrity(done.folder)


def test_labels_of_another_format_are_written_in_that_of_the_images(tmp_path: Path) -> None:
    write_volume(tmp_path / "source/images/v.mha", body(0), spacing=(1, 2, 3), origin=(5, 6, 7))
    values = blob((6, 8, 7), 2).astype(np.float32)
    write_volume(tmp_path / "source/labels/v.nrrd", values, spacing=(1, 2, 3), origin=(5, 6, 7))
    done = convert(tmp_path / "source")
    values, image = volume_of(done.folder / "labelsTr/v.mha")
    np.testing.assert_array_equal(values, blob((6, 8, 7), 2))
    assert values.dtype == np.uint8 and image.GetOrigin() == (5, 6, 7)


@pytest.mark.parametrize("kind", [np.int64, np.uint64])
def test_volumes_with_64_bits_are_read_by_nnunet(kind: type, tmp_path: Path) -> None:
    write_volume(tmp_path / "source/images/v.mha", body(0).astype(kind))
    write_volume(tmp_path / "source/labels/v.mha", blob((6, 8, 7), 2).astype(kind))
    check_integrity(convert(tmp_path / "source").folder)


def test_two_dimensional_images_with_a_spacing_stay_so(tmp_path: Path) -> None:
    write_volume(tmp_path / "source/images/x.mha", random_image(0, *GREY), spacing=(0.1, 0.1))
    write_volume(tmp_path / "source/labels/x.mha", STRIPES, spacing=(0.1, 0.1))
    check_integrity(convert(tmp_path / "source").folder)


@pytest.mark.parametrize("shape", [GREY, RGB, (5, *GREY)], ids=["grey", "RGB", "volume"])
def test_tiff_in_two_and_three_dimensions(shape: tuple[int, ...], tmp_path: Path) -> None:
    spatial = shape[:2] if shape == RGB else shape
    for kind, values in (("images", random_image(0, *shape)), ("labels", blob(spatial, 2))):
        (tmp_path / "source" / kind).mkdir(parents=True)
        tifffile.imwrite(tmp_path / f"source/{kind}/x.tiff", values)
        if len(spatial) == 3:
            (tmp_path / f"source/{kind}/x.json").write_text('{"spacing": [3, 1, 1]}')
    done = convert(tmp_path / "source")
    spacings = ["imagesTr/x.json", "labelsTr/x.json"] if len(spatial) == 3 else []
    assert listing(done.folder) == sorted(["dataset.json", "imagesTr/x_0000.tif", "labelsTr/x.tif", *spacings])
    check_integrity(done.folder)


def test_a_spacing_that_nnunet_cannot_read_is_a_problem(tmp_path: Path) -> None:
    for kind in ("images", "labels"):
        (tmp_path / "source" / kind).mkdir(parents=True)
        tifffile.imwrite(tmp_path / f"source/{kind}/x.tif", blob((5, *GREY), 2))
    for text, said in (("{}", "no spacing"), ('{"spacing": [1, 0, 1]}', r"the spacing \[1.0, 0.0, 1.0\]")):
        (tmp_path / "source/images/x.json").write_text(text)
        with pytest.raises(SourceProblems, match=said):
            convert(tmp_path / "source")
    (tmp_path / "source/images/x.json").rename(tmp_path / "outside.json")
    (tmp_path / "source/images/x.json").symlink_to(tmp_path / "outside.json")
    with pytest.raises(SourceProblems, match="a link that leads out of the source"):
        convert(tmp_path / "source")


@pytest.mark.parametrize("header", ["data file: ../../secret.raw", "datafile: /etc/passwd", "data file: LIST"])
def test_nrrd_files_that_point_to_other_files_are_refused(header: str, tmp_path: Path) -> None:
    write_volume(tmp_path / "source/images/v.nrrd", body(0))
    write_volume(tmp_path / "source/labels/v.nrrd", blob((6, 8, 7), 2))
    path = tmp_path / "source/images/v.nrrd"
    path.write_bytes(path.read_bytes().replace(b"encoding:", header.encode() + b"\nencoding:"))
    with pytest.raises(SourceProblems, match="points to other files"):
        convert(tmp_path / "source")


# --- which file belongs where ---


def test_folders_can_be_named_relative_to_the_source_or_absolutely(tmp_path: Path) -> None:
    source = make(tmp_path / "source")
    (source / "images").rename(source / "pictures")
    (source / "unlabeled").rename(tmp_path / "elsewhere")
    done = convert(source, images="pictures", labels=source / "labels", unlabeled="../elsewhere", test="pictures")
    assert done.counts == {"labeled": 3, "unlabeled": 2, "test": 3}
    with pytest.raises(WrongUse, match="got --images nowhere"):
        convert(source, images="nowhere")


def test_images_without_labels_are_unlabeled_where_both_are_in_one_folder(tmp_path: Path) -> None:
    source = make(tmp_path / "source")
    for path in (source / "unlabeled").iterdir():
        path.rename(source / "images" / path.name)
    (source / "unlabeled").rmdir()
    with pytest.raises(SourceProblems, match="give --unlabeled the folder of the images"):
        convert(source)
    done = convert(source, unlabeled="images")
    assert listing(done.folder / "imagesUn") == ["u0_0000.png", "u1_0000.png"]
    assert listing(done.folder / "imagesTr") == ["a0_0000.png", "a1_0000.png", "a2_0000.png"]


@pytest.mark.parametrize("suffix", ["_mask", "_segmentation", "_seg"])
def test_labels_may_have_a_usual_suffix(suffix: str, tmp_path: Path) -> None:
    done = convert(make(tmp_path / "source", suffix=suffix))
    assert listing(done.folder / "labelsTr") == ["a0.png", "a1.png", "a2.png"]
    assert done.notes == [f"labels are those whose names end in {suffix}"]


def test_channels_are_read_from_the_last_four_digits(tmp_path: Path) -> None:
    for case in ("p_2019", "p_2020"):
        for channel in range(2):
            write_volume(tmp_path / f"source/images/{case}_{channel:04d}.nii.gz", body(channel))
        write_volume(tmp_path / f"source/labels/{case}.nii.gz", blob((6, 8, 7), 2))
    done = convert(tmp_path / "source")
    assert listing(done.folder / "imagesTr") == [f"p_20{y}_000{c}.nii.gz" for y in (19, 20) for c in (0, 1)]
    assert description_of(done)["channel_names"] == {"0": "channel0", "1": "channel1"}
    check_integrity(done.folder)
    (tmp_path / "source/images/p_2019_0001.nii.gz").unlink()
    write_volume(tmp_path / "source/images/p_2021_0001.nii.gz", body(0))
    with pytest.raises(SourceProblems) as refusal:
        folder.convert(tmp_path / "source", 2, writing=QUIET)
    assert "p_2021_0001.nii.gz: got the channels 0001; expected 0000" in str(refusal.value)


@pytest.mark.parametrize(
    ("stems", "labels", "expected"),
    [
        (["a_0000", "b_0000"], ["a", "b"], True),
        (["a_0000", "b_0000"], ["a_0000", "b_0000"], False),
        (["a_0000", "a_0001"], ["a_0000_mask", "a_0001_mask"], False),
        (["img_0000", "img_0001", "img_0002"], [], False),
        (["img_0001", "img_0002"], [], False),
        (["a_0000", "a_0001", "b_0000", "b_0001"], [], True),
        (["a_0000", "b_0000"], [], True),
        (["a_0000", "b"], [], False),
        ([], [], False),
    ],
)
def test_digits_are_channels_only_where_the_names_of_labels_agree(
    stems: list[str], labels: list[str], expected: bool
) -> None:
    assert has_channels(stems, labels) == expected


def test_unlabeled_images_alone_are_a_dataset(tmp_path: Path) -> None:
    write_png(tmp_path / "source/unlabeled/a.png", random_image(0, *RGB))
    done = convert(tmp_path / "source")
    assert done.counts == {"labeled": 0, "unlabeled": 1, "test": 0}


def test_other_files_are_noted_and_hidden_ones_passed_over(tmp_path: Path) -> None:
    source = make(tmp_path / "source")
    for name in (".DS_Store", "Thumbs.db", "readme.txt"):
        (source / "unlabeled" / name).write_text("x")
    assert [note.rpartition(": ")[2] for note in convert(source).notes] == ["readme.txt"]


def test_folders_beside_the_files_are_noted(tmp_path: Path) -> None:
    source = make(tmp_path / "source")
    for name in ("p0/b0", ".hidden/b1"):
        write_png(source / f"unlabeled/{name}.png", random_image(0, *GREY))
    done = convert(source)
    assert done.notes == ["left out, because in folders below unlabeled: what is in p0"]
    assert done.counts["unlabeled"] == 2


@pytest.mark.parametrize(
    ("stem", "expected"),
    [
        ("benign (1)", "benign_1"),
        ("a/../b", "a_.._b"),
        ("..\\..\\x", "x"),
        ("..", ""),
        (".hidden", "hidden"),
        ("Fall Ä-7.v2", "Fall_-7.v2"),
        ("x_seg", "x_seg_"),
        ("; rm -rf $HOME", "rm_-rf_HOME"),
    ],
)
def test_case_names_hold_nothing_that_a_shell_or_a_file_system_minds(stem: str, expected: str) -> None:
    assert case_name(stem) == expected


# --- real data ---


@pytest.mark.skipif(not (SHARED / "hippocampus").is_dir(), reason="needs the hippocampus volumes beside the repository")
def test_real_volumes_with_unlabeled_ones_in_the_same_folder(tmp_path: Path) -> None:
    names = sorted(path.name for path in (SHARED / "hippocampus/images").iterdir())[:6]
    for kind, count in (("images", 6), ("labels", 4)):
        (tmp_path / "source" / kind).mkdir(parents=True)
        for name in names[:count]:
            (tmp_path / "source" / kind / name).write_bytes((SHARED / "hippocampus" / kind / name).read_bytes())
    done = convert(tmp_path / "source", unlabeled="images", classes=["anterior", "posterior"])
    assert done.counts == {"labeled": 4, "unlabeled": 2, "test": 0}
    check_integrity(done.folder)
