"""Copy-paste between labeled and unlabeled patches, of which the labeled voxels are learned."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nnunet_semi.consistency.pseudo_label import known_labels, pseudo_label
from nnunet_semi.perturbation.copy_paste import draw_boxes, of_one_length
from nnunet_semi.perturbation.cutmix import paste
from nnunet_semi.perturbation.intensity import IntensityPerturbation
from nnunet_semi.trainers.nnUNetTrainerSemi import Losses, finest, nnUNetTrainerSemi, split


class nnUNetTrainerCopyPaste(nnUNetTrainerSemi):
    """Labeled patches, and mixed ones: a box of a labeled patch in an unlabeled one, or the other way round by chance.

    Of a mixed patch the labeled voxels alone are learned, by cross entropy and the Dice of all classes, with the weight
    of the labeled patches' loss. The unlabeled images are what surrounds or interrupts a labeled one: the network finds
    a structure in places where it did not lie, and no pseudo label can teach it something wrong. The boxes are those of
    bidirectional copy-paste (`nnUNetTrainerBCP`), whose pseudo labels this leaves out. All intensities are those of
    nnU-Net's augmentation.

    In log and progress.png the unsupervised loss is that of the mixed patches, and confidence and class shares are
    those of the network's predictions for them.

    Attributes:
        box_side: side of a box, in shares of the patch.
    """

    supervised_weight = 0.5
    unsupervised_weight = 0.5
    ramp_length = 0.0
    pseudo_dice_background = True
    perturbation = IntensityPerturbation.nnunet
    box_side: float = 2 / 3

    def losses(self, labeled: Tensor, target: Any, unlabeled: Tensor) -> Losses:
        """The loss of labeled patches, and that of the labeled voxels of mixed ones."""
        mixed, label, mask = self.mixed(labeled, target, unlabeled)
        outputs, outputs_m = split(self.network(torch.cat([labeled, mixed])), len(labeled))
        told = self.described(*pseudo_label(finest(outputs_m), self.label_manager.has_regions))
        return Losses(self.loss(outputs, target), self.pseudo_loss(outputs_m, label, mask), **told)

    def mixed(self, labeled: Tensor, target: Any, unlabeled: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mixed patches, the labels of the labeled ones in them, and True where one lies and its label is known."""
        label, known = known_labels(finest(target), self.label_manager)
        labeled, label, known, view = of_one_length(labeled, label, known, self.strong_view(unlabeled))
        outward = torch.rand(len(labeled), *[1] * (labeled.ndim - 1)) < 0.5
        foreign = draw_boxes(labeled, self.box_side) ^ outward.to(labeled.device)
        return paste(foreign, labeled, view), label, known & ~foreign

    def warnings(self) -> list[str]:
        """None: no pseudo label is learned here that could shrink away."""
        return []
