"""Mean Teacher (Tarvainen and Valpola, NeurIPS 2017) and its uncertainty-aware variant (Yu et al., MICCAI 2019)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from nnunet_semi.consistency.losses import mean_squared_difference
from nnunet_semi.consistency.pseudo_label import probabilities, pseudo_label
from nnunet_semi.consistency.ramp import sigmoid_rampup
from nnunet_semi.consistency.thresholds import entropy, entropy_limit
from nnunet_semi.perturbation.intensity import IntensityPerturbation
from nnunet_semi.perturbation.noise import add_clamped_noise
from nnunet_semi.trainers.nnUNetTrainerSemi import Losses, finest, split
from nnunet_semi.trainers.nnUNetTrainerTeacher import nnUNetTrainerTeacher


class nnUNetTrainerMeanTeacher(nnUNetTrainerTeacher):
    """Mean Teacher as medical imaging uses it (SSL4MIS): mean squared difference of the probabilities, with a ramp.

    The teacher sees the unlabeled patch with Gaussian noise, the student with the intensities of nnU-Net's
    augmentation, which its labeled patches have too. Compared are the outputs at full resolution.
    """

    alpha = 0.99
    unsupervised_weight = 0.1
    perturbation = IntensityPerturbation.nnunet

    def losses(self, labeled: Tensor, target: Any, unlabeled: Tensor) -> Losses:
        """Supervised loss, and the difference of student and teacher on unlabeled images."""
        logits = self.teach(self.noisy(unlabeled))
        outputs, probability = self._student(labeled, unlabeled)
        unsupervised = mean_squared_difference(probability, self._probabilities(logits))
        told = self.described(*pseudo_label(logits, self.label_manager.has_regions))
        return Losses(self.loss(outputs, target), unsupervised, **told)

    def noisy(self, images: Tensor) -> Tensor:
        """The images with N(0, .1) noise, clamped to ±.2."""
        return add_clamped_noise(images, self.num_image_channels, self.perturb.masked_channels)

    def _student(self, labeled: Tensor, unlabeled: Tensor) -> tuple[Any, Tensor]:
        """The student's outputs for labeled, and its probabilities for unlabeled images."""
        images = torch.cat([labeled, self.strong_view(unlabeled)])
        outputs, outputs_u = split(self.network(images), len(labeled))
        return outputs, self._probabilities(finest(outputs_u))

    def _probabilities(self, logits: Tensor) -> Tensor:
        return probabilities(logits, self.label_manager.has_regions)


class nnUNetTrainerUAMT(nnUNetTrainerMeanTeacher):
    """Mean Teacher where the teacher is sure: the entropy of its mean over noisy passes is below a limit that grows.

    The authors add a further noisy pass for the target; here one of the passes is the target. nnU-Net's networks have
    no dropout, so that the passes differ by their noise alone.

    Attributes:
        passes: noisy passes of the teacher.
    """

    passes: int = 8
    curve_names: Sequence[str] = ("semi_confidence", "semi_kept")

    def losses(self, labeled: Tensor, target: Any, unlabeled: Tensor) -> Losses:
        """Supervised loss, and the difference of student and teacher where the teacher is sure."""
        logits = self.teach(self.noisy(unlabeled))
        goal = self._probabilities(logits)
        mask = self._sure(goal, unlabeled)
        outputs, probability = self._student(labeled, unlabeled)
        label, confidence = pseudo_label(logits, self.label_manager.has_regions)
        unsupervised = mean_squared_difference(probability, goal, mask)
        return Losses(self.loss(outputs, target), unsupervised, **self.described(label, confidence, mask))

    def _sure(self, first: Tensor, unlabeled: Tensor) -> Tensor:
        """True where the mean of all passes, of which the first is done, has a low entropy."""
        mean = first.clone()
        for _ in range(self.passes - 1):
            mean += self._probabilities(self.teach(self.noisy(unlabeled)))
        mean /= self.passes
        regions = self.label_manager.has_regions
        limit = entropy_limit(first.shape[1], regions, sigmoid_rampup(self.training_progress))
        return entropy(mean, regions) < limit
