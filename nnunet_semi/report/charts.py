"""Charts of the report as PNG in few colours; no state of pyplot is touched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from nnunet_semi.report.training import Curve

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")  # Okabe and Ito 2008
STYLES = ("-", "--", "-.", ":")
MOST_CLASSES = 40  # in a box plot


def curves_chart(curves: Mapping[str, Curve]) -> bytes:
    """One line per curve over the epochs, which differ in colour and in style."""
    figure, axes = _figure(4.8, 2.7)
    for number, (name, curve) in enumerate(curves.items()):
        style = STYLES[number // len(COLOURS) % len(STYLES)] if len(curves) > len(COLOURS) else STYLES[number % 4]
        marker = "o" if len(curve) < 3 else ""  # a single point is no line
        axes.plot(
            list(curve),
            list(curve.values()),
            style,
            color=COLOURS[number % 7],
            label=_text(name),
            linewidth=1.8,
            marker=marker,
        )
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    if len(curves) > 1:
        axes.legend(fontsize=8, ncols=2 if len(curves) > 4 else 1)
    return _png(figure)


def box_chart(table: np.ndarray, names: Sequence[str], title: str) -> bytes:
    """A box per class with the value of every case beside it.

    Args:
        table: cases × classes, NaN left out.
        names: of the classes, from above.
        title: of the axis of the values.
    """
    shown = min(len(names), MOST_CLASSES)
    figure, axes = _figure(5.2, 0.9 + 0.26 * shown)
    columns = [column[~np.isnan(column)] for column in table.T[:shown]]
    places = np.arange(shown)[::-1]
    axes.boxplot(
        columns,
        positions=places,
        orientation="horizontal",
        widths=0.6,
        showfliers=False,
        manage_ticks=False,
        medianprops={"color": COLOURS[1], "linewidth": 2},
    )
    random = np.random.default_rng(0)
    for place, column in zip(places, columns, strict=True):
        axes.scatter(column, place + random.uniform(-0.18, 0.18, len(column)), s=9, color=COLOURS[0], alpha=0.6)
    axes.set_yticks(places, [_text(name) for name in names[:shown]], fontsize=8)
    axes.set_ylim(-0.7, shown - 0.3)
    axes.set_xlabel(_text(title))
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.grid(axis="x", alpha=0.3)
    return _png(figure)


def _text(name: str) -> str:
    """Without what matplotlib would read as mathematics, and not too long."""
    short = name if len(name) <= 32 else f"{name[:30]}…"
    return short.replace("$", r"\$")


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), dpi=160, layout="constrained")
    return figure, figure.subplots()


def _png(figure: Figure) -> bytes:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    picture = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB").quantize(48, dither=Image.Dither.NONE)
    file = BytesIO()
    picture.save(file, format="png", optimize=True)
    return file.getvalue()
