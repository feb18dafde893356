"""The base of methods with a teacher that is the moving average of its student."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from nnunet_semi.consistency.ema import MovingAverage
from nnunet_semi.errors import UserError
from nnunet_semi.plugin_trainer import unwrap
from nnunet_semi.trainers.nnUNetTrainerSemi import finest, nnUNetTrainerSemi


class nnUNetTrainerTeacher(nnUNetTrainerSemi):
    """A student that learns and a teacher, the moving average of its weights and buffers, that makes its targets.

    The deployed one of the two is what validation during and after the training sees, and `network_weights` in the
    checkpoint; the other is kept beside it. Everywhere else `self.network` is the student.

    Attributes:
        alpha: largest decay of the moving average; see `MovingAverage`.
        deploys_teacher: deploy the teacher and not the student.
    """

    network: Any
    alpha: float = 0.99
    deploys_teacher: bool = True

    def initialize(self) -> None:
        """Build the student as nnU-Net does, and copy it."""
        super().initialize()
        self.student = self.network
        self.teacher = MovingAverage(unwrap(self.network), self.alpha)
        if self._do_i_compile():
            self.teacher.module.compile()

    @torch.no_grad()
    def teach(self, images: Tensor) -> Tensor:
        """The teacher's logits at full resolution."""
        return finest(self.teacher(images))

    def on_train_epoch_start(self) -> None:
        """Let a teacher that was not updated yet have the student's weights, which may be pretrained ones."""
        super().on_train_epoch_start()
        if self.teacher.updates == 0:
            self.teacher.restore(unwrap(self.student).state_dict(), updates=0)

    def train_step(self, batch: dict) -> dict:
        """A step of the student, which the teacher follows."""
        outputs = super().train_step(batch)
        self.teacher.update_parameters(unwrap(self.student))
        return outputs

    # --- the network to deploy ---

    def _networks(self) -> tuple[nn.Module, nn.Module]:
        """The deployed network and the other one; under DDP nnU-Net looks into `.module`, which the average has."""
        teacher = self.teacher if self.is_ddp else self.teacher.module
        return (teacher, self.student) if self.deploys_teacher else (self.student, teacher)

    @contextmanager
    def _acting_on(self, network: nn.Module) -> Iterator[None]:
        """Let nnU-Net's methods act on a network where they name `self.network`."""
        before, self.network = self.network, network
        try:
            yield
        finally:
            self.network = before

    def set_deep_supervision_enabled(self, enabled: bool) -> None:
        """Switch deep supervision of both networks."""
        for network in self._networks():
            with self._acting_on(network):
                super().set_deep_supervision_enabled(enabled)

    def on_validation_epoch_start(self) -> None:
        """Prepare the deployed network for validation."""
        with self._acting_on(self._networks()[0]):
            super().on_validation_epoch_start()

    def validation_step(self, batch: dict) -> dict:
        """Validate the deployed network."""
        with self._acting_on(self._networks()[0]):
            return super().validation_step(batch)

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """Validate the deployed network after the training."""
        with self._acting_on(self._networks()[0]):
            super().perform_actual_validation(save_probabilities)

    # --- checkpoints ---

    def save_checkpoint(self, filename: str) -> None:
        """Write the deployed network as nnU-Net's, and the other one into the extra state."""
        with self._acting_on(self._networks()[0]):
            super().save_checkpoint(filename)

    def extra_state(self) -> dict[str, Any]:
        """The network that is not deployed, and the number of the teacher's updates, too."""
        other = self.student if self.deploys_teacher else self.teacher
        state = {self._other: _bare(other).state_dict(), "teacher_updates": self.teacher.updates}
        return {**super().extra_state(), **state}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Restore student and teacher; nnU-Net has put the deployed weights into the student.

        Raises:
            UserError: the checkpoint was not written by a trainer that deploys the same of the two.
        """
        if self._other not in state:
            raise UserError(
                f"the checkpoint in {self.output_folder} holds no {self._other}, but {type(self).__name__} needs one "
                "beside the deployed network; start the training without --c, or from these weights with "
                "-pretrained_weights"
            )
        super().load_extra_state(state)
        student = unwrap(self.student)
        teacher_weights = student.state_dict() if self.deploys_teacher else state["teacher"]
        self.teacher.restore(teacher_weights, state["teacher_updates"])
        if self.deploys_teacher:
            student.load_state_dict(state["student"])

    @property
    def _other(self) -> str:
        return "student" if self.deploys_teacher else "teacher"


def _bare(network: nn.Module) -> nn.Module:
    return network.module if isinstance(network, MovingAverage) else unwrap(network)
