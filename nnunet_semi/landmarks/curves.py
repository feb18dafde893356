"""The curves of a landmark training: radial error and success rate in the places of nnU-Net's pseudo Dice."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from io import StringIO
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from nnunetv2.training.logging.nnunet_logger import LocalLogger

from nnunet_semi.storage import atomic_path

MRE, SDR = "landmark_mre", "landmark_sdr"


class LandmarkCurves(LocalLogger):
    """nnU-Net's logger with the mean radial error (mm) and the success detection rate of every epoch.

    nnU-Net's `mean_fg_dice` holds minus the MRE, so that its moving average decides what the best checkpoint is;
    `dice_per_class_or_region` holds the MRE of each landmark.

    Args:
        radius: what counts as found, in mm.
        curves: names of further scalar curves, which are drawn and written too.
        others: names of further values per epoch that are only kept.
    """

    def __init__(self, radius: float = 2.0, curves: Sequence[str] = (), others: Sequence[str] = ()) -> None:
        super().__init__()
        self.radius = radius
        self.curves = list(curves)
        self.others = list(others)
        self._add_lists()

    def _add_lists(self) -> None:
        for name in (MRE, SDR, *self.curves, *self.others):
            self.my_fantastic_logging.setdefault(name, [])

    def load_checkpoint(self, checkpoint: dict[str, list]) -> None:
        """Restore the curves."""
        super().load_checkpoint(checkpoint)
        self._add_lists()

    def plot_progress_png(self, output_folder: str) -> None:
        """Draw progress.png and write progress_landmarks.csv."""
        values = self.my_fantastic_logging
        seconds = np.subtract(values["epoch_end_timestamps"], values["epoch_start_timestamps"])
        panels = [
            ("loss", {"training": values["train_losses"], "validation": values["val_losses"]}),
            ("mean radial error [mm]", {"MRE": values[MRE], "moving average": np.negative(values["ema_fg_dice"])}),
            ("success detection rate [%]", {f"within {self.radius:g} mm": 100 * np.array(values[SDR])}),
            ("learning rate", {"learning rate": values["lrs"]}),
            ("epoch duration [s]", {"epoch": seconds}),
        ]
        if self.curves:
            panels.insert(3, ("unlabeled images", {name: values[name] for name in self.curves}))
        figure = Figure(figsize=(14, 22))
        for axis, (title, curves) in zip(figure.subplots(len(panels), 1), panels, strict=True):
            for label, curve in curves.items():
                axis.plot(curve, label=label, linewidth=2)
            axis.set(xlabel="epoch", ylabel=title)
            axis.legend(loc="best")
        figure.axes[1].set_yscale("log")
        figure.tight_layout()
        FigureCanvasAgg(figure)
        with atomic_path(Path(output_folder, "progress.png")) as temporary:
            figure.savefig(temporary, format="png")
        self._write_csv(Path(output_folder, "progress_landmarks.csv"))

    def _write_csv(self, path: Path) -> None:
        names = {"train_loss": "train_losses", "val_loss": "val_losses", "mre_mm": MRE, f"sdr_{self.radius:g}mm": SDR}
        names |= {name: name for name in self.curves}
        text = StringIO()
        writer = csv.writer(text)
        writer.writerow(["epoch", *names])
        rows = zip(*(self.my_fantastic_logging[key] for key in names.values()), strict=False)
        for epoch, row in enumerate(rows):
            writer.writerow([epoch, *(f"{value:.6g}" for value in row)])
        with atomic_path(path) as temporary:
            temporary.write_text(text.getvalue())
