"""The base of all semi-supervised trainers: two streams in, a supervised and an unsupervised loss out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from nnunetv2.configuration import ANISO_THRESHOLD
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetBaseDataset, nnUNetDatasetBlosc2
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.utilities.helpers import dummy_context
from torch import Tensor, autocast, nn
from torch import distributed as dist
from torch.optim import Optimizer

from nnunet_semi.consistency.losses import PseudoLabelLoss
from nnunet_semi.consistency.pseudo_label import class_shares, known_labels
from nnunet_semi.consistency.ramp import sigmoid_rampup
from nnunet_semi.consistency.trust import Trust
from nnunet_semi.curves import KEPT, SHARES, CurveLogger, class_curves, distrusted, log_line, vanished
from nnunet_semi.errors import UserError, WrongUse
from nnunet_semi.perturbation.intensity import IntensityPerturbation
from nnunet_semi.plugin_trainer import PluginTrainer
from nnunet_semi.unlabeled.index import UnlabeledIndex
from nnunet_semi.unlabeled.next_stage import (
    find_predictions,
    predict_cases,
    predictions_folder,
    require_predictions,
)
from nnunet_semi.unlabeled.preprocessing import ensure_preprocessed
from nnunet_semi.unlabeled.selection import usable_cases
from nnunet_semi.unlabeled.streams import TwoStreams, unlabeled_loader

Outputs = Tensor | list[Tensor]
LEARNED = "semi_learned"  # curve of the Dice of the class that is learned worst
LITTLE = 0.1  # of it, at half of the training
TRUST = "semi_trust"  # curve of the factor for pseudo labels that shrink or do not count


class Losses(NamedTuple):
    """What one step gives: two scalar losses, the further curves by name, and what the pseudo label holds.

    `shares` is the share of voxels of each class, (K,), and `kept` that of voxels of each class that count; the
    latter is given by methods that log "semi_kept".
    """

    supervised: Tensor
    unsupervised: Tensor
    curves: dict[str, Tensor]
    shares: Tensor
    kept: Tensor | None = None


def split(outputs: Outputs, num_labeled: int) -> tuple[Outputs, Outputs]:
    """The outputs of a joint batch, as those of its labeled and of its unlabeled images."""
    if isinstance(outputs, Tensor):
        return outputs[:num_labeled], outputs[num_labeled:]
    return [o[:num_labeled] for o in outputs], [o[num_labeled:] for o in outputs]


def split_like(outputs: Outputs, images: Sequence[Tensor]) -> list[Outputs]:
    """The outputs of a batch that was joined from several batches of images, as those of each of them."""
    sizes = [len(batch) for batch in images]
    if isinstance(outputs, Tensor):
        return list(outputs.split(sizes))
    return [list(part) for part in zip(*(o.split(sizes) for o in outputs), strict=True)]


def worst_dice(tp: np.ndarray, fp: np.ndarray, fn: np.ndarray) -> float:
    """The smallest Dice of the classes that a reference holds, from counts of voxels (K,); 1 if it holds none."""
    present = tp + fn > 0
    return float((2 * tp / np.maximum(2 * tp + fp + fn, 1))[present].min(initial=1.0))


def finest(outputs: Outputs) -> Tensor:
    """The output at full resolution, with or without deep supervision."""
    return outputs if isinstance(outputs, Tensor) else outputs[0]


class nnUNetTrainerSemi(PluginTrainer):
    """nnUNetTrainer with a stream of unlabeled images; a method overrides `losses`.

    The loss of a step is supervised_weight · supervised + w(t) · unsupervised, with
    w(t) = unsupervised_weight · sigmoid_rampup(t), and less with `wait_for_classes`.

    Attributes:
        supervised_weight: weight of the supervised loss; the curve of that loss is without it.
        unsupervised_weight: full weight of the unsupervised loss.
        ramp_length: fraction of training after which the weight is full; 0 for the full weight from the start.
        wait_for_classes: multiply the weight by the Dice of the class that is learned worst, in nnU-Net's online
            validation of the epoch before, and by `Trust`. Pseudo labels made before a class is learned teach that it
            is nowhere, and so do those of networks that unlearn it.
        unlabeled_batch_size: unlabeled patches per step; None for as many as labeled. Under DDP of all processes
            together, rounded down to the same number in each, at least 1: nnU-Net's batch Dice gathers equal shapes.
        pseudo_weight_ce, pseudo_weight_dice: weights of the two parts of the loss against pseudo labels.
        pseudo_ce_over_all: of the cross entropy part; see `PseudoLabelLoss`.
        pseudo_dice_smoothing, pseudo_dice_background: of the Dice part; see there.
        perturbation: makes the intensity perturbation of a strong view; `IntensityPerturbation.strong` or `.nnunet`.
        curve_names: scalar curves that the method logs beside the two losses and the weight.
    """

    supervised_weight: float = 1.0
    unsupervised_weight: float = 1.0
    ramp_length: float = 1.0
    wait_for_classes: bool = False
    unlabeled_batch_size: int | None = None
    pseudo_weight_ce: float = 1.0
    pseudo_weight_dice: float = 1.0
    pseudo_ce_over_all: bool = False
    pseudo_dice_smoothing: float = 0.0
    pseudo_dice_background: bool = False
    perturbation: Callable[..., IntensityPerturbation] = IntensityPerturbation.strong
    curve_names: Sequence[str] = ("semi_confidence",)

    @property
    def curves(self) -> list[str]:
        """Names of all curves that each epoch logs beside nnU-Net's own and those per class."""
        waiting = [TRUST] if self.wait_for_classes else []
        return ["semi_loss_labeled", "semi_loss_unlabeled", "semi_weight", *self.curve_names, *waiting]

    def curve_logger(self) -> Any:
        """nnU-Net's logger with the curves of unlabeled images."""
        lists = (SHARES, KEPT) if "semi_kept" in self.curves else (SHARES,)
        curves = [*self.curves, LEARNED] if self.wait_for_classes else self.curves
        return CurveLogger(curves, self._output_names(), lists)

    def _output_names(self) -> list[str]:
        """The class or region of each output of the network, as dataset.json names them."""
        labels = {name: value for name, value in self.dataset_json["labels"].items() if name != "ignore"}
        if self.label_manager.has_regions:
            return [name for name in labels if name != "background"]
        return sorted(labels, key=lambda name: np.max(labels[name]))  # nnU-Net allows [1] for 1

    # --- the method ---

    def losses(self, labeled: Tensor, target: Any, unlabeled: Tensor) -> Losses:
        """The losses of one step; what a method is.

        Args:
            labeled: images (B, C, *patch) with nnU-Net's full augmentation.
            target: their targets, as `self.loss` expects them.
            unlabeled: images (U, C, *patch) in the geometry that all their views share, intensities untouched.
        """
        raise NotImplementedError

    def trained(self) -> list[tuple[nn.Module, Optimizer]]:
        """Every network that learns, with its optimizer. A hook for methods with several."""
        return [(self.network, self.optimizer)]

    def initialize(self) -> None:
        """Build what nnU-Net builds, and the loss and the perturbation for unlabeled images."""
        super().initialize()
        deep = isinstance(self.loss, DeepSupervisionWrapper)
        self.pseudo_loss = PseudoLabelLoss(
            regions=self.label_manager.has_regions,
            weight_ce=self.pseudo_weight_ce,
            weight_dice=self.pseudo_weight_dice,
            ce_over_all=self.pseudo_ce_over_all,
            dice_smoothing=self.pseudo_dice_smoothing,
            dice_background=self.pseudo_dice_background,
            resolution_weights=self.loss.weight_factors if deep else (1.0,),
            batch_dice=self.configuration_manager.batch_dice,
            ddp=self.is_ddp,
        )
        patch_size, use_mask = self.configuration_manager.patch_size, self.configuration_manager.use_mask_for_norm
        self.num_image_channels = len(use_mask)
        self.perturb = self.perturbation(
            anisotropic=len(patch_size) == 3 and max(patch_size) / patch_size[0] > ANISO_THRESHOLD,
            masked_channels=tuple(channel for channel, masked in enumerate(use_mask) if masked),
        )
        heads, regions = self.label_manager.num_segmentation_heads, self.label_manager.has_regions
        self.trust = Trust(heads, regions, ddp=self.is_ddp).to(self.device)

    def strong_view(self, images: Tensor) -> Tensor:
        """A view of the images that differs in intensity only, drawn anew at every call."""
        return self.perturb(images, self.num_image_channels)

    def described(self, label: Tensor, confidence: Tensor, mask: Tensor | None = None) -> dict[str, Any]:
        """The last fields of `Losses`: mean confidence and class shares, and where a mask is given, what it keeps."""
        num_outputs = self.label_manager.num_segmentation_heads
        curves = {"semi_confidence": confidence.mean()}
        told: dict[str, Any] = {"curves": curves, "shares": class_shares(label, num_outputs)}
        if mask is not None:
            curves["semi_kept"] = mask.float().mean()
            told["kept"] = class_shares(label, num_outputs, mask)
        return told

    # --- the step ---

    def train_step(self, batch: dict) -> dict:
        """One step on a labeled and an unlabeled batch; the curves come back as one array."""
        target = batch["target"]
        target = [self._to_device(t) for t in target] if isinstance(target, list) else self._to_device(target)
        for _, optimizer in self.trained():
            optimizer.zero_grad(set_to_none=True)
        with self._autocast():
            losses = self.losses(self._to_device(batch["data"]), target, self._to_device(batch["unlabeled"]))
            trust = self._trusted(losses, target)
            weight = self.current_weight() * trust
            loss = self.supervised_weight * losses.supervised + weight * losses.unsupervised
        self._update(loss)
        self.count_iteration()
        scalars = [loss, losses.supervised, losses.unsupervised, weight, *(losses.curves[n] for n in self.curve_names)]
        if self.wait_for_classes:
            scalars.append(trust)
        lists = [losses.shares.float()] if losses.kept is None else [losses.shares.float(), losses.kept.float()]
        packed = torch.cat([torch.stack([s.detach().float() for s in scalars]), *lists]).cpu().numpy()
        return {"loss": packed[0], "curves": packed[1:]}

    def _trusted(self, losses: Losses, target: Any) -> Tensor:
        """The factor for what has become of the pseudo labels since they count."""
        if self.wait_for_classes and self.current_weight() > 0:
            label, known = known_labels(finest(target), self.label_manager)
            labeled = class_shares(label, self.label_manager.num_segmentation_heads, known.expand_as(label))
            self.trust.update(losses.shares, losses.kept, labeled / known.float().mean().clamp(min=1e-9))
        return self.trust()

    def current_weight(self) -> float:
        """Of the unsupervised loss in this step, as far as pseudo labels are trusted."""
        ramp = sigmoid_rampup(self.training_progress, self.ramp_length)
        return self.unsupervised_weight * ramp * (self._learned() if self.wait_for_classes else 1.0)

    def _learned(self) -> float:
        known = self.logger.get_value(LEARNED, step=None)
        return float(np.nan_to_num(known[-1])) if known else 0.0  # NaN: an epoch of another trainer

    def on_validation_epoch_end(self, val_outputs: list[dict]) -> None:
        """Log nnU-Net's pseudo Dice, and that of the class that is learned worst among those that are there."""
        super().on_validation_epoch_end(val_outputs)
        if not self.wait_for_classes:
            return
        names = ("tp_hard", "fp_hard", "fn_hard")
        counts = np.sum([[output[name] for name in names] for output in val_outputs], axis=0)
        if self.is_ddp:
            gathered: list[Any] = [None] * dist.get_world_size()
            dist.all_gather_object(gathered, counts)
            counts = np.sum(gathered, axis=0)
        self.logger.log(LEARNED, worst_dice(*counts), self.current_epoch)

    def _to_device(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.device, non_blocking=True)

    def _autocast(self) -> AbstractContextManager:
        if self.device.type != "cuda":
            return dummy_context()
        # Until the end of 2025 torch kept weights that a pass without gradient had cast, and gave them to the pass with
        # gradient: a network that makes its own pseudo labels learned nothing (pytorch issue 112583).
        return autocast(self.device.type, cache_enabled=False)

    def _update(self, loss: Tensor) -> None:
        scaler = self.grad_scaler
        (loss if scaler is None else scaler.scale(loss)).backward()
        for network, optimizer in self.trained():
            if scaler is not None:
                scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(network.parameters(), 12)
            if scaler is None:
                optimizer.step()
            else:
                scaler.step(optimizer)
        if scaler is not None:
            scaler.update()

    def on_train_epoch_end(self, train_outputs: list[dict]) -> None:
        """Log nnU-Net's training loss and the curves of the epoch."""
        super().on_train_epoch_end([{"loss": output["loss"]} for output in train_outputs])
        values = np.mean([output["curves"] for output in train_outputs], axis=0)
        if self.is_ddp:
            gathered: list[Any] = [None] * dist.get_world_size()
            dist.all_gather_object(gathered, values)
            values = np.mean(gathered, axis=0)
        curves = dict(zip(self.curves, values.tolist(), strict=False))
        per_class = class_curves(values[len(self.curves) :], self.label_manager.num_segmentation_heads)
        for name, value in {**curves, **per_class}.items():
            self.logger.log(name, value, self.current_epoch)
        self.print_to_log_file(log_line(curves, per_class))
        for warning in self.warnings():
            self.print_to_log_file(warning)

    def warnings(self) -> list[str]:
        """What the curves so far have to say to whoever reads the log. A hook."""
        said = vanished(self.logger.get_value(SHARES, step=None), self._output_names())
        if self.wait_for_classes and self.current_epoch == self.num_epochs // 2 and self._learned() < LITTLE:
            said.append(
                "warning: unlabeled images count next to nothing, since a class is not learned yet (see Pseudo dice); "
                "train longer, or with a subclass that has wait_for_classes = False"
            )
        if self.wait_for_classes:
            said.extend(distrusted(self.logger.get_value(TRUST, step=None)))
        return said

    # --- unlabeled data ---

    def get_dataloaders(self) -> tuple[Any, Any]:
        """Find the unlabeled cases first: what is wrong with them is said before nnU-Net starts to load."""
        self.unlabeled_cases = self.unlabeled_dataset()
        return super().get_dataloaders()

    def training_stream(self, labeled: nnUNetDataLoader) -> TwoStreams:
        """Put the unlabeled stream beside nnU-Net's labeled one.

        Raises:
            WrongUse: `unlabeled_batch_size` is less than 1.
        """
        batch_size = self.batch_size
        if self.unlabeled_batch_size is not None:
            batch_size = self.unlabeled_batch_size
            if batch_size < 1:
                raise WrongUse(
                    f"got {batch_size} as unlabeled_batch_size of {type(self).__name__}; expected 1 or more; to train "
                    "without unlabeled images, choose nnUNetTrainer"
                )
            if self.is_ddp:
                batch_size = max(1, batch_size // dist.get_world_size())
        if batch_size == 1 and getattr(self, "cutmix_p", 0) > 0:
            self.print_to_log_file(
                "warning: with one unlabeled patch per process, CutMix has no other to paste from; set "
                "unlabeled_batch_size in a subclass to at least two for each process"
            )
        return TwoStreams(labeled, unlabeled_loader(labeled, self.unlabeled_cases, batch_size))

    def unlabeled_dataset(self) -> nnUNetBaseDataset:
        """The preprocessed unlabeled cases that are selected, after preprocessing those that are missing."""
        index = self._unlabeled_index(self.configuration_name)
        cases, self.selection, sentence = usable_cases(index, self.selection)
        previous = None
        if self.is_cascaded:
            stage_output = Path(self.folder_with_segs_from_previous_stage).parent.parent
            previous = find_predictions(stage_output, self.configuration_name, self.fold)
            known = [index.cases[case] for case in cases]
            require_predictions(previous, known, self.configuration_manager.previous_stage_name)
        self.print_to_log_file(sentence)
        return nnUNetDatasetBlosc2(str(index.folder), cases, None if previous is None else str(previous))

    selection: dict[str, Any] | None = None

    def extra_state(self) -> dict[str, Any]:
        """The selection of unlabeled cases too, and what became of their pseudo labels."""
        return {**super().extra_state(), "selection": self.selection, "trust": self.trust.state_dict()}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Restore the selection of unlabeled cases with which the training began."""
        super().load_extra_state(state)
        self.selection = state.get("selection")
        if "trust" in state:
            self.trust.load_state_dict(state["trust"])

    def _unlabeled_index(self, configuration: str) -> UnlabeledIndex:
        return ensure_preprocessed(
            self.plans_manager, configuration, self.dataset_json, rank=self.local_rank, log=self.print_to_log_file
        )

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """nnU-Net's final validation; before a cascade's next stage, its input for the unlabeled cases too.

        The validation does not depend on the latter: where unlabeled cases cannot be preprocessed for the next stage,
        the log says so, and a later `--val` makes it up.
        """
        stages = []
        for stage in self.stages_to_predict_for():
            try:  # now: after the validation the other processes would wait while the first still scores
                self._unlabeled_index(stage)
                stages.append(stage)
            except UserError as error:
                self.print_to_log_file(
                    f"\n!!! WARNING: the unlabeled cases are not predicted for {stage}: {error}. To train {stage} with "
                    "unlabeled images, mend that and run this training's command again with --val. !!!\n"
                )
        super().perform_actual_validation(save_probabilities)
        for stage in stages:
            self._predict_unlabeled_for(stage)

    def stages_to_predict_for(self) -> list[str]:
        """Every stage that takes the predictions of this one as input, for unlabeled cases too. A hook."""
        planned = self.plans_manager.available_configurations
        return [stage for stage in self.configuration_manager.next_stage_names or [] if stage in planned]

    def _predict_unlabeled_for(self, stage: str) -> None:
        cases = self.unlabeled_dataset()
        index = self._unlabeled_index(stage)
        known = [index.cases[case] for case in index.good]
        mine = known[self.local_rank :: dist.get_world_size() if self.is_ddp else 1]
        self.set_deep_supervision_enabled(False)
        predictor = nnUNetPredictor(device=self.device, allow_tqdm=False)
        predictor.manual_initialization(
            self.network,
            self.plans_manager,
            self.configuration_manager,
            None,
            self.dataset_json,
            type(self).__name__,
            self.inference_allowed_mirroring_axes,
        )
        folder = predictions_folder(self.output_folder_base, stage, self.fold)
        self.print_to_log_file(f"predicting up to {len(mine)} unlabeled cases for {stage}, into {folder}")
        self.print_to_log_file(f"{predict_cases(predictor, cases, mine, folder)} were predicted")
        self.set_deep_supervision_enabled(self.enable_deep_supervision)
