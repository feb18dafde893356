"""The curves of semi-supervised training: in nnU-Net's logger and progress.png, in the log file and as CSV."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from nnunetv2.training.logging.nnunet_logger import LocalLogger
from PIL import Image

from nnunet_semi.storage import atomic_path

SHARES = "semi_class_shares"
LABELS = {
    "semi_loss_labeled": "loss_x",
    "semi_loss_unlabeled": "loss_u",
    "semi_weight": "w",
    "semi_kept": "kept",
    "semi_confidence": "confidence",
    "semi_agreement": "agreement",
}


class CurveLogger(LocalLogger):
    """nnU-Net's logger with lists for further curves, which it draws below its own in progress.png.

    Every curve gets one value per epoch, as nnU-Net's own do; they are stored in and restored from its checkpoints.

    Args:
        curves: names of scalar curves, beside the list-valued `SHARES`.
        outputs: names of the classes or regions that the values of `SHARES` belong to.
    """

    def __init__(self, curves: list[str], outputs: Sequence[str]) -> None:
        super().__init__()
        self.curves = curves
        self.outputs = outputs
        self._add_lists()

    def _add_lists(self) -> None:
        for name in (*self.curves, SHARES):
            self.my_fantastic_logging.setdefault(name, [])

    def load_checkpoint(self, checkpoint: dict[str, list]) -> None:
        """Restore the curves; those of a stock checkpoint start as NaN, so that epochs still line up."""
        super().load_checkpoint(checkpoint)
        self._add_lists()
        epochs = len(self.my_fantastic_logging["train_losses"])
        for name in self.curves:
            values = self.my_fantastic_logging[name]
            values.extend([float("nan")] * (epochs - len(values)))
        shares = self.my_fantastic_logging[SHARES]
        shares.extend([[]] * (epochs - len(shares)))

    def plot_progress_png(self, output_folder: str) -> None:
        """Draw nnU-Net's progress.png, this logger's curves below it, and write progress_semi.csv."""
        super().plot_progress_png(output_folder)
        _append_below(Path(output_folder, "progress.png"), self._panel())
        self._write_csv(Path(output_folder, "progress_semi.csv"))

    def _panel(self) -> Image.Image:
        values = self.my_fantastic_logging
        losses = [c for c in self.curves if c.startswith("semi_loss") or c == "semi_weight"]
        figure = Figure(figsize=(30, 12))
        axes = figure.subplots(1, 3)
        for name in self.curves:
            axes[0 if name in losses else 1].plot(values[name], label=LABELS[name], linewidth=4)
        for name, share in zip(self.outputs, _columns(values[SHARES]), strict=False):
            axes[2].plot(share, label=name, linewidth=4)
        for axis, title in zip(axes, ("losses and weight", "pseudo labels", "shares of the classes"), strict=True):
            axis.set(xlabel="epoch", title=title)
            axis.legend(loc="best")
        axes[2].set_yscale("log")
        figure.tight_layout()
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        return Image.fromarray(np.asarray(canvas.buffer_rgba()))

    def _write_csv(self, path: Path) -> None:
        values = self.my_fantastic_logging
        shares = _columns(values[SHARES])
        text = StringIO()
        writer = csv.writer(text)
        writer.writerow(["epoch", *self.curves, *(f"share_{name}" for name in self.outputs[: len(shares)])])
        for epoch in range(len(values[SHARES])):
            row = [values[name][epoch] for name in self.curves] + [share[epoch] for share in shares]
            writer.writerow([epoch, *(f"{value:.6g}" for value in row)])
        with atomic_path(path) as temporary:
            temporary.write_text(text.getvalue())


def log_line(curves: Mapping[str, Any]) -> str:
    """One line for the log file, such as 'semi: loss_x 0.412  loss_u 0.087 (w 0.35)  confidence 0.94'."""
    parts = [f"{LABELS[name]} {curves[name]:.3f}" for name in LABELS if name in curves and name != "semi_weight"]
    if "semi_weight" in curves:
        parts[1] += f" (w {curves['semi_weight']:.4f})"
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
