"""A sheet of test images: what is there, what it should be, and what both trainers make of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Patch

from nnunet_semi.storage import atomic_path

COLOURS = {1: "#2ec4ff", 2: "#ffb000"}  # told apart with any kind of colour vision, and on grey


def contact_sheet(
    path: Path,
    images: Sequence[np.ndarray],
    rows: Mapping[str, Sequence[np.ndarray]],
    scores: Mapping[str, Sequence[float]],
    names: Mapping[int, str],
    title: str,
) -> None:
    """Writes a PNG with a column per case and a row for the plain images and for each set of label maps.

    Args:
        path: the file to write.
        images: one (height, width) array per case.
        rows: title of a row → the label map of every case; they are drawn as filled contours over the image.
        scores: title of a row → a number for every case, which is written into the picture; may lack rows.
        names: label → its name, for the legend.
        title: of the whole sheet.
    """
    columns, lines = len(images), len(rows) + 1
    layout = ConstrainedLayoutEngine(w_pad=0.02, h_pad=0.02, wspace=0, hspace=0)
    figure = Figure(figsize=(1.45 * columns + 0.45, 1.45 * lines + 0.75), layout=layout, facecolor="white")
    axes = figure.subplots(lines, columns, squeeze=False)
    for column, image in enumerate(images):
        _show(axes[0, column], image)
        for line, (name, label_maps) in enumerate(rows.items(), start=1):
            _show(axes[line, column], image)
            _outline(axes[line, column], label_maps[column])
            if name in scores:
                _write(axes[line, column], scores[name][column])
    for line, name in enumerate(["image", *rows]):
        axes[line, 0].set_ylabel(name, fontsize=9)
    handles = [_patch(label) for label in names]
    figure.legend(
        handles, list(names.values()), loc="outside lower center", ncols=len(names), frameon=False, fontsize=9
    )
    figure.suptitle(title, fontsize=10)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=130)


def _show(axes: Axes, image: np.ndarray) -> None:
    axes.imshow(image, cmap="gray", vmin=0, vmax=255, interpolation="bilinear")
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set_visible(False)


def _outline(axes: Axes, label_map: np.ndarray) -> None:
    for label, colour in COLOURS.items():
        mask = (label_map == label).astype(float)
        if mask.any():
            axes.contourf(mask, levels=[0.5, 1.5], colors=[colour], alpha=0.25)
            axes.contour(mask, levels=[0.5], colors=[colour], linewidths=1.1)


def _write(axes: Axes, value: float) -> None:
    box = {"facecolor": "black", "alpha": 0.6, "pad": 1.5, "edgecolor": "none"}
    axes.text(0.03, 0.04, f"{value:.2f}", transform=axes.transAxes, color="white", fontsize=8, bbox=box)


def _patch(label: int) -> Patch:
    return Patch(facecolor=COLOURS[label] + "40", edgecolor=COLOURS[label], linewidth=1.5)
