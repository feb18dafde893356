"""Label maps in every format: read as nnU-Net reads them, written on the grid of another."""

from __future__ import annotations

import os

import nibabel
import numpy as np
import pytest
import SimpleITK
import tifffile
from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from PIL import Image

from label_map_folders import volumes, write
from nnunet_semi.errors import UserError
from nnunet_semi.labelmaps.files import read_grid, read_label_map, write_label_map


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".mha", ".nrrd", ".gipl", ".tif"])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32, np.uint16])
def test_labels_are_read_as_nnunet_reads_them_in_as_few_bytes_as_will_do(tmp_path, ending, dtype):
    path = write(tmp_path / f"a{ending}", volumes(0)["case_0"].astype(dtype))
    labels, grid = read_label_map(path)
    assert labels.dtype == np.uint8 and labels.flags.c_contiguous
    if ending in (".nii.gz", ".mha", ".nrrd", ".gipl"):
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


@pytest.mark.parametrize("ending", [".nii.gz", ".mha", ".gipl", ".tif", ".png"])
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
    if ending in (".nii.gz", ".mha", ".gipl"):
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


# --- directions of NIfTI ---


def turned(degrees, mirrored=False):
    """An affine."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    affine = np.diag([1.0, 1.0, 1.0, 1.0])
    affine[:3, :3] = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) * (0.9, 0.8, 2.5)
    return np.diag([-1, 1, 1, 1]) @ affine if mirrored else affine


HEADERS = {  # qform, its code, sform, its code
    "no direction": (None, 0, None, 0),
    "registered": (turned(0), 1, turned(30), 2),
    "of a template": (turned(0), 1, turned(30), 4),
    "two scanners": (turned(0), 1, turned(30), 1),
    "only qform": (turned(20), 1, None, 0),
    "only sform": (None, 0, turned(20), 2),
}


def write_nifti(path, qform, qcode, sform, scode):
    image = nibabel.Nifti1Image(volumes(0)["case_0"].T, None)
    image.header.set_zooms((0.9, 0.8, 2.5))
    image.header.set_qform(qform, qcode)
    image.header.set_sform(sform, scode)
    nibabel.save(image, path)
    return path


@pytest.mark.parametrize("library", [SimpleITKIO, NibabelIO])
@pytest.mark.parametrize("header", HEADERS)
def test_what_nnunet_predicts_is_on_the_grid_of_the_image_whatever_its_header_says(tmp_path, library, header):
    reference = write_nifti(tmp_path / "a.nii.gz", *HEADERS[header])
    labels, properties = library().read_seg(str(reference))
    library().write_seg(labels[0], str(tmp_path / "b.nii.gz"), properties)
    assert read_grid(reference).difference(read_grid(tmp_path / "b.nii.gz")) == ""
    write_label_map(tmp_path / "c.nii.gz", read_label_map(reference)[0], reference)
    for other in ("a", "b"):  # where the header is kept, both libraries find both directions again
        assert read_grid(tmp_path / "c.nii.gz").difference(read_grid(tmp_path / f"{other}.nii.gz")) == ""


@pytest.mark.parametrize("header", HEADERS)
def test_a_prediction_that_is_flipped_is_not_on_the_grid(tmp_path, header):
    reference = write_nifti(tmp_path / "a.nii.gz", *HEADERS[header])
    image = SimpleITK.Flip(SimpleITK.ReadImage(str(reference)), (True, False, False))
    SimpleITK.WriteImage(image, str(tmp_path / "b.nii.gz"))
    assert read_grid(reference).difference(read_grid(tmp_path / "b.nii.gz")) == "another orientation"
    flipped = nibabel.load(reference)
    flipped = flipped.slicer[::-1]
    nibabel.save(nibabel.Nifti1Image(np.asanyarray(flipped.dataobj), flipped.affine), tmp_path / "c.nii.gz")
    assert read_grid(reference).difference(read_grid(tmp_path / "c.nii.gz")) == "another orientation"


def test_a_sheared_grid_which_itk_refuses_is_that_of_itself_and_nothing_is_printed(tmp_path, capfd):
    sheared = turned(20)
    sheared[0, 2] += 0.6
    path = write_nifti(tmp_path / "a.nii.gz", None, 0, sheared, 1)
    assert read_grid(path).difference(read_grid(path)) == ""
    assert read_grid(path).difference(read_grid(write_nifti(tmp_path / "b.nii.gz", *HEADERS["only sform"])))
    assert capfd.readouterr() == ("", "")


def test_gipl_knows_no_direction(tmp_path):
    oblique = write(tmp_path / "a.nii.gz", volumes(0)["case_0"], direction=(0.8, 0.6, 0, -0.6, 0.8, 0, 0, 0, 1))
    assert read_grid(oblique).difference(read_grid(write(tmp_path / "a.gipl", volumes(0)["case_0"]))) == ""


# --- TIFF ---


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{}", "no spacing that can be read"),
        ("no JSON", "no spacing that can be read"),
        ('{"spacing": [1, 1]}', r"the spacing \(1.0, 1.0\)"),
        ('{"spacing": [1, 1, 0]}', r"the spacing \(1.0, 1.0, 0.0\)"),
        ('{"spacing": [1, 1, NaN]}', r"the spacing \(1.0, 1.0, nan\)"),
    ],
)
def test_a_broken_spacing_file_is_named(tmp_path, content, said):
    path = write(tmp_path / "a.tif", volumes(0)["case_0"])
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(UserError, match=rf"a\.json holds {said}; expected .* 3 sizes above 0"):
        read_grid(path)


@pytest.fixture
def part_of_two_files(tmp_path):
    """An OME-TIFF whose second plane is said to be in a file outside of its folder."""
    (tmp_path / "inside").mkdir()
    tifffile.imwrite(tmp_path / "x.tif", np.full((5, 6), 7, np.uint8), photometric="minisblack")
    parts = "".join(
        f'<TiffData FirstZ="{z}" IFD="0" PlaneCount="1"><UUID FileName="{name}">urn:uuid:{z}</UUID></TiffData>'
        for z, name in enumerate(("a.tif", "../x.tif"))
    )
    description = (
        '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="urn:uuid:0">'
        '<Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="uint8" SizeX="6" SizeY="5" SizeZ="2" '
        f'SizeC="1" SizeT="1"><Channel ID="Channel:0" SamplesPerPixel="1"/>{parts}</Pixels></Image></OME>'
    )
    path = tmp_path / "inside" / "a.tif"
    tifffile.imwrite(path, np.zeros((5, 6), np.uint8), photometric="minisblack", description=description, metadata=None)
    assert tifffile.imread(path).max() == 7  # tifffile itself follows the path
    return path


def test_files_that_a_tiff_names_are_never_opened(part_of_two_files, monkeypatch):
    opened, whole = [], tifffile.TiffFile.__init__

    def noting(self, file, **options):
        opened.append(file)
        whole(self, file, **options)

    monkeypatch.setattr(tifffile.TiffFile, "__init__", noting)
    for read in (read_grid, read_label_map):
        with pytest.raises(UserError, match=r"a\.tif says that parts of it are in other files; .* a single one"):
            read(part_of_two_files)
    assert opened == [part_of_two_files] * 2


def test_an_ome_tiff_that_holds_all_of_itself_is_read_also_under_another_name(tmp_path):
    labels = volumes(0)["case_0"]
    tifffile.imwrite(tmp_path / "a.ome.tif", labels, metadata={"axes": "ZYX"}, photometric="minisblack")
    (tmp_path / "a.ome.tif").rename(tmp_path / "b.tif")
    np.testing.assert_array_equal(read_label_map(tmp_path / "b.tif")[0], labels)


# --- a full disk ---


@pytest.mark.parametrize("ending", [".nii", ".nii.gz", ".mha", ".nrrd", ".gipl", ".png", ".tif"])
def test_what_cannot_be_written_whole_is_an_oserror_and_leaves_nothing(tmp_path, ending):
    resource = pytest.importorskip("resource")
    shape = (90, 80) if ending == ".png" else (9, 90, 80)
    like = write(tmp_path / f"a{ending}", volumes(0, shape=shape)["case_0"])
    before, limit = sorted(os.listdir(tmp_path)), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limit[1]))
    try:
        with pytest.raises(OSError):
            write_label_map(tmp_path / f"b{ending}", volumes(1, shape=shape)["case_0"], like)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert sorted(os.listdir(tmp_path)) == before
