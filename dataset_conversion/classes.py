"""Which classes a folder of labels holds, and which consecutive numbers they get."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from nnunet_semi.dataset_conversion import formats, labelme
from nnunet_semi.dataset_conversion.raster import Raster, label_values, refuse_other_labels, smallest_type
from nnunet_semi.errors import Problem, Unusable
from nnunet_semi.raw import name_some

MOST_VALUES = 128  # more of them in one file are no classes but shades
VOID = 255  # the border in VOC's masks
BACKGROUND_NAMES = ("background", "_background_")
IGNORE_NAMES = ("ignore", "__ignore__")  # the latter is LabelMe's


@dataclass(frozen=True)
class Content:
    """What one label file holds: values of a mask, or labels of LabelMe's shapes."""

    values: tuple[int, ...] = ()
    palette: bool = False
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Classes:
    """From what the files say to the numbers of nnU-Net.

    Attributes:
        labels: name → number, for dataset.json.
        values: value in a mask → number.
        names: label of a shape → number.
    """

    labels: Mapping[str, int]
    values: Mapping[int, int] = field(default_factory=dict)
    names: Mapping[str, int] = field(default_factory=dict)

    @property
    def changes(self) -> bool:
        """Whether any value becomes another one."""
        return any(value != number for value, number in self.values.items())

    def __str__(self) -> str:
        titles = {number: name for name, number in self.labels.items()}
        pairs = [*self.values.items(), *self.names.items()]
        return ", ".join(f"{source} → {number} ({titles[number]})" for source, number in pairs)

    def apply(self, path: Path, values: np.ndarray) -> np.ndarray:
        """The numbers of nnU-Net for the values of a mask.

        Raises:
            Unusable: a value is none of those known.
        """
        refuse_other_labels(path, values, self.values)
        known = np.array(sorted(self.values))
        numbers = np.array([self.values[value] for value in known.tolist()])
        return smallest_type(numbers[np.searchsorted(known, values)])

    def draw(self, path: Path, image: Raster) -> np.ndarray:
        """The mask of LabelMe's shapes on the grid of an image, later shapes over earlier ones.

        Raises:
            Unusable: they belong to an image of another size.
        """
        annotation = labelme.read(path)
        if len(image.shape) != 2:
            raise Unusable(Problem(path, f"outlines in an image of shape {image.shape}", "a 2D image"))
        rows, columns = image.shape
        if annotation.size not in (None, (columns, rows)):
            expected = f"{(columns, rows)} as its image"
            raise Unusable(Problem(path, f"outlines in an image of {annotation.size} pixels", expected))
        numbers = [self.names[shape.label] for shape in annotation.shapes]
        return labelme.draw(annotation.shapes, numbers, (columns, rows))


def inspect(path: Path) -> Content | Problem:
    """What a label file holds."""
    try:
        if path.name.lower().endswith(".json"):
            return Content(names=tuple(sorted({shape.label for shape in labelme.read(path).shapes})))
        raster = formats.read_label(path)
        values = label_values(path, raster.values)
    except Unusable as refusal:
        return refusal.problem
    if len(values) > MOST_VALUES:
        return Problem(path, f"{len(values)} different values", "a mask with a number per class")
    return Content(tuple(values), raster.palette)


def decide(
    folder: Path, contents: Mapping[Path, Content], titles: Sequence[str] | None = None, ignore: int | None = None
) -> Classes | Problem:
    """Consecutive numbers for all classes, in the order of their values or, for LabelMe, of their names.

    0 is the background. VOC's border, 255 in masks with a palette, becomes nnU-Net's ignore label, which comes last.

    Args:
        folder: of the labels, for messages.
        contents: of all label files.
        titles: names of the classes without the background, in ascending order of their values; the order of LabelMe's
            classes.
        ignore: the value of pixels that nobody has labeled.
    """
    names = {name for content in contents.values() for name in content.names}
    values = {value for content in contents.values() for value in content.values} - {0}
    if names and values:
        return Problem(folder, "masks and files of LabelMe", "one kind of labels")
    if names:
        return _decide_names(folder, names, titles)
    if ignore is None and values - {VOID} and any(c.palette and VOID in c.values for c in contents.values()):
        ignore = VOID
    classes = sorted(values - {ignore})
    if not classes:
        return Problem(folder, "background only", "masks with at least one class")
    if ignore is None and len(classes) > 1 and classes[-1] == VOID and classes[:-1] == [*range(1, len(classes))]:
        where = name_some(path.name for path, content in contents.items() if VOID in content.values)
        found = f"the value {VOID} (in {where}) beside {name_some(map(str, classes[:-1]))}"
        return Problem(folder, found, f"--ignore {VOID} if nobody has labeled these pixels, or another number")
    if titles is None:
        titles = ["foreground"] if len(classes) == 1 else [f"class{value}" for value in classes]
    if len(titles) != len(classes):
        found = f"the values {name_some(map(str, classes), 10)} for the classes {name_some(titles, 10)}"
        return Problem(folder, found, "as many classes as values that are not 0")
    numbers = {0: 0} | {value: number for number, value in enumerate(classes, 1)}
    labels = {"background": 0} | {title: number for number, title in enumerate(titles, 1)}
    if ignore in values:
        labels["ignore"] = numbers[int(ignore or 0)] = len(classes) + 1
    return Classes(labels, values=numbers)


def _decide_names(folder: Path, names: set[str], titles: Sequence[str] | None) -> Classes | Problem:
    found = sorted(name for name in names if name not in BACKGROUND_NAMES + IGNORE_NAMES)
    if titles is not None and set(titles) != set(found):
        return Problem(folder, f"the labels {name_some(found, 10)}", f"{name_some(titles, 10)}, as you said")
    if not found or len(found) > MOST_VALUES:
        return Problem(folder, f"{len(found)} different labels", f"1 to {MOST_VALUES}")
    labels = {"background": 0} | {title: number for number, title in enumerate(titles or found, 1)}
    numbers = {name: labels[name] for name in found} | {name: 0 for name in names.intersection(BACKGROUND_NAMES)}
    ignored = names.intersection(IGNORE_NAMES)
    if ignored:
        labels["ignore"] = len(found) + 1
    return Classes(labels, names=numbers | {name: len(found) + 1 for name in ignored})
