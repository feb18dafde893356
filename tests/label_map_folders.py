"""Small label maps in every format, and folders of them with references and predictions to evaluate."""

from __future__ import annotations

import json

import numpy as np
import pytest
import SimpleITK
import tifffile
from PIL import Image

SPACING = (2.5, 0.8, 0.9)  # z, y, x


def write(path, array, spacing=SPACING, direction=None):
    """A label map with axes z, y, x (or y, x), in the format that the name of the file says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".png":
        Image.fromarray(array).save(path)
    elif path.suffix == ".tif":
        tifffile.imwrite(path, array, photometric="minisblack")
        if array.ndim == 3:
            path.with_suffix(".json").write_text(json.dumps({"spacing": spacing}))
    else:
        image = SimpleITK.GetImageFromArray(array)
        image.SetSpacing(spacing[::-1][: array.ndim])
        if direction is not None:
            image.SetDirection(direction)
        SimpleITK.WriteImage(image, str(path))
    return path


def volumes(seed, count=3, labels=4, shape=(4, 7, 6)):
    """{case: label map}"""
    rng = np.random.default_rng(seed)
    return {f"case_{number}": rng.integers(0, labels, shape).astype(np.uint8) for number in range(count)}


@pytest.fixture
def folders(tmp_path):
    """References in labelsTr and predictions beside it, three volumes each with the labels 0 to 3."""
    for name, seed in (("labelsTr", 0), ("predictions", 1)):
        for case, array in volumes(seed).items():
            write(tmp_path / name / f"{case}.nii.gz", array)
    return tmp_path / "labelsTr", tmp_path / "predictions"


def declare(folder, **labels):
    (folder / "dataset.json").write_text(json.dumps({"labels": labels, "file_ending": ".nii.gz"}))
