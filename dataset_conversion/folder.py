"""A folder of images, masks and unlabeled images, in any format that nnU-Net reads, and in JPEG."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from nnunet_semi.dataset_conversion import formats
from nnunet_semi.dataset_conversion.classes import Classes, Content, decide, inspect, refuse_wrong_use
from nnunet_semi.dataset_conversion.folder_layout import (
    Cases,
    Folders,
    by_case,
    by_image,
    common_ending,
    find_folders,
    has_channels,
    label_files,
)
from nnunet_semi.dataset_conversion.performing import default_processes
from nnunet_semi.dataset_conversion.plan import LABELED, TEST, UNLABELED, Output, Plan, case_name, describe
from nnunet_semi.dataset_conversion.raster import Raster, refuse_other_channels, refuse_other_grid
from nnunet_semi.dataset_conversion.sources import Source
from nnunet_semi.dataset_conversion.writing import DEFAULT, Conversion, Writing, write_dataset
from nnunet_semi.errors import Problem, Unusable, WrongUse, cause_of
from nnunet_semi.pool import Progress, run_tasks

LAYOUT = "the folders images and labels, perhaps unlabeled and test, or --images, --labels, --unlabeled, --test"


def convert(
    source: Path | str,
    dataset_id: int | None = None,
    name: str = "Folder",
    *,
    images: Path | str | None = None,
    labels: Path | str | None = None,
    unlabeled: Path | str | None = None,
    test: Path | str | None = None,
    classes: Sequence[str] | None = None,
    channels: Sequence[str] | None = None,
    ignore: int | None = None,
    writing: Writing = DEFAULT,
) -> Conversion:
    """Writes nnUNet_raw/Dataset<id>_<name> from the images and masks of a folder.

    Masks are numbers in one channel, 0 and 255, palettes as in VOC, or LabelMe's JSON; their values become consecutive,
    and a note tells how. Labels belong to images by name, with or without an ending such as _mask. CASE_0000, CASE_0001
    are the channels of CASE where the labels are called CASE. JPEG and BMP become PNG.

    Args:
        source: a folder.
        dataset_id: None stands for that of a dataset with this name, or else the first free one.
        name: of the dataset.
        images: folder of the labeled images, relative to `source`. None stands for the usual names, `images` first.
        labels: folder of their labels; that of the images for LabelMe's files beside them.
        unlabeled: folder of the unlabeled images; that of the images if they are those without labels.
        test: folder of the test images.
        classes: their names, in ascending order of their values. For LabelMe, its labels in the order wanted.
        channels: their names; "CT" makes nnU-Net normalise as is right for CT.
        ignore: value of pixels that nobody has labeled.
        writing: how.

    Raises:
        WrongUse: classes or `ignore` can mean nothing.
        UserError: see `write_dataset`.
    """
    refuse_wrong_use(classes or (), ignore)
    files = Source(source)
    folders = find_folders(files, {"images": images, "labels": labels, "unlabeled": unlabeled, "test": test})
    planned = _Planner(files, folders, writing).plan(classes, channels, ignore)
    return write_dataset(planned, dataset_id, name, writing)


@dataclass
class _Planner:
    """Puts cases together; what is wrong goes to `files.problems`."""

    files: Source
    folders: Folders
    writing: Writing

    def plan(self, titles: Sequence[str] | None, channels: Sequence[str] | None, ignore: int | None) -> Plan:
        """The plan of the dataset."""
        files = self.files
        result = Plan(files.root, {}, problems=files.problems, notes=files.notes)
        cases, labels = self._cases()
        self._leave_out_other_counts(cases)
        paths = [path for group in cases.values() for paths in group.values() for path in paths]
        ending = common_ending(files, paths)
        classes = self._classes(labels, titles, ignore) if labels else Classes({"background": 0, "foreground": 1})
        if ending is None or classes is None:
            if not files.problems:
                files.unknown_layout(LAYOUT)
            return result.finish()
        counts, spatial = self._channels(cases)
        names = self._channel_names(counts, channels)
        result.dataset_json = describe("folder", names, dict(classes.labels), ending)
        told = {problem.file for problem in files.problems}
        for role, group in cases.items():
            for case, images in group.items():
                label = labels.get(case) if role == LABELED else None
                if label in told:
                    continue
                spacing = images[0].with_name(f"{case}.json")
                sidecars: dict[str, Any] = {}
                if ending == ".tif" and spatial == 3 and files.holds(spacing):
                    sidecars = {"images": spacing} | ({"labels": spacing} if label else {})
                work = Case(ending, counts, classes, label is not None)
                result.add(role, case_name(case), images, work, label, **sidecars)
        return result.finish()

    def _cases(self) -> tuple[dict[str, Cases], dict[str, Path]]:
        """The cases by role, and the labels of the labeled ones."""
        files, folders = self.files, self.folders
        together = folders.labels == folders.images
        found = {
            role: files.files(folder, formats.ENDINGS, note_others=not together) if folder else {}
            for role, folder in ((LABELED, folders.images), (UNLABELED, folders.unlabeled), (TEST, folders.test))
        }
        labels = label_files(files, folders) if folders.labels else {}
        decisive = found[LABELED] if labels else {**found[UNLABELED], **found[TEST], **found[LABELED]}
        split = has_channels(decisive, labels)
        if folders.rest_is_unlabeled:
            found[UNLABELED] = {}
        cases = {role: by_case(files, group, split) for role, group in found.items()}
        labels = by_image(files, labels, cases[LABELED])
        if folders.images is None:
            return cases, {}
        if folders.rest_is_unlabeled:
            cases[UNLABELED] = {case: paths for case, paths in cases[LABELED].items() if case not in labels}
            cases[LABELED] = {case: paths for case, paths in cases[LABELED].items() if case in labels}
        first = {case: paths[0] for case, paths in cases[LABELED].items()}
        hint = "; if it is unlabeled, put it into another folder, or give --unlabeled the folder of the images"
        pairs = files.pairs(first, labels, folders.images, folders.labels or files.root / "labels", hint)
        return {**cases, LABELED: {case: cases[LABELED][case] for case, _, _ in pairs}}, {c: p for c, _, p in pairs}

    def _leave_out_other_counts(self, cases: dict[str, Cases]) -> None:
        """Cases with more or fewer images than the first one, a labeled one if there is any, are problems."""
        counts = [len(paths) for group in cases.values() for paths in group.values()]
        for group in cases.values():
            for case, paths in list(group.items()):
                if len(paths) != counts[0]:
                    found = f"{len(paths)} image(s) for the case {case}"
                    self.files.problems.append(Problem(paths[0], found, f"{counts[0]} as the other cases have"))
                    del group[case]

    def _classes(self, labels: dict[str, Path], titles: Sequence[str] | None, ignore: int | None) -> Classes | None:
        """What is in the label files; reads all of them."""
        assert self.folders.labels is not None
        contents: dict[Path, Content] = {}
        workers = min(self.writing.num_processes or default_processes(), len(labels))
        bar = Progress(len(labels), "reading labels", self.writing.log, self.writing.progress)
        tasks = ((path,) for path in labels.values())
        with bar, closing(run_tasks(partial(_inspector), tasks, workers)) as results:
            for (path,), found in results:
                if isinstance(found, Problem):
                    self.files.problems.append(found)
                else:
                    contents[path] = found
                bar.advance()
        decision = decide(self.folders.labels, contents, titles, ignore) if contents else None
        if isinstance(decision, Problem):
            self.files.problems.append(decision)
            return None
        if decision is not None and (decision.changes or decision.names):
            self.files.notes.append(f"labels: {decision}")
        return decision

    def _channels(self, cases: dict[str, Cases]) -> tuple[tuple[int, ...], int]:
        """How many channels each file of a case has, and of how many dimensions, by the first that can be read."""
        for paths in (paths for group in cases.values() for paths in group.values()):
            try:
                rasters = [formats.read_image(path) for path in paths]
            except Unusable:
                continue  # it will be told when the contents are looked at
            return tuple(raster.channels for raster in rasters), len(rasters[0].shape)
        return (1,), 2

    def _channel_names(self, counts: tuple[int, ...], given: Sequence[str] | None) -> list[str]:
        total = sum(counts)
        usual = [f"channel{number}" for number in range(total)]
        if len(counts) == 1:
            usual = ["image"] if total == 1 else ["R", "G", "B"]
        if given is not None and len(given) != total:
            raise WrongUse(f"got {len(given)} channel names ({', '.join(given)}); expected {total}, as in the images")
        return list(given) if given is not None else usual


def _inspector() -> Any:
    return inspect


@dataclass(frozen=True)
class Case:
    """The images of one case, a file per channel, and perhaps its label map.

    Attributes:
        ending: of the files in the dataset.
        channels: of each image file.
        classes: what becomes of the labels.
        labeled: whether there is a label map after the images; what follows is the spacing of a TIFF.
    """

    ending: str
    channels: tuple[int, ...]
    classes: Classes
    labeled: bool

    def __call__(self, *paths: Path) -> Sequence[Output]:
        count = len(self.channels)
        images = [formats.read_image(path) for path in paths[:count]]
        for path, image, channels in zip(paths[:count], images, self.channels, strict=True):
            refuse_other_channels(path, image, channels)
            refuse_other_grid(path, image, images[0], "the first channel")
        outputs = [image.output(images[0]) for image in images]
        if self.labeled:
            outputs.append(self._label(paths[count], images[0]))
        return [*outputs, *_spacings(paths[count + self.labeled :])]

    def _label(self, path: Path, image: Raster) -> Output:
        if path.name.lower().endswith(".json"):
            return image.encode(self.classes.draw(path, image))
        label = formats.read_label(path)
        refuse_other_grid(path, label, image)
        values = self.classes.apply(path, label.values)
        same_format = path.name.lower().endswith(self.ending) and not label.differs(image, exactly=True)
        as_is = label.as_is and same_format and not self.classes.changes and label.values.dtype.kind in "ui"
        return None if as_is else image.encode(values)


def _spacings(paths: Iterable[Path]) -> list[Output]:
    """Spacing files of TIFF volumes, which stay as they are; raises `Unusable` where nnU-Net could not read one."""
    for path in paths:
        try:
            spacing = [float(value) for value in json.loads(path.read_text(encoding="utf-8"))["spacing"]]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise Unusable(Problem(path, f"no spacing ({cause_of(error)})", '{"spacing": [z, y, x]}')) from error
        if len(spacing) != 3 or not all(value > 0 for value in spacing):
            raise Unusable(Problem(path, f"the spacing {spacing}", "three numbers above 0"))
    return [None for _ in paths]
