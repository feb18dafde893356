"""Label maps in every format: read as nnU-Net reads them, written on the grid of another."""

from __future__ import annotations

import os

import nibabel
import numpy as np
import pytest
import SimpleITK
from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from PIL import Image

from label_map_folders import volumes, write
from nnunet_semi.labelmaps.files import read_grid, read_label_map, write_label_map


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".mha", ".nrrd", ".tif"])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32, np.uint16])
def test_labels_are_read_as_nnunet_reads_them_in_as_few_bytes_as_will_do(tmp_path, ending, dtype):
    path = write(tmp_path / f"a{ending}", volumes(0)["case_0"].astype(dtype))
    labels, grid = read_label_map(path)
    assert labels.dtype == np.uint8 and labels.flags.c_contiguous
    if ending in (".nii.gz", ".mha", ".nrrd"):
        theirs, properties = SimpleITKIO().read_seg(str(path))
        np.testing.assert_array_equal(labels, theirs[0])
        assert grid.spacing == pytest.approx(properties["spacing"], rel=1e-6)
    np.testing.assert_array_equal(labels, volumes(0)["case_0"])
    assert read_grid(path).difference(grid) == ""


def test_pictures_are_read_as_nnunet_reads_them(tmp_path):
    path = write(tmp_path / "a.png", volumes(0, shape=(9, 7))["case_0"])
    labels, grid = read_label_map(path)
    np.testing.assert_array_equal(labels, NaturalImage2DIO().read_seg(str(path))[0][0, 0])
    assert grid.shape == (9, 7) and grid.spacing is None


def test_pictures_of_every_kind(tmp_path):
    labels = volumes(0, labels=2, shape=(5, 4))["case_0"]
    grey = Image.fromarray(labels)
    palette = Image.new("P", grey.size)
    palette.putpalette([0, 0, 0, 200, 0, 0])
    palette.putdata(labels.ravel().tolist())
    kinds = {"grey": grey, "palette": palette, "alpha": Image.merge("LA", (grey, Image.new("L", grey.size, 255)))}
    kinds["bits"] = Image.fromarray(labels.astype(bool))
    kinds["deep"] = Image.fromarray(labels.astype(np.uint16))
    kinds["rgb"] = Image.merge("RGB", (grey, grey, grey))
    for kind, image in kinds.items():
        image.save(tmp_path / f"{kind}.png")
        np.testing.assert_array_equal(read_label_map(tmp_path / f"{kind}.png")[0], labels, err_msg=kind)


def test_binary_reading_takes_whatever_is_above_zero_in_any_channel(tmp_path):
    colours = np.zeros((2, 3, 4), np.uint8)
    colours[..., 3] = 255  # alpha does not count
    colours[0, 0, 2], colours[1, 2, 0] = 1, 200
    path = write(tmp_path / "a.png", colours)
    assert read_label_map(path, binary=True)[0].tolist() == [[1, 0, 0], [0, 0, 1]]


@pytest.mark.parametrize("ending", [".nii.gz", ".mha", ".tif", ".png"])
def test_a_label_map_is_written_on_the_grid_of_another(tmp_path, ending):
    shape = (9, 7) if ending == ".png" else (4, 7, 6)
    oblique = None if ending == ".png" else (0.8, 0.6, 0, -0.6, 0.8, 0, 0, 0, 1)
    like = write(tmp_path / f"like{ending}", volumes(0, shape=shape)["case_0"], direction=oblique)
    labels = volumes(1, shape=shape)["case_0"]
    write_label_map(tmp_path / f"new{ending}", labels, like)
    found, grid = read_label_map(tmp_path / f"new{ending}")
    np.testing.assert_array_equal(found, labels)
    assert read_grid(like).difference(grid) == "" and grid.spacing == read_grid(like).spacing
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]
    if ending in (".nii.gz", ".mha"):
        images = [SimpleITK.ReadImage(str(tmp_path / f"{name}{ending}")) for name in ("like", "new")]
        for what in ("GetOrigin", "GetDirection", "GetSpacing"):
            assert getattr(images[0], what)() == pytest.approx(getattr(images[1], what)())


def test_scaled_niftis_are_read_with_their_scale_and_written_without(tmp_path):
    image = nibabel.Nifti1Image(np.array([[[0, 2], [4, 6]]], np.int16), np.eye(4))
    image.header.set_slope_inter(0.5, 0)
    image.header["scl_slope"] = 0.5
    nibabel.save(image, tmp_path / "a.nii")
    labels, _ = read_label_map(tmp_path / "a.nii")
    write_label_map(tmp_path / "b.nii", labels, tmp_path / "a.nii")
    np.testing.assert_array_equal(read_label_map(tmp_path / "b.nii")[0], labels)
