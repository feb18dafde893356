"""The curves of semi-supervised training: in nnU-Net's logger and progress.png, in the log file and as CSV."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from io import StringIO
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from nnunetv2.training.logging.nnunet_logger import LocalLogger
from PIL import Image

from nnunet_semi.storage import atomic_path

SHARES = "semi_class_shares"
KEPT = "semi_class_kept"
TITLES = {SHARES: "shares of the classes", KEPT: "kept voxels of each class"}
PREFIXES = {SHARES: "share", KEPT: "kept"}
LABELS = {
    "semi_loss_labeled": "loss_x",
    "semi_loss_unlabeled": "loss_u",
    "semi_weight": "w",
    "semi_kept": "kept",
    "semi_confidence": "confidence",
    "semi_agreement": "agreement",
    "semi_learned": "worst class",
    "semi_trust": "trust",
    SHARES: "shares",
    KEPT: "kept of each",
}


class CurveLogger(LocalLogger):
    """nnU-Net's logger with lists for further curves, which it draws below its own in progress.png.

    Every curve gets one value per epoch, as nnU-Net's own do; they are stored in and restored from its checkpoints.

    Args:
        curves: names of scalar curves.
        outputs: names of the classes or regions that the values of `lists` belong to.
        lists: names of curves with a value per class or region: `SHARES`, and `KEPT` where voxels are left out.
    """

    def __init__(self, curves: list[str], outputs: Sequence[str], lists: Sequence[str] = (SHARES,)) -> None:
        super().__init__()
        self.curves = curves
        self.outputs = outputs
        self.lists = lists
        self._add_lists()

    def _add_lists(self) -> None:
        for name in (*self.curves, *self.lists):
            self.my_fantastic_logging.setdefault(name, [])

    def load_checkpoint(self, checkpoint: dict[str, list]) -> None:
        """Restore the curves; those of a stock checkpoint start as NaN, so that epochs still line up."""
        super().load_checkpoint(checkpoint)
        self._add_lists()
        epochs = len(self.my_fantastic_logging["train_losses"])
        for name in self.curves:
            values = self.my_fantastic_logging[name]
            values.extend([float("nan")] * (epochs - len(values)))
        for name in self.lists:
            rows = self.my_fantastic_logging[name]
            rows.extend([[]] * (epochs - len(rows)))

    def plot_progress_png(self, output_folder: str) -> None:
        """Draw nnU-Net's progress.png, this logger's curves below it, and write progress_semi.csv."""
        super().plot_progress_png(output_folder)
        _append_below(Path(output_folder, "progress.png"), self._panel())
        self._write_csv(Path(output_folder, "progress_semi.csv"))

    def _panel(self) -> Image.Image:
        values = self.my_fantastic_logging
        losses = [c for c in self.curves if c.startswith("semi_loss") or c == "semi_weight"]
        figure = Figure(figsize=(30, 12))
        axes = figure.subplots(1, 2 + len(self.lists))
        for name in self.curves:
            axes[0 if name in losses else 1].plot(values[name], label=LABELS.get(name, name), linewidth=4)
        for axis, kind in zip(axes[2:], self.lists, strict=True):
            for name, column in zip(self.outputs, _columns(values[kind]), strict=False):
                axis.plot(column, label=name, linewidth=4)
        titles = ("losses and weight", "pseudo labels", *(TITLES[kind] for kind in self.lists))
        for axis, title in zip(axes, titles, strict=True):
            axis.set(xlabel="epoch", title=title)
            axis.legend(loc="best")
        axes[2].set_yscale("log")
        figure.tight_layout()
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        return Image.fromarray(np.asarray(canvas.buffer_rgba()))

    def _write_csv(self, path: Path) -> None:
        values = self.my_fantastic_logging
        columns = {
            f"{PREFIXES[kind]}_{name}": column
            for kind in self.lists
            for name, column in zip(self.outputs, _columns(values[kind]), strict=False)
        }
        text = StringIO()
        writer = csv.writer(text)
        writer.writerow(["epoch", *self.curves, *columns])
        for epoch in range(len(values[SHARES])):
            row = [values[name][epoch] for name in self.curves] + [column[epoch] for column in columns.values()]
            writer.writerow([epoch, *(f"{value:.6g}" for value in row)])
        with atomic_path(path) as temporary:
            temporary.write_text(text.getvalue())


def vanished(rows: Sequence[Sequence[float]], outputs: Sequence[str]) -> list[str]:
    """A warning for each class whose share has in the last epoch fallen below a tenth of what it was at its largest.

    That is how unlabeled images unlearn a class: its pseudo labels shrink, and are learned. Each fall is told once; the
    first epoch does not count, in which a network knows nothing.

    Args:
        rows: shares of the classes in every epoch; an epoch without them is empty.
        outputs: names of the classes.
    """
    shares = np.array([row for row in rows[1:] if len(row)])
    if len(shares) < 2:
        return []
    limit = 0.1 * np.maximum.accumulate(shares, axis=0)
    fallen = (shares[-1] < limit[-1]) & (shares[-2] >= limit[-2])
    return [
        f"warning: pseudo labels of {name} take less than a tenth of what they took of the unlabeled images before, so "
        "that these may be unlearning it; see progress.png, compare with nnUNetTrainer, or lower unsupervised_weight"
        for name, fell in zip(outputs, fallen, strict=False)
        if fell
    ]


def starved(kept: Sequence[Sequence[float]], counting: Sequence[bool], outputs: Sequence[str]) -> list[str]:
    """A warning for each class of whose pseudo labels less than a hundredth counts, told in the first such epoch.

    Then unlabeled images teach the other classes alone, and the background spreads into the places of this one.

    Args:
        kept: of the voxels of each class, the share that counts, in every epoch; NaN for a class without voxels.
        counting: whether unlabeled images count in that epoch, or would if the pseudo labels were trusted.
        outputs: names of the classes.
    """
    rows, counts = [[], [], *kept], [False, False, *counting]

    def lacking(epoch: int) -> set[str]:
        named = zip(outputs, rows[epoch], strict=False)
        return {name for name, share in named if counts[epoch] and share < 0.01}

    new = lacking(-1) - lacking(-2)
    return [
        f"warning: next to no pseudo label of {name} is sure enough to count, so that unlabeled images may unlearn it, "
        "or count less for it (trust); see progress.png, compare with nnUNetTrainer, or lower threshold; "
        "nnUNetTrainerUniMatchClassAdaptive has one for each class"
        for name in outputs
        if name in new
    ]


def distrusted(trust: Sequence[float]) -> list[str]:
    """A warning in the first epoch in which the trust of pseudo labels is less than half."""
    halved = np.less(trust, 0.5)
    if not len(halved) or not halved[-1] or halved[:-1].any():
        return []
    return [
        "warning: unlabeled images count less than half of what they would (trust), since their pseudo labels shrink, "
        "or too few of a class are sure enough; see progress.png, and compare with nnUNetTrainer"
    ]


def class_curves(values: np.ndarray, num_outputs: int) -> dict[str, list[float]]:
    """The list-valued curves of an epoch.

    Args:
        values: means over the epoch of the shares of voxels that each class takes and, where voxels are left out, of
            the shares that it takes and that count: (K,) or (2 K,).
        num_outputs: K.

    Returns:
        `SHARES`, and `KEPT`: of the voxels of each class, the share that counts; NaN for a class without voxels.
    """
    rows = values.reshape(-1, num_outputs)
    kept = [row / np.where(rows[0] > 0, rows[0], np.nan) for row in rows[1:]]
    return {name: row.tolist() for name, row in zip((SHARES, KEPT), [rows[0], *kept], strict=False)}


def log_line(curves: Mapping[str, float], per_class: Mapping[str, Sequence[float]] | None = None) -> str:
    """One line for the log file: 'semi: loss_x 0.412  loss_u 0.087 (w 0.35)  confidence 0.94  shares 0.900 0.100'."""
    named = {**LABELS, **{name: name for name in curves if name not in LABELS}}  # a user's method has its own
    parts = [f"{word} {curves[name]:.3f}" for name, word in named.items() if name in curves and name != "semi_weight"]
    if "semi_weight" in curves:
        parts[1] += f" (w {curves['semi_weight']:.4f})"
    for name, values in (per_class or {}).items():
        parts.append(" ".join([LABELS[name], *(f"{value:.3f}" for value in values)]))
    return "semi: " + "  ".join(parts)


def _columns(rows: list[list[float]]) -> list[np.ndarray]:
    """Rows of one value per class, possibly empty in epochs before this logger, as one array per class."""
    width = max((len(row) for row in rows), default=0)
    padded = [list(row) + [float("nan")] * (width - len(row)) for row in rows]
    return list(np.array(padded, dtype=float).reshape(len(rows), width).T)


def _append_below(path: Path, panel: Image.Image) -> None:
    with Image.open(path) as image:
        own = image.convert("RGB")
    page = Image.new("RGB", (max(own.width, panel.width), own.height + panel.height), "white")
    page.paste(own, (0, 0))
    page.paste(panel.convert("RGB"), (0, own.height))
    with atomic_path(path) as temporary:
        page.save(temporary, format="png", compress_level=1)  # a training waits for it after every epoch
