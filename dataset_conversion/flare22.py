"""FLARE22: 13 organs in abdominal CT, 50 labeled and 2000 unlabeled cases."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import SimpleITK as sitk

from nnunet_semi.dataset_conversion import volumes
from nnunet_semi.dataset_conversion.body import around, body_box
from nnunet_semi.dataset_conversion.plan import LABELED, TEST, UNLABELED, Output, Plan, case_name, describe
from nnunet_semi.dataset_conversion.raster import refuse_other_grid, refuse_other_labels, smallest_type
from nnunet_semi.dataset_conversion.reorientation import ORIENTATION, Reorientation, axes_to, header_of, orientation
from nnunet_semi.dataset_conversion.sources import Source
from nnunet_semi.dataset_conversion.writing import DEFAULT, Conversion, Writing, write_dataset
from nnunet_semi.labelmaps.damage import refuse_undefined
from nnunet_semi.storage import write_json

ORGANS = (
    "liver",
    "right kidney",
    "spleen",
    "pancreas",
    "aorta",
    "inferior vena cava",
    "right adrenal gland",
    "left adrenal gland",
    "gallbladder",
    "esophagus",
    "stomach",
    "duodenum",
    "left kidney",
)
LABELS = {"background": 0} | {organ: number for number, organ in enumerate(ORGANS, 1)}
ENDINGS = (".nii.gz", ".nii")
LAYOUT = (
    "Training/FLARE22_LabeledCase50/{images,labels} as in the challenge, or labeled_image and labeled_mask, or "
    "train_images and train_mask"
)


@dataclass(frozen=True)
class Scheme:
    """Folder names: patterns below the source."""

    images: tuple[str, ...]
    labels: tuple[str, ...]
    unlabeled: tuple[str, ...]
    test: tuple[str, ...]


SCHEMES = (
    Scheme(
        ("Training/FLARE22_LabeledCase*/images", "FLARE22_LabeledCase*/images"),
        ("Training/FLARE22_LabeledCase*/labels", "FLARE22_LabeledCase*/labels"),
        ("Training/FLARE22_UnlabeledCase*", "FLARE22_UnlabeledCase*"),
        ("Tuning/images", "Tuning"),
    ),
    Scheme(("labeled_image",), ("labeled_mask",), ("unlabeled_image",), ("test_image",)),
    Scheme(("train_images",), ("train_mask",), ("trainu_images",), ("val_images",)),
)


def convert(
    source: Path | str,
    dataset_id: int | None = None,
    name: str = "FLARE22",
    *,
    crop_body: bool = False,
    writing: Writing = DEFAULT,
) -> Conversion:
    """Writes nnUNet_raw/Dataset<id>_<name>; see `plan` for what becomes what, and `write_dataset` for the rest."""
    return write_dataset(plan(source, crop_body), dataset_id, name, writing)


def plan(source: Path | str, crop_body: bool = False) -> Plan:
    """Turns every volume to the orientation LPS; beside each case lies what `restore` needs to undo that.

    Args:
        source: a folder that is laid out as the challenge or the published baselines do.
        crop_body: whether to cut away the air around the body. No label is ever cut away.
    """
    files = Source(source)
    description = describe("flare22", ["CT"], LABELS, ".nii.gz", orientation=ORIENTATION, crop_body=crop_body)
    result = Plan(files.root, description, problems=files.problems, notes=files.notes)
    scheme = next((scheme for scheme in SCHEMES if files.find(*scheme.images)), None)
    image_folder, label_folder = (files.find(*scheme.images), files.find(*scheme.labels)) if scheme else (None, None)
    if scheme is None or image_folder is None or label_folder is None:
        files.unknown_layout(LAYOUT)
        return result.finish()
    images = _without_channel(files.files(image_folder, ENDINGS))
    if not images:
        files.empty(image_folder, "FLARE22_Tr_0001_0000.nii.gz …")
    pairs = files.pairs(images, files.files(label_folder, ENDINGS), image_folder, label_folder)
    for stem, image, label in pairs:
        work = Volume(stem + ENDINGS[0], crop_body)
        result.add(LABELED, case_name(stem), [image], work, label, geometry=image)
    folders = [folder for pattern in scheme.unlabeled for folder in files.find_all(pattern)]
    taken = {case_name(stem) for stem in images}
    taken |= _add_images(result, files, UNLABELED, folders, crop_body, taken)
    test = files.find(*scheme.test)
    _add_images(result, files, TEST, [test] if test else [], crop_body, taken)
    return result.finish()


def _add_images(
    result: Plan,
    files: Source,
    role: str,
    folders: Sequence[Path],
    crop_body: bool,
    taken: Collection[str],
) -> set[str]:
    """Adds images without labels; where one has the name of an earlier case, all of them get a prefix, U_ or T_.

    Otherwise `restore` could not tell which of the two a prediction is for. Gives the names.
    """
    found = [
        item
        for folder in folders
        for inner in [folder / "images" if (folder / "images").is_dir() else folder]
        for item in sorted(_without_channel(files.files(inner, ENDINGS)).items())
    ]
    prefix = f"{role[0]}_" if any(case_name(stem) in taken for stem, _ in found) else ""
    for stem, image in found:
        result.add(role, case_name(stem, prefix), [image], Volume(stem + ENDINGS[0], crop_body), geometry=image)
    return {case_name(stem, prefix) for stem, _ in found}


def _without_channel(files: dict[str, Path]) -> dict[str, Path]:
    """Files by the name of their case, which is what stands before _0000."""
    return {stem.removesuffix("_0000"): path for stem, path in files.items()}


@dataclass(frozen=True)
class Volume:
    """A CT, the label map that belongs to it where there is one, and the way back to its grid.

    Attributes:
        prediction: what a prediction is called on the original grid.
        crop_body: whether to cut away the air around the body.
    """

    prediction: str
    crop_body: bool

    def __call__(self, image_path: Path, *others: Path) -> Sequence[Output]:
        image = volumes.read_volume(image_path, dimensions=(3,))
        refuse_undefined(image_path, sitk.GetArrayViewFromImage(image))
        code, size = orientation(image), image.GetSize()
        labels = [_read_label(path, image) for path in others[:-1]]
        image, labels = _turned(image, code), [_turned(label, code) for label in labels]
        start, box = self._box(image, labels)
        axes, flipped = axes_to(code)
        geometry = Reorientation(self.prediction, size, axes, flipped, start, box, header_of(image_path))
        as_is = code == ORIENTATION and box == size
        outputs: list[Output] = []
        for path, part in zip((image_path, *others), (image, *labels), strict=False):
            same = as_is and path.name.lower().endswith(ENDINGS[0])
            outputs.append(None if same else volumes.volume(sitk.RegionOfInterest(part, box, start)))
        return [*outputs, partial(write_json, content=geometry.as_json())]

    def _box(self, image: sitk.Image, labels: Sequence[sitk.Image]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """First voxel and size of what is kept, in the order x, y, z."""
        if not self.crop_body:
            return (0, 0, 0), image.GetSize()
        box = body_box(sitk.GetArrayViewFromImage(image), image.GetSpacing()[::-1])
        for label in labels:
            box = around(sitk.GetArrayViewFromImage(label), box)
        return tuple(first for first, _ in reversed(box)), tuple(last - first for first, last in reversed(box))


def _read_label(path: Path, image: sitk.Image) -> sitk.Image:
    """The label map of an image, on exactly its grid.

    Raises:
        Unusable: it lies on another grid, or holds other values than those of the 13 organs.
    """
    label = volumes.as_raster(volumes.read_volume(path, dimensions=(3,)))
    refuse_other_grid(path, label, volumes.as_raster(image))
    refuse_other_labels(path, label.values, range(len(LABELS)))
    return volumes.like(image, smallest_type(label.values))


def _turned(image: sitk.Image, code: str) -> sitk.Image:
    return image if code == ORIENTATION else sitk.DICOMOrient(image, ORIENTATION)
