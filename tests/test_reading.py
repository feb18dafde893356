"""Each way in which an image can be bad, in the formats in which it comes, is told in words."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import tifffile

from nnunet_semi.unlabeled.reading import BadCase, CheckedPlans, brief
from small_dataset import write_image

READERS = {".png": "NaturalImage2DIO", ".tif": "Tiff3DIO", ".nii": "NibabelIO"}
FLAT = {"original_median_shape_after_transp": [1, 8, 8], "configurations": {"2d": {"patch_size": [8, 8]}}}
VOLUMES = {
    "original_median_shape_after_transp": [6, 8, 8],
    "configurations": {"2d": {"patch_size": [8, 8]}, "3d_fullres": {"patch_size": [4, 8, 8]}},
}


def volume(seed: int = 0, shape: tuple[int, ...] = (6, 7, 8)) -> np.ndarray:
    return np.random.default_rng(seed).uniform(1, 2, shape).astype(np.float32)


def write(folder: Path, ending: str, *channels: np.ndarray, spacing: Any = None) -> list[str]:
    files = []
    for number, values in enumerate(channels):
        path = folder / f"a_{number:04d}{ending}"
        if ending == ".tif":
            tifffile.imwrite(path, values)
        elif ending == ".nii":
            nibabel.save(nibabel.Nifti1Image(values.T, np.eye(4)), path)
        else:
            write_image(path, values, spacing)
        files.append(str(path))
    return files


def read(files: list[str], channels: int = 1, plans: dict[str, Any] = VOLUMES) -> np.ndarray:
    ending = Path(files[0]).name.partition(".")[2]
    reader = READERS.get(f".{ending}", "SimpleITKIO")
    names = {str(number): f"T{number + 1}" for number in range(channels)}
    checked = CheckedPlans({**plans, "image_reader_writer": reader}, {"channel_names": names, "file_ending": ending})
    return checked.image_reader_writer_class().read_images(files)[0]


def reason(*args: Any, **kwargs: Any) -> str:
    with pytest.raises(BadCase) as error:
        read(*args, **kwargs)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("ending", [".nii.gz", ".mha", ".nrrd", ".tif", ".nii"])
def test_good_volumes_are_read_unchanged(tmp_path: Path, ending: str) -> None:
    files = write(tmp_path, ending, volume(0), volume(1))
    np.testing.assert_array_equal(read(files, channels=2), np.stack([volume(0), volume(1)]))


@pytest.mark.parametrize("ending", [".nii.gz", ".mha", ".nrrd", ".tif", ".nii"])
@pytest.mark.parametrize("keep", [0.0, 0.02, 0.3, 0.7])
def test_cut_off_volumes_are_named(tmp_path: Path, ending: str, keep: float) -> None:
    whole = Path(write(tmp_path, ending, volume(shape=(20, 30, 40)))[0])
    content = whole.read_bytes()
    whole.write_bytes(content[: int(keep * len(content))])
    assert whole.name in reason([str(whole)])


def test_a_whole_archive_of_a_cut_off_volume_is_named(tmp_path: Path) -> None:
    [whole] = write(tmp_path, ".nii", volume())
    short = tmp_path / "b_0000.nii.gz"
    short.write_bytes(gzip.compress(Path(whole).read_bytes()[:-100]))
    assert reason([str(short)]) == "b_0000.nii.gz is cut off: it holds 1244 of 1344 bytes of image"


def test_both_versions_of_nifti_are_looked_into(tmp_path: Path) -> None:
    broken = volume()
    broken[1, 1, 1] = np.nan
    nibabel.save(nibabel.Nifti2Image(broken, np.eye(4)), tmp_path / "a_0000.nii.gz")
    assert "1 of 336 values" in reason([str(tmp_path / "a_0000.nii.gz")])


def test_a_nifti_that_only_claims_to_be_compressed_is_read(tmp_path: Path) -> None:
    [plain] = write(tmp_path, ".nii", volume())
    named = tmp_path / "b_0000.nii.gz"
    named.write_bytes(Path(plain).read_bytes())
    np.testing.assert_array_equal(read([str(named)])[0], volume())


@pytest.mark.parametrize("ending", [".nii.gz", ".mha", ".nrrd", ".tif", ".nii", ".png"])
def test_a_file_of_another_kind_is_named_with_the_reader(tmp_path: Path, ending: str) -> None:
    file = tmp_path / f"a_0000{ending}"
    file.write_text("this is no image\n" * 100)
    told = reason([str(file)])
    assert f"a_0000{ending} cannot be read by" in told and str(tmp_path) not in told


def test_a_dead_link_and_an_empty_file_are_named(tmp_path: Path) -> None:
    (tmp_path / "a_0000.mha").symlink_to(tmp_path / "gone.mha")
    (tmp_path / "b_0000.mha").touch()
    assert reason([str(tmp_path / "a_0000.mha")]) == "a_0000.mha is a link to a file that does not exist"
    assert reason([str(tmp_path / "b_0000.mha")]) == "b_0000.mha is empty (0 bytes)"


def test_channels_of_different_shapes_are_named(tmp_path: Path) -> None:
    files = write(tmp_path, ".nii.gz", volume(), volume(shape=(6, 7, 9)))
    told = reason(files, channels=2)
    assert told == "its channels differ in shape: a_0000.nii.gz (6, 7, 8), a_0001.nii.gz (6, 7, 9)"


def test_channels_of_different_spacings_are_named(tmp_path: Path) -> None:
    files = write(tmp_path, ".nii.gz", volume(), spacing=(1, 1, 1))
    write_image(tmp_path / "a_0001.nii.gz", volume(), (1, 1, 2))
    told = reason([*files, str(tmp_path / "a_0001.nii.gz")], channels=2)
    assert told.startswith(
        "its channels differ in spacing: a_0000.nii.gz (1.0, 1.0, 1.0), a_0001.nii.gz (1.0, 1.0, 2.0)"
    )


@pytest.mark.parametrize("got, expected", [(1, 2), (2, 1), (3, 2)])
def test_a_wrong_number_of_channels(tmp_path: Path, got: int, expected: int) -> None:
    files = write(tmp_path, ".mha", *(volume(seed) for seed in range(got)))
    assert reason(files, channels=expected).startswith(f"it has {got} channel(s); expected {expected} (T1")


def test_a_colour_image_among_grey_ones(tmp_path: Path) -> None:
    sitk.WriteImage(
        sitk.GetImageFromArray(np.eye(8, dtype=np.uint8)[..., None].repeat(3, -1), True), tmp_path / "a.png"
    )
    assert reason([str(tmp_path / "a.png")], plans=FLAT) == "it has 3 channel(s); expected 1 (T1)"


def test_a_colour_image_in_one_file_is_three_channels(tmp_path: Path) -> None:
    image = np.arange(192, dtype=np.uint8).reshape(8, 8, 3)
    sitk.WriteImage(sitk.GetImageFromArray(image, True), tmp_path / "a.png")
    np.testing.assert_array_equal(read([str(tmp_path / "a.png")], 3, FLAT), image.transpose(2, 0, 1)[:, None])


@pytest.mark.parametrize("ending", [".nii.gz", ".mha"])
def test_a_volume_among_2d_images(tmp_path: Path, ending: str) -> None:
    told = reason(write(tmp_path, ending, volume()), plans=FLAT)
    assert told == "it is a volume of shape (6, 7, 8); the labeled cases are 2D images"


@pytest.mark.parametrize("ending", [".nii.gz", ".mha"])
def test_a_2d_image_among_volumes(tmp_path: Path, ending: str) -> None:
    told = reason(write(tmp_path, ending, volume()[0]), plans=VOLUMES)
    assert told == "it is a 2D image of shape (7, 8); the labeled cases are volumes"


def test_a_volume_of_one_slice_is_a_volume(tmp_path: Path) -> None:
    assert read(write(tmp_path, ".mha", volume()[:1], spacing=(5, 1, 1))).shape == (1, 1, 7, 8)


def test_a_2d_image_among_2d_images(tmp_path: Path) -> None:
    assert read(write(tmp_path, ".mha", volume()[0]), plans=FLAT).shape == (1, 1, 7, 8)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".mha", ".nrrd", ".tif"])
def test_values_that_are_no_numbers_are_counted(tmp_path: Path, ending: str, value: float) -> None:
    broken = volume()
    broken[0, :2, 3] = value
    told = reason(write(tmp_path, ending, volume(), broken), channels=2)
    where = f"a_0001{ending}" if ".nii" in ending else "its channel T2"
    assert told == f"2 of 336 values of {where} are NaN or infinite"


@pytest.mark.filterwarnings("ignore:overflow")
def test_values_beyond_single_precision_are_infinite(tmp_path: Path) -> None:
    told = reason(write(tmp_path, ".mha", np.full((2, 2, 2), 1e300)))
    assert told == "8 of 8 values of its channel T1 are NaN or infinite"


@pytest.mark.parametrize("value", [0, 7])
@pytest.mark.parametrize("ending", [".nii.gz", ".tif", ".mha"])
def test_an_image_of_one_value_is_empty(tmp_path: Path, ending: str, value: int) -> None:
    told = reason(write(tmp_path, ending, np.full((6, 7, 8), value, dtype=np.int16)))
    assert told == f"it is empty: all values are {value}"


def test_one_empty_channel_of_two_is_allowed(tmp_path: Path) -> None:
    files = write(tmp_path, ".nii.gz", volume(), np.zeros_like(volume()))
    assert read(files, channels=2).shape == (2, 6, 7, 8)


def test_an_image_without_voxels_is_empty() -> None:
    plans = CheckedPlans(VOLUMES, {"channel_names": {"0": "T1"}, "file_ending": ".mha"})
    with pytest.raises(BadCase, match=r"it is empty: its shape is \(0, 4, 4\)"):
        plans.check_image(np.zeros((1, 0, 4, 4)), (1, 1, 1))


@pytest.mark.parametrize("spacing", [(0, 1, 1), (1, -1, 1), (1, 1, np.nan)])
def test_a_spacing_that_is_no_length(spacing: tuple[float, ...]) -> None:
    plans = CheckedPlans(VOLUMES, {"channel_names": {"0": "T1"}, "file_ending": ".mha"})
    with pytest.raises(BadCase, match="its spacing is .*; expected positive numbers"):
        plans.check_image(volume()[None], spacing)


def test_messages_are_cut_to_the_line_that_tells() -> None:
    message = "Exception in /a/b.cxx:\nitk::ERROR: MetaImageIO(0x55d): no /data/x.mha\nReason: none"
    assert brief(RuntimeError(message), "/data") == "MetaImageIO: no x.mha"
    assert brief(ValueError("\nfirst\nsecond")) == "first"
    assert brief(RuntimeError()) == "RuntimeError"
    assert len(brief(ValueError("x" * 1000))) == 200
