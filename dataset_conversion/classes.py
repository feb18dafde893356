"""Which classes a folder of labels holds, and which consecutive numbers they get."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from nnunet_semi.dataset_conversion import formats, labelme
from nnunet_semi.dataset_conversion.raster import Raster, label_values, refuse_other_labels, smallest_type
from nnunet_semi.errors import Problem, Unusable, WrongUse
from nnunet_semi.raw import name_some

MOST_VALUES = 128  # more of them in one file are no classes but shades
VOID = 255  # the border in VOC's masks
BACKGROUND_NAMES = ("background", "_background_")
IGNORE_NAMES = ("ignore", "__ignore__")  # the latter is LabelMe's
NEAR_BLACK, NEAR_WHITE = range(1, 64), range(192, 255)
FEWEST_SHADES, LEAST_WHITE = 5, 0.2  # in a black and white mask with shades; the latter of the pixels that are not 0
THRESHOLD = "threshold masks in shades of grey first"


@dataclass(frozen=True)
class Content:
    """What one label file holds: values of a mask, or labels of LabelMe's shapes.

    `grey` says that it is a black and white mask with shades beside them; see `_has_shades`.
    """

    values: tuple[int, ...] = ()
    palette: bool = False
    names: tuple[str, ...] = ()
    grey: bool = False


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
        return Problem(path, f"{len(values)} different values", f"a mask with a number per class; {THRESHOLD}")
    return Content(tuple(values), raster.palette, grey=not raster.palette and _has_shades(raster.values, values))


def _has_shades(mask: np.ndarray, values: Sequence[int]) -> bool:
    """Whether a mask was black and white before JPEG, resampling or smooth edges put shades around both.

    Numbers of classes are not taken for shades: they are seldom near both 0 and 255, as FreeSurfer's are, and then few
    pixels are near 255.
    """
    shades = set(values) - {0, VOID}
    near_both = shades.intersection(NEAR_BLACK) and shades.intersection(NEAR_WHITE)
    if not near_both or values[-1] != VOID or len(shades) < FEWEST_SHADES:
        return False
    return bool((mask >= NEAR_WHITE[0]).sum() >= LEAST_WHITE * (mask > 0).sum())


def refuse_wrong_use(titles: Sequence[str], ignore: int | None) -> None:
    """Raises `WrongUse` where names of classes, or the value of pixels that nobody has labeled, can mean nothing."""
    if ignore == 0:
        raise WrongUse("got --ignore 0, but 0 is the background; expected the value of pixels that nobody has labeled")
    again = [title for title in dict.fromkeys(titles) if titles.count(title) > 1]
    if again:
        raise WrongUse(f"got --classes with {name_some(again)} more than once; expected a name of its own for each")
    kept = [title for title in titles if title.lower() in BACKGROUND_NAMES + IGNORE_NAMES]
    if kept:
        raise WrongUse(
            f"got --classes with {name_some(kept)}; expected the other classes only: the background is 0 by itself, "
            "and --ignore names the value of pixels that nobody has labeled"
        )


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
        return _decide_names(folder, names, titles, ignore)
    if ignore is None and values - {VOID} and any(c.palette and VOID in c.values for c in contents.values()):
        ignore = VOID
    classes = sorted(values - {ignore})
    problem = _what_is_unclear(folder, contents, classes, titles, ignore)
    if problem is not None:
        return problem
    if titles is None:
        titles = ["foreground"] if len(classes) == 1 else [f"class{value}" for value in classes]
    numbers = {0: 0} | {value: number for number, value in enumerate(classes, 1)}
    labels = {"background": 0} | {title: number for number, title in enumerate(titles, 1)}
    if ignore is not None:
        labels["ignore"] = numbers[ignore] = len(classes) + 1
    return Classes(labels, values=numbers)


def _what_is_unclear(
    folder: Path, contents: Mapping[Path, Content], classes: list[int], titles: Sequence[str] | None, ignore: int | None
) -> Problem | None:
    """Why values of masks cannot be the classes that the user means."""
    listed = name_some(map(str, classes), 10)

    def files(contain: Callable[[Content], bool]) -> str:
        return name_some(path.name for path, content in contents.items() if contain(content))

    if ignore is not None and not files(lambda content: ignore in content.values):
        found = f"--ignore {ignore}, but {listed or 'nothing but 0'} in the masks"
        return Problem(folder, found, "a value that occurs in them")
    if not classes:
        return Problem(folder, "background only", "masks with at least one class")
    grey = files(lambda content: content.grey)
    if grey and len(titles or ()) != len(classes):
        expected = f"two values; {THRESHOLD}, or name all {len(classes)} with --classes if each is a class"
        return Problem(folder, f"grey values ({listed}) in black and white masks ({grey})", expected)
    if ignore is None and len(classes) > 1 and classes[-1] == VOID and classes[:-1] == [*range(1, len(classes))]:
        found = f"the value {VOID} (in {files(lambda content: VOID in content.values)}) beside "
        expected = f"--ignore {VOID} if nobody has labeled these pixels, or another number"
        return Problem(folder, found + name_some(map(str, classes[:-1])), expected)
    if titles is not None and len(titles) != len(classes):
        found = f"the values {listed} for the classes {name_some(titles, 10)}"
        return Problem(folder, found, "as many classes as values that are not 0")
    return None


def _decide_names(folder: Path, names: set[str], titles: Sequence[str] | None, ignore: int | None) -> Classes | Problem:
    if ignore is not None:
        expected = f"shapes with the label {IGNORE_NAMES[1]} instead"
        return Problem(folder, f"--ignore {ignore} and files of LabelMe", expected)
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
