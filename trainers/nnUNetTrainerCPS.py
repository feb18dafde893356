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
from nnunet_semi.plugin_trainer import unwrap
from nnunet_semi.trainers.nnUNetTrainerSemi import Losses, nnUNetTrainerSemi, finest, split


class nnUNetTrainerCPS(nnUNetTrainerSemi):
    """CPS as medical imaging uses it: pseudo labels on unlabeled images only, with a ramp.

    Both networks start from different weights and learn the labeled batch. On the unlabeled batch each learns the
    hard pseudo label of the other, through which no gradient flows. Network 1 is deployed, at the cost of one.
    """

    curve_names: Sequence[str] = ("semi_confidence", "semi_agreement")

    def losses(self, labeled: Tensor, target: Any, unlabeled: Tensor) -> Losses:
        """Supervised loss of both networks, and each one's loss against the other's pseudo label."""
        view_1, view_2 = self.strong_view(unlabeled), self.strong_view(unlabeled)
        labeled_1, unlabeled_1 = split(self.network(torch.cat([labeled, view_1])), len(labeled))
        labeled_2, unlabeled_2 = split(self.network_2(torch.cat([labeled, view_2])), len(labeled))
        regions = self.label_manager.has_regions
        pseudo_1, confidence_1 = pseudo_label(finest(unlabeled_1), regions)
        pseudo_2, _ = pseudo_label(finest(unlabeled_2), regions)
        return Losses(
            supervised=self.loss(labeled_1, target) + self.loss(labeled_2, target),
            unsupervised=self.pseudo_loss(unlabeled_1, pseudo_2) + self.pseudo_loss(unlabeled_2, pseudo_1),
            curves={
                "semi_confidence": confidence_1.mean(),
                "semi_agreement": (pseudo_1 == pseudo_2).float().mean(),
            },
            shares=class_shares(pseudo_1, self.label_manager.num_segmentation_heads),
        )

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
        self.network_2: nn.Module = torch.compile(network) if self._do_i_compile() else network
        with self._second_network():
            self.optimizer_2, self.lr_scheduler_2 = self.configure_optimizers()
        if self.is_ddp:
            network = nn.SyncBatchNorm.convert_sync_batchnorm(self.network_2)
            self.network_2 = DistributedDataParallel(network, device_ids=[self.local_rank])

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


def xavier(module: nn.Module) -> None:
    """Xavier's initialisation of a convolution, so that the two networks start differently (SSL4MIS)."""
    if isinstance(module, (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)):
        nn.init.xavier_normal_(module.weight)
