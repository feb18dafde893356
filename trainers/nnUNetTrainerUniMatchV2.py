"""UniMatch V2: a teacher's pseudo labels and complementary channel dropout (Yang et al., 2024, arXiv 2410.10777)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nnunet_semi.trainers.nnUNetTrainerSemi import Losses, split_like
from nnunet_semi.trainers.nnUNetTrainerTeacher import nnUNetTrainerTeacher
from nnunet_semi.trainers.nnUNetTrainerUniMatch import nnUNetTrainerUniMatch


class nnUNetTrainerUniMatchV2(nnUNetTrainerTeacher, nnUNetTrainerUniMatch):
    """UniMatch with a teacher: L_x + (L_s1 + L_s2) / 2, where the unsupervised loss is cross entropy as published:
    the sum over the sure voxels, divided by the number of all.

    The teacher's pseudo label of the weak view is learned on two strong views, of which the second keeps the channels
    that the first one drops; half of the patches keep all. There is no branch for the weak view's features.
    """

    unsupervised_weight = 1.0
    pseudo_weight_ce = 1.0
    pseudo_weight_dice = 0.0
    pseudo_ce_over_all = True
    alpha = 0.996

    def losses(self, labeled: Tensor, target: Any, unlabeled: Tensor) -> Losses:
        """Supervised loss, and the losses of two strong views against the teacher's pseudo label of the weak one."""
        label, confidence, mask = self.pseudo_label(unlabeled)
        (strong_1, mix_1), (strong_2, mix_2) = self.mixed_view(unlabeled), self.mixed_view(unlabeled)
        images = [labeled, strong_1, strong_2]
        complementary = self.dropout.complementary(len(unlabeled))
        with self.dropout.applied(self.dropout.undisturbed(len(labeled)), *complementary):
            outputs, outputs_s1, outputs_s2 = split_like(self.network(torch.cat(images)), images)
        unsupervised = (
            self.pseudo_loss(outputs_s1, mix_1(label), mix_1(mask))
            + self.pseudo_loss(outputs_s2, mix_2(label), mix_2(mask))
        ) / 2
        return Losses(self.loss(outputs, target), unsupervised, **self.described(label, confidence, mask))
