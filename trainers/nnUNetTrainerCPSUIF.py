"""CPS that leaves out the unlabeled cases on which its two networks disagree (uncertain image filtering)."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from time import time
from typing import Any

import numpy as np
import torch
from batchgenerators.dataloading.nondet_multi_threaded_augmenter import NonDetMultiThreadedAugmenter
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from torch import Tensor
from torch import distributed as dist

from nnunet_semi.consistency.agreement import CaseAgreement, overlaps
from nnunet_semi.plugin_trainer import unwrap
from nnunet_semi.randomness import NumberedBatches, derive_seed, seed_everything
from nnunet_semi.trainers.nnUNetTrainerCPS import nnUNetTrainerCPS
from nnunet_semi.trainers.nnUNetTrainerSemi import Losses
from nnunet_semi.unlabeled.streams import TwoStreams

REFRESH = 4  # after the streams of random numbers of PluginTrainer


class nnUNetTrainerCPSUIF(nnUNetTrainerCPS):
    """CPS on the most certain share of the unlabeled cases, which grows with training.

    A case is certain where both networks give it the same pseudo label. That costs nothing for the cases of which a
    training step has seen a patch; what has not been seen since the last refresh is predicted by both networks, a few
    patches per case and so few in all that they cost at most `refresh_cost` of the time. Every `refresh_every` epochs
    the cases are ranked anew, and the loader starts again with those that are chosen. Before the first refresh all
    cases are sampled, since networks that have learned nothing agree on nothing. Labeled cases are never left out.

    The idea is that of the FLARE22 system SemiSeg-CSSN, whose own formula was not published in code.

    Attributes:
        first_share, last_share: share of the cases at the first refresh and, had training one there, at its end.
        refresh_every: epochs between two refreshes.
        refresh_cost: predicted patches at most, as a share of those of the training steps between two refreshes; each
            costs less than a third of one that is trained on.
        refresh_patches: patches of a case that make its score.
    """

    first_share: float = 0.5
    last_share: float = 0.95
    refresh_every: int = 10
    refresh_cost: float = 0.05
    refresh_patches: int = 2

    def initialize(self) -> None:
        """Build what CPS builds; nothing has been seen yet."""
        super().initialize()
        self._seen: list[tuple[Sequence[str], Tensor]] = []
        self.agreement = CaseAgreement([], 0)  # until the cases are known
        self.sampled: list[str] = []

    # --- what the training steps see ---

    def train_step(self, batch: dict) -> dict:
        """One step of CPS, in which both pseudo labels of every case are compared."""
        self._keys = list(batch["unlabeled_keys"])
        return super().train_step(batch)

    def _losses(
        self, supervised: Tensor, unsupervised: Tensor, pseudo_1: Tensor, pseudo_2: Tensor, confidence: Tensor
    ) -> Losses:
        self._see(self._keys, pseudo_1, pseudo_2)
        return super()._losses(supervised, unsupervised, pseudo_1, pseudo_2, confidence)

    def _see(self, keys: Sequence[str], pseudo_1: Tensor, pseudo_2: Tensor) -> None:
        self._seen.append((keys, overlaps(pseudo_1, pseudo_2, self.label_manager.num_segmentation_heads)))

    def on_train_epoch_end(self, train_outputs: list[dict]) -> None:
        """Take over what all processes have seen in this epoch."""
        super().on_train_epoch_end(train_outputs)
        self._take_over()

    def _take_over(self) -> None:
        found = [(keys, counts.cpu().numpy()) for keys, counts in self._seen]
        self._seen = []
        gathered = [found]
        if self.is_ddp:
            gathered = [[] for _ in range(dist.get_world_size())]
            dist.all_gather_object(gathered, found)
        for keys, counts in (entry for process in gathered for entry in process):
            self.agreement.add(keys, counts)

    # --- the refresh ---

    def on_train_epoch_start(self) -> None:
        """Rank the cases anew where a refresh is due."""
        if self.current_epoch and self.current_epoch % self.refresh_every == 0:
            self._refresh()
        super().on_train_epoch_start()

    def _refresh(self) -> None:
        started = time()
        seed_everything(self._derived_seed(REFRESH, self.current_epoch))
        predicted = self._predict_unseen()
        self._take_over()
        self.agreement.settle(few=self.refresh_patches)
        share = self.first_share + (self.last_share - self.first_share) * self.training_share
        random = np.random.default_rng(derive_seed(self.seed or 0, REFRESH, self.current_epoch))  # the same everywhere
        self.sampled = self.agreement.most_certain(share, random.permutation(len(self.agreement.cases)))
        self._restart_stream()
        scores = dict(zip(self.agreement.cases, self.agreement.scores.tolist(), strict=True))
        known = [scores[case] for case in self.sampled if not np.isnan(scores[case])]
        agreement = f"agreement {min(known):.3f} and more" if known else "no agreement is known yet"
        unknown = f", {len(self.sampled) - len(known)} of them not seen yet" if len(known) < len(self.sampled) else ""
        self.print_to_log_file(
            f"sampling the {len(self.sampled)} most certain of {len(scores)} unlabeled cases ({agreement}{unknown}); "
            f"{predicted} patches were predicted for this in {time() - started:.1f} s"
        )

    @property
    def training_share(self) -> float:
        """The fraction of training done when this epoch starts."""
        return self.current_epoch / self.num_epochs

    def _predict_unseen(self) -> int:
        """Predict patches of the cases that lack some, by both networks; gives their number over all processes."""
        processes = dist.get_world_size() if self.is_ddp else 1
        batch_size = self.stream.streams[1].batch_size
        steps = self.refresh_every * self.num_iterations_per_epoch
        most = int(self.refresh_cost * steps * processes * (self.batch_size + batch_size))
        lacking = self.agreement.unseen(self.refresh_patches)
        patches = [case for case, missing in lacking.items() for _ in range(missing)][:most]
        mine = patches[self.local_rank :: processes]
        networks = [unwrap(network).eval() for network, _ in self.trained()]  # no gradient: nothing to synchronise
        for start in range(0, len(mine), batch_size):
            keys = mine[start : start + batch_size]
            images = self._to_device(patches_of(keys, self.stream.streams[1]))
            with torch.no_grad(), self._autocast():
                pairs = zip(networks, self.views(images), strict=True)
                labels = [self._pseudo_label(network(view))[0] for network, view in pairs]
            self._see(keys, *labels)
        return len(patches)

    def _restart_stream(self) -> None:
        """Let the loader draw from the chosen cases, from the batch on that this epoch begins with.

        Workers draw ahead, from the cases of before; they start anew, so that what an epoch sees is known when it
        begins, and a continued training sees the same.
        """
        augmenter = self.dataloader_train
        in_processes = isinstance(augmenter, NonDetMultiThreadedAugmenter)
        batches: NumberedBatches = augmenter.generator if in_processes else augmenter.data_loader
        if in_processes:
            augmenter._finish()
        batches.number = self.current_epoch * self.num_iterations_per_epoch
        self.stream.streams[1].indices = np.array(self.sampled)
        if in_processes:
            next(augmenter)  # as at the start of a training

    # --- data and checkpoint ---

    _restored: dict[str, Any] | None = None

    def training_stream(self, labeled: nnUNetDataLoader) -> TwoStreams:
        """The two streams, the unlabeled one over the cases that were chosen last."""
        self.stream = super().training_stream(labeled)
        outputs = self.label_manager.num_segmentation_heads
        cases = list(self.unlabeled_cases.identifiers)
        self.agreement = CaseAgreement(cases, outputs if self.label_manager.has_regions else outputs - 1)
        self.sampled = cases
        if self._restored is not None:
            self.agreement.load_state(self._restored["agreement"])
            self.sampled = [case for case in self._restored["sampled"] if case in set(cases)] or cases
        self.stream.streams[1].indices = np.array(self.sampled)
        return self.stream

    def extra_state(self) -> dict[str, Any]:
        """The agreement on each case and the cases that are sampled too."""
        return {**super().extra_state(), "agreement": self.agreement.state(), "sampled": self.sampled}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Restore them, for when the cases are known."""
        super().load_extra_state(state)
        if "agreement" in state:
            self._restored = {name: state[name] for name in ("agreement", "sampled")}


def patches_of(keys: Sequence[str], stream: nnUNetDataLoader) -> Tensor:
    """A patch of each of these cases at a random place, (B, C, *patch), neither rotated nor scaled.

    Rotating and scaling would cost this process, which does not train meanwhile, more than the prediction.
    """
    loader = copy.copy(stream)
    loader.patch_size = loader.final_patch_size
    loader.need_to_pad = np.zeros_like(loader.need_to_pad)
    loader.batch_size = len(keys)
    loader.get_indices = lambda: keys
    loader.transforms = stream.transforms.without_moves()
    return loader.generate_train_batch()["data"]
