"""Cross pseudo supervision: two networks teach each other on unlabeled images (Chen et al., CVPR 2021)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from nnunet_semi.consistency.pseudo_label import class_shares, pseudo_label
from nnunet_semi.errors import UserError
from nnunet_semi.perturbation.cutmix import draw_cutmix
from nnunet_semi.perturbation.intensity import IntensityPerturbation
from nnunet_semi.plugin_trainer import unwrap
from nnunet_semi.trainers.nnUNetTrainerSemi import Losses, Outputs, finest, nnUNetTrainerSemi, split


class nnUNetTrainerCPS(nnUNetTrainerSemi):
    """CPS as medical imaging uses it: pseudo labels on unlabeled images only, with a ramp, once classes are learned.

    Both networks start from different weights and learn the labeled batch. Each sees a view of its own of every
    unlabeled patch, disturbed as nnU-Net's augmentation disturbs labeled ones, and learns the other's hard pseudo
    label, through which no gradient flows. Network 1 is deployed, at the cost of one. With -pretrained_weights it
    alone begins with them, so that the two still differ.
    """

    wait_for_classes = True
    pseudo_dice_smoothing = 0.05
    perturbation = IntensityPerturbation.nnunet
    curve_names: Sequence[str] = ("semi_confidence", "semi_agreement")

    def losses(self, labeled: Tensor, target: Any, unlabeled: Tensor) -> Losses:
        """Supervised loss of both networks, and each one's loss against the other's pseudo label."""
        (labeled_1, unlabeled_1), (labeled_2, unlabeled_2) = self._both(labeled, *self.views(unlabeled))
        pseudo_1, confidence = self._pseudo_label(unlabeled_1)
        pseudo_2, _ = self._pseudo_label(unlabeled_2)
        return self._losses(
            self.loss(labeled_1, target) + self.loss(labeled_2, target),
            self.pseudo_loss(unlabeled_1, pseudo_2) + self.pseudo_loss(unlabeled_2, pseudo_1),
            pseudo_1,
            pseudo_2,
            confidence,
        )

    def views(self, unlabeled: Tensor) -> tuple[Tensor, Tensor]:
        """What each network sees of the patches."""
        return self.strong_view(unlabeled), self.strong_view(unlabeled)

    def _both(self, labeled: Tensor, view_1: Tensor, view_2: Tensor) -> list[tuple[Outputs, Outputs]]:
        """The labeled and the unlabeled outputs of each network, from one pass each."""
        networks = zip((self.network, self.network_2), (view_1, view_2), strict=True)
        return [split(network(torch.cat([labeled, view])), len(labeled)) for network, view in networks]

    def _pseudo_label(self, outputs: Outputs) -> tuple[Tensor, Tensor]:
        return pseudo_label(finest(outputs), self.label_manager.has_regions)

    def _losses(
        self, supervised: Tensor, unsupervised: Tensor, pseudo_1: Tensor, pseudo_2: Tensor, confidence: Tensor
    ) -> Losses:
        agreement = (pseudo_1 == pseudo_2).float().mean()
        curves = {"semi_confidence": confidence.mean(), "semi_agreement": agreement}
        shares = class_shares(pseudo_1, self.label_manager.num_segmentation_heads)
        return Losses(supervised, unsupervised, curves, shares)

    # --- the second network ---

    def initialize(self) -> None:
        """Build the second network as nnU-Net builds the first, from other random numbers."""
        super().initialize()
        network = self.build_network_architecture(
            self.plans_manager,
            self.configuration_manager,
            self.num_input_channels,
            self.label_manager.num_segmentation_heads,
            self.enable_deep_supervision,
        ).to(self.device)
        network.apply(xavier)
        self.network_2 = network
        if self._do_i_compile():
            self.network_2 = torch.compile(network)
        with self._second_network():
            self.optimizer_2, self.lr_scheduler_2 = self.configure_optimizers()
        if self.is_ddp:
            network = nn.SyncBatchNorm.convert_sync_batchnorm(self.network_2)
            devices = [self.local_rank] if self.device.type == "cuda" else None
            self.network_2 = DistributedDataParallel(network, device_ids=devices)

    @contextmanager
    def _second_network(self) -> Iterator[None]:
        """Let nnU-Net's methods act on network 2, where they name `self.network`."""
        self.network, self.network_2 = self.network_2, self.network
        try:
            yield
        finally:
            self.network, self.network_2 = self.network_2, self.network

    def trained(self) -> list[tuple[nn.Module, Optimizer]]:
        """Both networks."""
        return [(self.network, self.optimizer), (self.network_2, self.optimizer_2)]

    def set_deep_supervision_enabled(self, enabled: bool) -> None:
        """Switch deep supervision of both networks."""
        super().set_deep_supervision_enabled(enabled)
        with self._second_network():
            super().set_deep_supervision_enabled(enabled)

    def on_train_epoch_start(self) -> None:
        """Set both learning rates."""
        self.network_2.train()
        self.lr_scheduler_2.step(self.current_epoch)
        super().on_train_epoch_start()

    def extra_state(self) -> dict[str, Any]:
        """Network 2 and its optimizer too."""
        state = {"network_2": unwrap(self.network_2).state_dict(), "optimizer_2": self.optimizer_2.state_dict()}
        return {**super().extra_state(), **state}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Restore network 2 and its optimizer.

        Raises:
            UserError: the checkpoint was not written by a trainer with two networks.
        """
        if "network_2" not in state:
            raise UserError(
                f"the checkpoint in {self.output_folder} holds one network, but {type(self).__name__} needs the two of "
                "a CPS training; start the training without --c, or from these weights with -pretrained_weights"
            )
        super().load_extra_state(state)
        unwrap(self.network_2).load_state_dict(state["network_2"])
        self.optimizer_2.load_state_dict(state["optimizer_2"])


class nnUNetTrainerCPSStrong(nnUNetTrainerCPS):
    """CPS with strong views.

    It is as good as CPS or better where labeled and unlabeled images are alike. Where unlabeled ones are so much poorer
    that strong views hide what is in them, that was unlearned (BENCHMARKS.md).
    """

    perturbation = IntensityPerturbation.strong


class nnUNetTrainerCPSWeakToStrong(nnUNetTrainerCPSStrong):
    """CPS in which one network sees a patch undisturbed and teaches it, and the other learns a strong view.

    Each is the teacher of half of the patches of a step, so that this costs no further pass.
    """

    def losses(self, labeled: Tensor, target: Any, unlabeled: Tensor) -> Losses:
        """Supervised loss of both networks, and on each unlabeled patch the loss of the one that learns it."""
        teaches = self.teaching(len(unlabeled)).to(unlabeled.device).view(-1, *[1] * (unlabeled.ndim - 1))
        strong = self.strong_view(unlabeled)
        views = torch.where(teaches, unlabeled, strong), torch.where(teaches, strong, unlabeled)
        (labeled_1, unlabeled_1), (labeled_2, unlabeled_2) = self._both(labeled, *views)
        pseudo_1, confidence_1 = self._pseudo_label(unlabeled_1)
        pseudo_2, confidence_2 = self._pseudo_label(unlabeled_2)
        taught = teaches.expand(-1, 1, *unlabeled.shape[2:])
        return self._losses(
            self.loss(labeled_1, target) + self.loss(labeled_2, target),
            self.pseudo_loss(unlabeled_1, pseudo_2, ~taught) + self.pseudo_loss(unlabeled_2, pseudo_1, taught),
            torch.where(teaches, pseudo_1, pseudo_2),
            torch.where(teaches, pseudo_2, pseudo_1),
            torch.where(teaches, confidence_1, confidence_2),
        )

    def teaching(self, number: int) -> Tensor:
        """True for the half of so many patches, drawn anew, of which network 1 is the teacher; by chance if odd."""
        return (torch.randperm(number) + torch.randint(2, ())) % 2 == 0


class nnUNetTrainerCPSOriginal(nnUNetTrainerCPS):
    """CPS as published for natural images: cross entropy on labeled and unlabeled voxels, weight 1.5, no ramp.

    Both networks see the same view. The supervised loss stays nnU-Net's.
    """

    unsupervised_weight = 1.5
    ramp_length = 0.0
    wait_for_classes = False
    pseudo_weight_dice = 0.0

    def losses(self, labeled: Tensor, target: Any, unlabeled: Tensor) -> Losses:
        """Supervised loss of both networks, and each one's loss against the other's pseudo label, on all voxels."""
        images = torch.cat([labeled, self.strong_view(unlabeled)])
        outputs_1, outputs_2 = self.network(images), self.network_2(images)
        pseudo_1, confidence = self._pseudo_label(outputs_1)
        pseudo_2, _ = self._pseudo_label(outputs_2)
        labeled_1, labeled_2 = (split(outputs, len(labeled))[0] for outputs in (outputs_1, outputs_2))
        return self._losses(
            self.loss(labeled_1, target) + self.loss(labeled_2, target),
            self.pseudo_loss(outputs_1, pseudo_2) + self.pseudo_loss(outputs_2, pseudo_1),
            pseudo_1,
            pseudo_2,
            confidence,
        )


class nnUNetTrainerCPSCutMix(nnUNetTrainerCPSStrong):
    """CPS with CutMix: pseudo labels of the undisturbed patches, learned on strong views mixed from pairs of patches.

    Images and pseudo labels are mixed by the same boxes, and the loss is cross entropy, as published: a Dice loss makes
    the networks draw each other's structures larger and larger. The two passes for the pseudo labels need no gradient.

    Attributes:
        cutmix_p: probability that a patch gets a box from another one.
    """

    pseudo_weight_dice = 0.0
    cutmix_p: float = 1.0

    def losses(self, labeled: Tensor, target: Any, unlabeled: Tensor) -> Losses:
        """Supervised loss of both networks, and each one's loss against the other's mixed pseudo label."""
        with torch.no_grad():
            pseudo_1, confidence = self._pseudo_label(self.network(unlabeled))
            pseudo_2, _ = self._pseudo_label(self.network_2(unlabeled))
        mix = draw_cutmix(unlabeled, self.cutmix_p)
        views = [mix(view) for view in self.views(unlabeled)]
        (labeled_1, unlabeled_1), (labeled_2, unlabeled_2) = self._both(labeled, *views)
        return self._losses(
            self.loss(labeled_1, target) + self.loss(labeled_2, target),
            self.pseudo_loss(unlabeled_1, mix(pseudo_2)) + self.pseudo_loss(unlabeled_2, mix(pseudo_1)),
            pseudo_1,
            pseudo_2,
            confidence,
        )


def xavier(module: nn.Module) -> None:
    """Xavier's initialisation of a convolution, so that the two networks start differently (SSL4MIS)."""
    if isinstance(module, (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)):
        nn.init.xavier_normal_(module.weight)
