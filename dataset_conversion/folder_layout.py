"""Finds images, labels, unlabeled and test images in a folder, and which files belong to one case."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from nnunet_semi.dataset_conversion.formats import ENDINGS, dataset_ending
from nnunet_semi.dataset_conversion.sources import Source
from nnunet_semi.errors import Problem, WrongUse
from nnunet_semi.raw import name_some

USUAL = {
    "images": ("images", "imagesTr", "imgs", "JPEGImages"),
    "labels": ("labels", "labelsTr", "masks", "annotations", "SegmentationClass"),
    "unlabeled": ("unlabeled", "imagesUn"),
    "test": ("test", "imagesTs"),
}
SUFFIXES = ("", "_mask", "_seg", "_segmentation", "_label", "_labels", "_gt", "_annotation")
CHANNEL = re.compile(r"(.+)_(\d{4})")

Cases = dict[str, tuple[Path, ...]]  # name → a file per channel


@dataclass(frozen=True)
class Folders:
    """Where everything is; None for what there is not."""

    images: Path | None
    labels: Path | None
    unlabeled: Path | None
    test: Path | None

    @property
    def rest_is_unlabeled(self) -> bool:
        """Whether images without labels are the unlabeled ones."""
        return bool(self.images and self.unlabeled and self.images.resolve() == self.unlabeled.resolve())


def find_folders(files: Source, named: Mapping[str, str | Path | None]) -> Folders:
    """The folders that the user named, relative to the source, or else those with usual names.

    Raises:
        WrongUse: a named folder does not exist.
    """
    found: dict[str, Path | None] = {}
    for what, usual in USUAL.items():
        name = named.get(what)
        if name is None:
            found[what] = files.find(*usual)
            continue
        folder = files.root / Path(name).expanduser()
        if not folder.is_dir():
            raise WrongUse(f"got --{what} {name}, but {folder} is no folder; expected one, relative to {files.root}")
        files.allow(folder)
        found[what] = folder
    if found["images"] is None and any(dataset_ending(path.name) for path in files.root.iterdir()):
        found["images"] = files.root
    images = found["images"]
    if found["labels"] is None and images and any(path.suffix.lower() == ".json" for path in images.iterdir()):
        found["labels"] = images  # LabelMe writes its files beside the images
    return Folders(**found)


def label_files(files: Source, folders: Folders) -> dict[str, Path]:
    """Masks, or files of LabelMe where the folder holds no masks or is that of the images."""
    assert folders.labels is not None
    together = folders.images is not None and folders.images.resolve() == folders.labels.resolve()
    masks = {} if together else files.files(folders.labels, ENDINGS, note_others=False)
    return masks or files.files(folders.labels, (".json",), note_others=not together)


def common_ending(files: Source, paths: Collection[Path]) -> str | None:
    """The ending that files of the dataset get; several formats are a problem, and none is None."""
    found: dict[str | None, Path] = {}
    for path in paths:
        found.setdefault(dataset_ending(path.name), path)
    if len(found) > 1:
        examples = ", ".join(path.name for path in found.values())
        files.problems.append(Problem(files.root, f"images of several formats ({examples})", "one format for all"))
    return next(iter(found)) if len(found) == 1 else None


def has_channels(stems: Collection[str], labels: Collection[str]) -> bool:
    """Whether the last four digits of file names are channel numbers, as in nnU-Net's CASE_0000.

    The names of the labels decide, which have none; without labels, every case must have the same channels from 0 on.
    """
    matches = [match for stem in stems if (match := CHANNEL.fullmatch(stem))]
    if labels:
        bare = {label.removesuffix(suffix) for label in labels for suffix in SUFFIXES}
        return len({match[1] for match in matches} & bare) > len(set(stems) & bare)
    channels: dict[str, set[int]] = {}
    for match in matches:
        channels.setdefault(match[1], set()).add(int(match[2]))
    counts = {len(numbers) for numbers in channels.values()}
    complete = all(numbers == set(range(len(numbers))) for numbers in channels.values())
    return len(matches) == len(stems) > 0 and complete and len(counts) == 1 and (counts == {1} or len(channels) > 1)


def by_case(files: Source, found: Mapping[str, Path], channels: bool) -> Cases:
    """The files of every case in the order of their channels; cases that lack a channel are problems."""
    if not channels:
        return {stem: (path,) for stem, path in sorted(found.items())}
    grouped: dict[str, dict[int, Path]] = {}
    for stem, path in found.items():
        match = CHANNEL.fullmatch(stem)
        if match is None:
            files.problems.append(Problem(path, "no channel number", "a name such as CASE_0000, as the others have"))
        else:
            grouped.setdefault(match[1], {})[int(match[2])] = path
    usual = Counter(len(paths) for paths in grouped.values()).most_common(1)
    cases: Cases = {}
    for case, paths in sorted(grouped.items()):
        if sorted(paths) == list(range(usual[0][0])):
            cases[case] = tuple(path for _, path in sorted(paths.items()))
        else:
            numbers = ", ".join(f"{number:04d}" for number in sorted(paths))
            expected = f"0000 to {usual[0][0] - 1:04d} as most cases have"
            files.problems.append(Problem(next(iter(paths.values())), f"the channels {numbers}", expected))
    return cases


def by_image(files: Source, labels: Mapping[str, Path], cases: Collection[str]) -> dict[str, Path]:
    """Label files by the name of their image, without the suffix that most of them have, such as _mask."""

    def hits(suffix: str) -> int:
        return sum(stem.endswith(suffix) and stem.removesuffix(suffix) in cases for stem in labels)

    suffix = max(SUFFIXES, key=hits)
    if not suffix:
        return dict(labels)
    other = [stem for stem in labels if not stem.endswith(suffix)]
    files.notes.append(f"labels are those whose names end in {suffix}")
    if other:
        files.notes.append(f"left out, because not ending in {suffix}: {len(other)} labels: {name_some(other)}")
    return {stem.removesuffix(suffix): path for stem, path in labels.items() if stem.endswith(suffix)}
