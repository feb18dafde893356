"""nnU-Net's supervised training that keeps two checkpoints of mid-training."""

from __future__ import annotations

from nnunet_semi.plugin_trainer import PluginTrainer


class nnUNetTrainerKeepCheckpoints(PluginTrainer):
    """nnUNetTrainer, with the networks after 36 and 66 % of the epochs as checkpoint_036.pth and checkpoint_066.pth.

    `nnunet_semi score --by checkpoints` compares their predictions with those of the final network, as ST++ does
    (Yang et al., CVPR 2022). All other trainers of this project keep them too.
    """
