"""FUGC 2025: names that cannot collide, bytes that stay, and the split."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from conversion_sources import (
    COLUMNS,
    QUIET,
    ROWS,
    SHARED,
    blob,
    check_integrity,
    image_of,
    listing,
    make_fugc,
    nnunet_folders,  # noqa: F401
    write_png,
)
from nnunet_semi.dataset_conversion import fugc2025
from nnunet_semi.dataset_conversion.splits import k_folds, shuffled_parts


def test_labeled_unlabeled_and_validation_images_get_their_folders_and_prefixes(tmp_path: Path) -> None:
    source = make_fugc(tmp_path / "source", labeled=5, unlabeled=2, validation=1)
    done = fugc2025.convert(source, writing=QUIET)
    assert [name for name in listing(done.folder) if "0001" in name] == [
        "imagesTr/L0001_0000.png",
        "imagesTs/V0001_0000.png",
        "imagesUn/U0001_0000.png",
        "labelsTr/L0001.png",
        "labelsTs/V0001.png",
    ]
    assert done.counts == {"labeled": 5, "unlabeled": 2, "test": 1}
    description = json.loads((done.folder / "dataset.json").read_text())
    assert description["labels"] == {"background": 0, "anterior lip": 1, "posterior lip": 2}
    assert description["channel_names"] == {"0": "R", "1": "G", "2": "B"}
    check_integrity(done.folder)


def test_png_files_keep_their_bytes(tmp_path: Path) -> None:
    source = make_fugc(tmp_path / "source")
    done = fugc2025.convert(source, writing=QUIET)
    pairs = {"images/0003.png": "imagesTr/L0003_0000.png", "labels/0003.png": "labelsTr/L0003.png"}
    for old, new in pairs.items():
        assert (source / "train/labeled_data" / old).read_bytes() == (done.folder / new).read_bytes()


def test_labels_in_three_equal_channels_or_with_a_palette_become_plain(tmp_path: Path) -> None:
    source = make_fugc(tmp_path / "source")
    values = blob((ROWS, COLUMNS), 2)
    labels = source / "train/labeled_data/labels"
    write_png(labels / "0001.png", np.repeat(values[..., None], 3, axis=2))
    from PIL import Image

    indexed = Image.fromarray(values)
    indexed.putpalette([0, 0, 0, 200, 0, 0, 0, 200, 0])
    indexed.save(labels / "0002.png")
    done = fugc2025.convert(source, writing=QUIET)
    for number in (1, 2):
        np.testing.assert_array_equal(image_of(done.folder / f"labelsTr/L{number:04d}.png"), values)
    check_integrity(done.folder)


def test_the_folder_train_is_a_source_too_and_validation_needs_no_labels(tmp_path: Path) -> None:
    source = make_fugc(tmp_path / "source", validation=2)
    assert fugc2025.plan(source / "train").count("Tr") == 5
    for path in (source / "val/labeled_data/labels").iterdir():
        path.unlink()
    (source / "val/labeled_data/labels").rmdir()
    assert fugc2025.plan(source).count("Ts") == 2


def test_fifty_images_are_split_into_forty_and_ten_five_times() -> None:
    names = [f"L{number:04d}" for number in range(1, 51)]
    splits = k_folds(names)
    assert splits is not None and [(len(s["train"]), len(s["val"])) for s in splits] == [(40, 10)] * 5
    assert sorted(name for split in splits for name in split["val"]) == names
    assert all(not set(split["train"]) & set(split["val"]) for split in splits)
    assert k_folds(names[::-1]) == splits
    assert k_folds(names[:4]) is None


def test_the_shuffle_is_that_of_the_random_module() -> None:
    import random

    numbers = list(range(1, 401))
    random.seed(2023)
    random.shuffle(numbers)
    assert shuffled_parts(400, (300, 50, 50)) == [numbers[:300], numbers[300:350], numbers[350:]]
    assert [len(part) for part in shuffled_parts(11, (300, 50, 50))] == [9, 1, 1]
    assert sorted(sum(shuffled_parts(11, (300, 50, 50)), [])) == list(range(1, 12))


@pytest.mark.skipif(not (SHARED / "fugc_layout").is_dir(), reason="needs the FUGC layout beside the repository")
def test_real_images_in_the_layout_are_converted() -> None:
    done = fugc2025.convert(SHARED / "fugc_layout", writing=QUIET)
    assert done.counts == {"labeled": 30, "unlabeled": 80, "test": 0}
    assert image_of(done.folder / "imagesUn/U0001_0000.png").shape == (336, 544, 3)
    check_integrity(done.folder)
