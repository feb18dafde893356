"""The picture of a selection: the scores as a histogram, and the worst and best cases with the prediction drawn in."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from nnunet_semi.errors import EnvironmentNotReady
from nnunet_semi.filtering.images import ImageSource
from nnunet_semi.filtering.rules import Rules, Selected
from nnunet_semi.filtering.table import Row
from nnunet_semi.storage import atomic_path

COLUMNS, SIZE = 8, 240  # cases in a row, pixels of each
KEPT, LEFT_OUT = "#0072b2", "#d55e00"


def draw_selection(path: Path, rows: Sequence[Row], selected: Selected, rules: Rules, source: ImageSource) -> None:
    """Writes the picture as PNG.

    Args:
        rows: all cases of the table.
        source: the images; cases without one are left blank.
    """
    ranked = sorted(rows, key=lambda row: (-row.score, row.case))
    half = min(COLUMNS, len(ranked) // 2 + len(ranked) % 2)
    figure = Figure(figsize=(2 * COLUMNS, 9.5), layout="constrained")
    grid = figure.add_gridspec(3, COLUMNS, height_ratios=(3, 2, 2))
    _histogram(figure.add_subplot(grid[0, :]), rows, selected, rules)
    kept = set(selected.cases)
    for line, (title, cases) in enumerate({"best": ranked[:half], "worst": ranked[half:][-COLUMNS:][::-1]}.items(), 1):
        for column, row in enumerate(cases):
            axes = figure.add_subplot(grid[line, column])
            _case(axes, row, row.case in kept, source, f"{title}: " if column == 0 else "")
    FigureCanvasAgg(figure)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=100)


def _histogram(axes: Axes, rows: Sequence[Row], selected: Selected, rules: Rules) -> None:
    kept = set(selected.cases)
    scores = [[row.score for row in rows if (row.case in kept) == side] for side in (True, False)]
    names = [f"selected: {len(scores[0])}", f"left out: {len(scores[1])}"]
    axes.hist(scores, bins=np.linspace(0, 1, 51).tolist(), stacked=True, color=[KEPT, LEFT_OUT], label=names)
    if rules.threshold is not None:
        axes.axvline(rules.threshold, color="black", linestyle="--", label=f"threshold {rules.threshold:g}")
    if rules.top is not None:
        last = min(sorted((row.score for row in rows), reverse=True)[: rules.number_at_top(len(rows))])
        axes.axvline(last, color="black", linestyle=":", label=f"top {rules.top:g}: from {last:.3f}")
    axes.set(xlim=(0, 1), xlabel="score", ylabel="unlabeled cases")
    axes.set_title(str(rules), parse_math=False)
    axes.legend(loc="upper left")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))


def _case(axes: Axes, row: Row, kept: bool, source: ImageSource, prefix: str) -> None:
    try:
        axes.imshow(source.picture(row.case, SIZE))
    except EnvironmentNotReady:
        axes.text(0.5, 0.5, "no image", ha="center", va="center", transform=axes.transAxes)
    axes.set(xticks=[], yticks=[])
    name = row.case if len(row.case) <= 22 else f"{row.case[:21]}…"
    axes.set_title(f"{prefix}{row.score:.3f}", fontsize=10)
    axes.set_xlabel(name, fontsize=8, color=KEPT if kept else LEFT_OUT, parse_math=False)  # a name may hold $
    for spine in axes.spines.values():
        spine.set(color=KEPT if kept else LEFT_OUT, linewidth=2.5)
