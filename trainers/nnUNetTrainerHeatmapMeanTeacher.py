"""Landmarks with few labels: a teacher marks the unlabeled images, and each mark counts as much as it is sure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from torch import Tensor

from nnunet_semi.curves import SHARES
from nnunet_semi.landmarks.curves import LandmarkCurves
from nnunet_semi.landmarks.decoding import decode
from nnunet_semi.landmarks.heatmaps import heatmap_logits
from nnunet_semi.perturbation.intensity import IntensityPerturbation
from nnunet_semi.trainers.nnUNetTrainerHeatmap import nnUNetTrainerHeatmap
from nnunet_semi.trainers.nnUNetTrainerSemi import Losses, split
from nnunet_semi.trainers.nnUNetTrainerTeacher import nnUNetTrainerTeacher
from nnunet_semi.unlabeled.streams import TwoStreams


class nnUNetTrainerHeatmapMeanTeacher(nnUNetTrainerTeacher, nnUNetTrainerHeatmap):
    """nnUNetTrainerHeatmap on labeled and unlabeled images (imagesUn), with a mean teacher.

    The teacher, the moving average of the student (Tarvainen and Valpola, NeurIPS 2017), finds the landmarks of an
    unlabeled patch to below a voxel. The student sees the patch with other intensities and learns heatmaps that are
    rendered anew from these points, so that the teacher's blur is not passed on. A heatmap that the teacher learned to
    be the mean of what may be true is the lower, the less sure the place is: its peak is the weight of the point.

    Attributes:
        smallest_peak: points of a lower peak count nothing; a landmark that is not in the patch has none.
    """

    perturb: IntensityPerturbation
    unsupervised_weight: float = 0.3
    ramp_length: float = 1.0
    smallest_peak: float = 0.6
    curve_names: Sequence[str] = ("semi_confidence", "semi_kept")

    def initialize(self) -> None:
        """Build what the bases build; the student's view must not move what the teacher marked."""
        super().initialize()
        self.perturb = replace(self.perturb, low_resolution_linear=True)

    def curve_logger(self) -> Any:
        """nnU-Net's logger with errors in mm and the curves of unlabeled images."""
        return LandmarkCurves(self.success_radius, self.curves, [SHARES])

    def warnings(self) -> list[str]:
        """None: that fewer landmarks count in some epoch does not say that they are being unlearned."""
        return []

    def stages_to_predict_for(self) -> list[str]:
        """None: landmarks have no cascade."""
        return []

    def training_stream(self, labeled: nnUNetDataLoader) -> TwoStreams:
        """Labeled images with their points beside unlabeled ones."""
        streams = super().training_stream(labeled)
        streams.streams[0] = self._point_loader(labeled)
        return streams

    def losses(self, labeled: Tensor, target: Any, unlabeled: Tensor) -> Losses:
        """The loss of the heatmaps of labeled images, and that against the teacher's points on unlabeled ones."""
        points, peak = self.pseudo_landmarks(unlabeled)
        weights = torch.where(peak >= self.smallest_peak, peak, 0.0)
        outputs = self.network(torch.cat([labeled, self.strong_view(unlabeled)]))
        outputs_l, outputs_u = split(outputs, len(labeled))
        kept = (weights > 0).float()
        curves = {"semi_confidence": peak.mean(), "semi_kept": kept.mean()}
        shares = torch.cat([1 - kept.mean()[None], kept.mean(0)])  # of patches in which a landmark counts
        return Losses(self.loss(outputs_l, target), self.loss(outputs_u, points, weights), curves, shares)

    @torch.no_grad()
    def pseudo_landmarks(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The teacher's points (B, L, dim) in voxels of the images, and their peaks (B, L)."""
        found = decode(heatmap_logits(self.teach(images)).sigmoid(), self.voxel_sigma)
        return found.points, found.peak
