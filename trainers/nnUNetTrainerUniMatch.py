"""UniMatch: weak-to-strong consistency with several views and a feature perturbation (Yang et al., CVPR 2023)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from nnunet_semi.consistency.pseudo_label import pseudo_label
from nnunet_semi.consistency.thresholds import ClassThresholds
from nnunet_semi.curves import KEPT, starved
from nnunet_semi.perturbation.cutmix import CutMix, draw_cutmix
from nnunet_semi.perturbation.dropout import FeatureDropout
from nnunet_semi.plugin_trainer import unwrap
from nnunet_semi.trainers.nnUNetTrainerSemi import TRUST, Losses, finest, nnUNetTrainerSemi, split, split_like


class nnUNetTrainerFixMatch(nnUNetTrainerSemi):
    """FixMatch for segmentation, UniMatch's ablation with one strong view: L_x + 2 L_s.

    The weak view of an unlabeled patch gives its pseudo label; the network learns it on a strong view mixed by
    CutMix, where it was sure of it. The weak view is passed without gradient.

    As in the authors' code for medical images, the unsupervised loss is Dice alone, background included, and voxels
    that do not count are left out of numerator and denominator; L_x is (CE + Dice) / 2 there and CE + Dice here, hence
    the 2. Their factor of a half before it all is left out: nnU-Net's learning rate is made for the whole of L_x.
    Unlike theirs, pseudo labels wait until every class is learned (`wait_for_classes`).

    Attributes:
        threshold: τ, the least confidence of a voxel that counts.
        cutmix_p: probability that a patch gets a box from another one.
    """

    unsupervised_weight = 2.0
    ramp_length = 0.0
    wait_for_classes = True
    pseudo_weight_ce = 0.0
    pseudo_dice_background = True
    threshold: float = 0.95
    cutmix_p: float = 0.5
    curve_names: Sequence[str] = ("semi_confidence", "semi_kept")

    def losses(self, labeled: Tensor, target: Any, unlabeled: Tensor) -> Losses:
        """Supervised loss, and the loss of a strong view against the pseudo label of the weak one."""
        label, confidence, mask = self.pseudo_label(unlabeled)
        strong, mix = self.mixed_view(unlabeled)
        outputs, outputs_s = split(self.network(torch.cat([labeled, strong])), len(labeled))
        return Losses(
            self.loss(outputs, target),
            self.pseudo_loss(outputs_s, mix(label), mix(mask)),
            **self.described(label, confidence, mask),
        )

    def pseudo_label(self, unlabeled: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Pseudo label and confidence of the weak view, and the mask of the voxels that count."""
        logits = self.teach(unlabeled)
        label, confidence = pseudo_label(logits, self.label_manager.has_regions)
        return label, confidence, self.counted(logits, label, confidence)

    def counted(self, logits: Tensor, label: Tensor, confidence: Tensor) -> Tensor:
        """True where a pseudo label counts."""
        return confidence >= self.threshold

    def mixed_view(self, unlabeled: Tensor) -> tuple[Tensor, CutMix]:
        """A strong view of every patch with boxes from strong views of others, and what mixes their labels alike."""
        mix = draw_cutmix(unlabeled, self.cutmix_p)
        return mix(self.strong_view(unlabeled)), mix

    @torch.no_grad()
    def teach(self, images: Tensor) -> Tensor:
        """The network's own logits at full resolution."""
        return finest(self.network(images))

    def warnings(self) -> list[str]:
        """Those of all methods, and the classes that the threshold leaves out."""
        weights, kept = (self.logger.get_value(name, step=None) for name in ("semi_weight", KEPT))
        trust = self.logger.get_value(TRUST, step=None) if self.wait_for_classes else [1.0] * len(weights)
        least = 0.1 * self.unsupervised_weight
        counting = [weight > least or factor < 0.5 for weight, factor in zip(weights, trust, strict=True)]
        return [*super().warnings(), *starved(kept, counting, self._output_names())]


class nnUNetTrainerUniMatch(nnUNetTrainerFixMatch):
    """UniMatch V1, medical variant: L_x + 2 (¼ L_s1 + ¼ L_s2 + ½ L_fp).

    Two strong views with boxes of their own, and the weak view with channel dropout on every feature map that the
    decoder gets; all of them learn the pseudo label of the undisturbed weak view, in one pass.
    """

    def initialize(self) -> None:
        """Build what nnU-Net builds, and let features be dropped."""
        super().initialize()
        self.dropout = FeatureDropout(unwrap(self.network))

    def losses(self, labeled: Tensor, target: Any, unlabeled: Tensor) -> Losses:
        """Supervised loss, and the losses of the disturbed views against the pseudo label of the weak one."""
        label, confidence, mask = self.pseudo_label(unlabeled)
        (strong_1, mix_1), (strong_2, mix_2) = self.mixed_view(unlabeled), self.mixed_view(unlabeled)
        images = [labeled, strong_1, strong_2, unlabeled]
        undisturbed = self.dropout.undisturbed(sum(map(len, images[:3])))
        with self.dropout.applied(undisturbed, self.dropout.independent(len(unlabeled))):
            outputs, outputs_s1, outputs_s2, outputs_fp = split_like(self.network(torch.cat(images)), images)
        unsupervised = (
            0.25 * self.pseudo_loss(outputs_s1, mix_1(label), mix_1(mask))
            + 0.25 * self.pseudo_loss(outputs_s2, mix_2(label), mix_2(mask))
            + 0.5 * self.pseudo_loss(outputs_fp, label, mask)
        )
        return Losses(self.loss(outputs, target), unsupervised, **self.described(label, confidence, mask))


class nnUNetTrainerUniMatchClassAdaptive(nnUNetTrainerUniMatch):
    """UniMatch with a threshold for each class, so that rare structures of low confidence take part.

    The surest class has the threshold τ and the others one in proportion to their mean confidence. Between two classes
    the lower one decides, on both sides of the border. See `ClassThresholds`; the log tells them after every epoch.
    """

    def initialize(self) -> None:
        """Build what UniMatch needs, and the thresholds."""
        super().initialize()
        heads, regions = self.label_manager.num_segmentation_heads, self.label_manager.has_regions
        self.thresholds = ClassThresholds(heads, regions, self.threshold, ddp=self.is_ddp).to(self.device)

    def counted(self, logits: Tensor, label: Tensor, confidence: Tensor) -> Tensor:
        """True where a pseudo label reaches the threshold of its class, or of the runner-up's, as of this step."""
        self.thresholds.update(label, confidence)
        return self.thresholds(logits, label, confidence)

    def on_train_epoch_end(self, train_outputs: list[dict]) -> None:
        """Log the thresholds too."""
        super().on_train_epoch_end(train_outputs)
        self.print_to_log_file("thresholds", " ".join(f"{t:.3f}" for t in self.thresholds.thresholds.tolist()))

    def extra_state(self) -> dict[str, Any]:
        """The moving averages of the confidence too."""
        return {**super().extra_state(), "class_thresholds": self.thresholds.state_dict()}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Restore the moving averages; a checkpoint of another trainer has none, and they start anew."""
        super().load_extra_state(state)
        if "class_thresholds" in state:
            self.thresholds.load_state_dict(state["class_thresholds"])
