"""Bidirectional copy-paste between labeled and unlabeled images (Bai et al., CVPR 2023)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from torch import Tensor

from nnunet_semi.consistency.pseudo_label import known_labels, largest_components, pseudo_label
from nnunet_semi.perturbation.copy_paste import draw_boxes, of_one_length
from nnunet_semi.perturbation.cutmix import paste
from nnunet_semi.perturbation.intensity import IntensityPerturbation
from nnunet_semi.trainers.nnUNetTrainerSemi import Losses, finest, split_like
from nnunet_semi.trainers.nnUNetTrainerTeacher import nnUNetTrainerTeacher
from nnunet_semi.unlabeled.streams import TwoStreams


class nnUNetTrainerBCP(nnUNetTrainerTeacher):
    """BCP: a box of each labeled patch lies in an unlabeled one, and the other way round; the student learns both.

    Where a voxel is of a labeled patch its label is learned, elsewhere the teacher's pseudo label with half the
    weight, by cross entropy and the Dice of all classes: that of the background keeps the network from filling slices
    that hold nothing (the authors' Dice has squares on ACDC). Every labeled patch takes part in both directions, with
    two unlabeled ones; boxes are drawn for each patch. All intensities are those of nnU-Net's augmentation, the teacher
    sees them untouched.

    The authors first pretrain on labeled patches pasted into each other (LA 2000 iterations of 17 000, ACDC 10 000 of
    40 000) and then start anew from those weights. Here the first part of one training is the pretraining; teacher,
    optimizer and learning rate go on. The student is deployed, as there.

    Attributes:
        pretraining: fraction of the training that is pretraining.
        box_side: side of a box, in shares of the patch.
        largest_component: keep only the largest component of each class of the pseudo label, as the authors do;
            for anatomy that is in one piece, also in a patch.
    """

    alpha = 0.99
    deploys_teacher = False
    unsupervised_weight = 0.5
    ramp_length = 0.0
    pseudo_dice_background = True
    perturbation = IntensityPerturbation.nnunet
    pretraining: float = 0.2
    box_side: float = 2 / 3
    largest_component: bool = False
    curve_names: Sequence[str] = ("semi_confidence",)

    def training_stream(self, labeled: nnUNetDataLoader) -> TwoStreams:
        """Both streams; one labeled patch has no other to be pasted into, which is said."""
        if self.batch_size == 1 and self.pretraining > 0:
            self.print_to_log_file(
                "warning: with one labeled patch per process, BCP's pretraining pastes a patch into itself; choose "
                "plans with a larger batch size, or pretraining = 0 in a subclass"
            )
        return super().training_stream(labeled)

    def losses(self, labeled: Tensor, target: Any, unlabeled: Tensor) -> Losses:
        """The losses of mixed patches on the voxels of labeled, and on those of unlabeled ones."""
        label, known = known_labels(finest(target), self.label_manager)
        if self.training_progress < self.pretraining:
            return self._pretraining(labeled, label, known)
        pseudo, confidence = pseudo_label(self.teach(unlabeled), self.label_manager.has_regions)
        told = self.described(pseudo, confidence)
        if self.largest_component:
            pseudo = largest_components(pseudo, self.label_manager.num_segmentation_heads)
        labeled, label, known, view, pseudo = of_one_length(labeled, label, known, self.strong_view(unlabeled), pseudo)
        view_2, pseudo_2 = view.roll(1, 0), pseudo.roll(1, 0)
        box = draw_boxes(labeled, self.box_side)
        images = [paste(box, labeled, view), paste(box, view_2, labeled)]
        inward, outward = split_like(self.network(torch.cat(images)), images)
        supervised = self.pseudo_loss(inward, label, known & ~box) + self.pseudo_loss(outward, label, known & box)
        unsupervised = self.pseudo_loss(inward, pseudo, box) + self.pseudo_loss(outward, pseudo_2, ~box)
        return Losses(supervised / 2, unsupervised / 2, **told)

    def _pretraining(self, labeled: Tensor, label: Tensor, known: Tensor) -> Losses:
        """The loss of labeled patches with a box of another one; there is no pseudo label to tell of."""
        box = draw_boxes(labeled, self.box_side)
        outputs = self.network(paste(box, labeled, labeled.roll(1, 0)))
        supervised = self.pseudo_loss(outputs, label, known & ~box)
        supervised = supervised + self.pseudo_loss(outputs, label.roll(1, 0), known.roll(1, 0) & box)
        none = labeled.new_zeros(self.label_manager.num_segmentation_heads)
        return Losses(supervised / 2, none.sum(), {"semi_confidence": none.sum()}, none)
