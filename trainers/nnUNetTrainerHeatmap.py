"""Landmarks by heatmap regression: exact points in, heatmaps on the device, sub-pixel points out, in millimetres."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.training.data_augmentation.compute_initial_patch_size import get_patch_size
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetBaseDataset
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from nnunetv2.utilities.helpers import dummy_context
from torch import Tensor, autocast, nn
from torch import distributed as dist
from torch.optim import AdamW, Optimizer

from nnunet_semi import landmark_files
from nnunet_semi.errors import UserError
from nnunet_semi.evaluation.landmarks import MICRO, evaluate_landmarks
from nnunet_semi.geometry import Geometry
from nnunet_semi.landmarks import losses
from nnunet_semi.landmarks.accuracy import mean_error, patch_errors, success_rate
from nnunet_semi.landmarks.calibration import SAMPLES, samples
from nnunet_semi.landmarks.curves import MRE, SDR, LandmarkCurves
from nnunet_semi.landmarks.dataset import check_geometry, landmark_folder, read_landmarks
from nnunet_semi.landmarks.decoding import decode_outputs
from nnunet_semi.landmarks.heatmaps import voxel_sigma
from nnunet_semi.landmarks.loader import PointLoader
from nnunet_semi.landmarks.mirroring import landmark_names, mirroring
from nnunet_semi.landmarks.points import to_raw
from nnunet_semi.plugin_trainer import PluginTrainer

MEETING = 20  # cases of the validation after which the processes wait for each other, as nnU-Net's do
WORDS = {"New best EMA pseudo Dice": "New best moving average of -MRE [mm]", "Pseudo dice": "MRE per landmark [mm]"}


class nnUNetTrainerHeatmap(PluginTrainer):
    """One heatmap per label of dataset.json, learned from landmarksTr/CASE.json.

    The network is nnU-Net's, with its outputs, so that `nnUNetv2_predict` gives a label map with a blob at every
    landmark. Missing landmarks (null in the file) teach nothing; those outside of a patch teach that nothing is there.

    Attributes:
        initial_lr: of AdamW.
        sigma: of the heatmaps, in mm; never below a voxel.
        map_loss: the loss of one heatmap, a function of `nnunet_semi.landmarks.losses` wrapped in staticmethod.
        rotation: largest angle of the augmentation, in degrees.
        success_radius: what counts as found in the online validation, in mm.
    """

    initial_lr: float = 3e-3
    sigma: float = 2.0
    map_loss: Callable[[Tensor, Tensor], Tensor] = staticmethod(losses.dice_bce_where)
    rotation: float = 15.0
    success_radius: float = 2.0

    def curve_logger(self) -> Any:
        """nnU-Net's logger with errors in mm."""
        return LandmarkCurves(self.success_radius)

    def initialize(self) -> None:
        """Build what nnU-Net builds, after a look at dataset.json.

        Raises:
            UserError: its labels are not landmarks, or the configuration is a stage of a cascade.
        """
        if self.is_cascaded:
            raise UserError(
                f"the configuration {self.configuration_name} refines the predictions of another one, which landmarks "
                "cannot; train 2d, 3d_lowres or 3d_fullres"
            )
        self.names = landmark_names(self.dataset_json)
        spacing = self.configuration_manager.spacing
        self.voxel_sigma = voxel_sigma(self.sigma, spacing)
        self.transpose = self.plans_manager.transpose_forward
        allowed = mirroring(self.dataset_json, self.transpose, len(spacing))
        self.mirroring = allowed if self.allow_mirroring else None
        super().initialize()

    def configure_optimizers(self) -> tuple[Optimizer, PolyLRScheduler]:
        """AdamW with nnU-Net's decay of the learning rate; its SGD learns heatmaps far more slowly (BENCHMARKS.md)."""
        optimizer = AdamW(self.network.parameters(), self.initial_lr, weight_decay=self.weight_decay)
        return optimizer, PolyLRScheduler(optimizer, self.initial_lr, self.num_epochs)

    def _build_loss(self) -> nn.Module:
        weights = [1.0]
        if self.enable_deep_supervision:
            weights = [0.5**level for level in range(len(self._get_deep_supervision_scales()))]
            weights[-1] = 1e-6 if self.is_ddp else 0.0  # as in nnU-Net: DDP wants every output used
        return losses.HeatmapLoss(self.map_loss, self.voxel_sigma, [weight / sum(weights) for weight in weights])

    # --- data ---

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self) -> tuple:
        """nnU-Net's choice with smaller rotations; mirroring needs left-right pairs, and is none at prediction."""
        _, two_dimensional, _, _ = super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        angle = np.deg2rad(self.rotation)
        patch_size = self.configuration_manager.patch_size
        initial = get_patch_size(patch_size, *[(-angle, angle)] * 3, (0.85, 1.25))
        if two_dimensional:
            initial[0] = patch_size[0]
        self.inference_allowed_mirroring_axes = None
        axes = None if self.mirroring is None else (self.mirroring.axis,)
        return (-angle, angle), two_dimensional, initial, axes

    def get_tr_and_val_datasets(self) -> tuple[nnUNetBaseDataset, nnUNetBaseDataset]:
        """nnU-Net's datasets; the landmarks of their cases are read with them."""
        datasets = super().get_tr_and_val_datasets()
        self.landmarks = {case: points for dataset in datasets for case, points in self._read(dataset).items()}
        return datasets

    def _read(self, dataset: nnUNetBaseDataset) -> dict[str, landmark_files.Landmarks]:
        """The landmarks of all cases of a dataset, which fit to the configuration and to the preprocessed cases."""
        folder = landmark_folder(self.plans_manager.dataset_name)
        landmarks = read_landmarks(folder, dataset.identifiers, self.names)
        for case, points in landmarks.items():
            path = folder / f"{case}.json"
            check_geometry(path, points.geometry, self._geometry(dataset.load_case(case)[-1]))
            if points.geometry.dim != len(self.voxel_sigma):
                raise UserError(
                    f"{path} has {points.geometry.dim} axes, but the configuration {self.configuration_name} "
                    f"{len(self.voxel_sigma)}; landmarks in volumes need a 3d configuration"
                )
        return landmarks

    def _geometry(self, properties: dict) -> Geometry:
        return Geometry.from_properties(properties, self.transpose)

    def training_stream(self, labeled: nnUNetDataLoader) -> Any:
        """Points beside images, in the place of segmentations."""
        return self._point_loader(labeled)

    def _augmenter(self, loader: Any, *arguments: Any) -> Any:
        if type(loader) is nnUNetDataLoader:  # the validation's
            loader = self._point_loader(loader)
        return super()._augmenter(loader, *arguments)

    def _point_loader(self, loader: nnUNetDataLoader) -> PointLoader:
        voxel = {case: landmarks.voxel for case, landmarks in self.landmarks.items()}
        return PointLoader.of(loader, voxel, self.transpose, self.mirroring)

    # --- online validation ---

    def validation_step(self, batch: dict) -> dict:
        """Loss and radial errors (B, L) in mm, NaN for landmarks that are missing or not in the patch."""
        images, points = (batch[name].to(self.device, non_blocking=True) for name in ("data", "target"))
        with autocast(self.device.type) if self.device.type == "cuda" else dummy_context():
            outputs = self.network(images)
            loss = self.loss(outputs, points)
        finest = outputs[0] if self.enable_deep_supervision else outputs
        errors = patch_errors(finest, points, self.voxel_sigma, self.configuration_manager.spacing)
        return {"loss": loss.cpu().numpy(), "errors": errors.cpu().numpy()}

    def on_validation_epoch_end(self, val_outputs: list[dict]) -> None:
        """Log the mean radial error and the success rate; nnU-Net's best checkpoint follows the former."""
        gathered: list[Any] = [val_outputs]
        if self.is_ddp:
            gathered = [None] * dist.get_world_size()
            dist.all_gather_object(gathered, val_outputs)
        outputs = [output for part in gathered for output in part]
        errors = np.concatenate([output["errors"] for output in outputs])
        mre, sdr = mean_error(errors), success_rate(errors, self.success_radius)
        if np.isnan(mre):  # no landmark in any patch: a moving average never recovers from NaN
            mre, sdr = next(reversed(self.logger.get_value(MRE, step=None)), self._diagonal()), 0.0
        per_landmark = [mean_error(column) for column in errors.T]
        self.logger.log("mean_fg_dice", -mre, self.current_epoch)
        self.logger.log("dice_per_class_or_region", per_landmark, self.current_epoch)
        self.logger.log("val_losses", float(np.mean([output["loss"] for output in outputs])), self.current_epoch)
        self.logger.log(MRE, mre, self.current_epoch)
        self.logger.log(SDR, sdr, self.current_epoch)
        self.print_to_log_file(f"MRE {mre:.3f} mm  SDR {100 * sdr:.1f} % within {self.success_radius:g} mm")

    def _diagonal(self) -> float:
        """Of a patch, in mm: no error in it is larger."""
        manager = self.configuration_manager
        return float(np.linalg.norm(np.multiply(manager.patch_size, manager.spacing)))

    def print_to_log_file(self, *arguments: Any, **options: Any) -> None:
        """nnU-Net's log, where it would call these numbers a Dice, with their names."""
        for stock, ours in WORDS.items():
            arguments = tuple(a.replace(stock, ours) if isinstance(a, str) else a for a in arguments)
        super().print_to_log_file(*arguments, **options)

    # --- final validation ---

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """Write the landmarks of every validation case to validation/CASE.json, and validation/summary.json.

        The summary holds what `predict_landmarks` calibrates by, so that it travels with the model.
        """
        folder = Path(self.output_folder, "validation")
        folder.mkdir(parents=True, exist_ok=True)
        _, cases = self.do_split()
        dataset = self.dataset_class(self.preprocessed_dataset_folder, cases)
        references = landmark_folder(self.plans_manager.dataset_name)
        self._read(dataset)
        predictor = self._predictor()
        processes = dist.get_world_size() if self.is_ddp else 1
        for number, case in enumerate(cases[self.local_rank :: processes]):
            if self.is_ddp and number % MEETING == MEETING - 1 and number < len(cases) // processes:
                dist.barrier()  # or a process that is ahead waits longer at the end than NCCL allows
            data, _, _, properties = dataset.load_case(case)
            self.print_to_log_file(f"predicting {case}, shape {data.shape}")
            outputs = predictor.predict_sliding_window_return_logits(torch.from_numpy(data[:]))
            landmark_files.write(folder / f"{case}.json", self._found(outputs, properties))
        self.set_deep_supervision_enabled(self.enable_deep_supervision)
        if self.is_ddp:
            dist.barrier()
        if self.local_rank == 0:
            for path in folder.glob("*.json"):
                if path.stem not in cases:  # of an earlier validation with another split
                    path.unlink()
            evaluation = evaluate_landmarks(references, folder, chill=True)
            pairs = ((case.reference, case.prediction) for case in evaluation.cases)
            evaluation.write(folder, overwrite=True, further={SAMPLES: samples(pairs, self.current_epoch)})
            self.logger.log_summary("final_val/mre_mm", evaluation.statistics["MRE"][MICRO].mean)
            self.print_to_log_file(f"Validation complete\n{evaluation.as_text()}")

    def _predictor(self) -> nnUNetPredictor:
        self.set_deep_supervision_enabled(False)
        self.network.eval()
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
        return predictor

    def _found(self, outputs: Tensor, properties: dict) -> landmark_files.Landmarks:
        """The landmarks of one case from the outputs (1 + L, *shape) for the preprocessed case."""
        shape = outputs.shape[1:]
        geometry = self._geometry(properties)
        decoded = decode_outputs(outputs[:, 0] if geometry.dim == 2 else outputs, self.voxel_sigma)
        points = to_raw(decoded.points.cpu().double().numpy(), properties, shape, self.transpose, geometry.dim)
        details = {"peak": decoded.peak.cpu().numpy(), "width": decoded.width.cpu().numpy()}
        return landmark_files.Landmarks(tuple(self.names), points, geometry, details)


class nnUNetTrainerHeatmapL1(nnUNetTrainerHeatmap):
    """The mean absolute error of the heatmaps."""

    map_loss = staticmethod(losses.l1)


class nnUNetTrainerHeatmapFocal(nnUNetTrainerHeatmap):
    """The focal loss of the published baseline of CL-Detection 2023."""

    map_loss = staticmethod(losses.focal)
