"""`nnunet_semi predict_landmarks`: sub-pixel points of a trained model, with probability and uncertainty.

Every network's heatmaps are decoded at the resolution of the network, a few at a time, and only points go back to the
image: memory does not grow with the resolution at which the image is stored, nor with the number of folds. What it does
grow with is nnU-Net's sliding window, which holds the logits of all landmarks at the resolution of the network, in half
precision: 8 GB for 50 landmarks in 512 × 512 × 300 voxels.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from torch import Tensor

from nnunet_semi import landmark_files
from nnunet_semi.errors import UserError
from nnunet_semi.geometry import Geometry
from nnunet_semi.landmarks.calibration import Calibration, from_validation, uncalibrated
from nnunet_semi.landmarks.decoding import decode_outputs
from nnunet_semi.landmarks.heatmaps import voxel_sigma
from nnunet_semi.landmarks.mirroring import landmark_names, mirroring
from nnunet_semi.landmarks.points import to_raw
from nnunet_semi.landmarks.uncertainty import Consensus, agree
from nnunet_semi.stock import find_trainer_class
from nnunet_semi.trained_model import TrainedModel

DETAILS = ("presence", "uncertainty_mm", "spread_mm", "peak", "width_mm")


@dataclass(frozen=True)
class Members:
    """What the networks found in one case, one row for each fold and each mirrored image.

    Attributes:
        voxel: (M, L, dim) in the image as it was read, array order.
        peak: (M, L)
        width: (M, L) in units of σ.
        geometry: of the image.
    """

    voxel: np.ndarray
    peak: np.ndarray
    width: np.ndarray
    geometry: Geometry


class LandmarkPredictor:
    """The folds of a heatmap model.

    Args:
        model: its files.
        device: where to predict.
        use_mirroring: predict mirrored images, too, where dataset.json pairs left and right landmarks.
        threshold: probability of presence below which a landmark counts as missing; None for what the calibration says.

    Raises:
        UserError: the model is none of a heatmap trainer, or its labels are no landmarks.
    """

    def __init__(
        self, model: TrainedModel, device: torch.device, use_mirroring: bool = True, threshold: float | None = None
    ) -> None:
        trainer = _trainer_class(model)
        with _quiet():
            self._predictor = nnUNetPredictor(
                use_mirroring=False,  # which would not swap left and right landmarks
                device=device,
                perform_everything_on_device=device.type == "cuda",
                allow_tqdm=False,
            )
            self._predictor.initialize_from_trained_model_folder(str(model.folder), model.folds, model.checkpoint)
        self._predictor.network.to(device)  # moved while predicting, its buffers could not be loaded again
        self.dataset_json: dict[str, Any] = self._predictor.dataset_json
        self.plans, self.configuration = self._predictor.plans_manager, self._predictor.configuration_manager
        self.names = landmark_names(self.dataset_json)
        spacing = self.configuration.spacing
        self._sigma = voxel_sigma(trainer.sigma, spacing)
        self.sigma = float(np.mean(np.multiply(self._sigma, spacing)))  # in mm
        self._mirroring = None
        if use_mirroring and trainer.allow_mirroring:
            self._mirroring = mirroring(self.dataset_json, self.plans.transpose_forward, len(spacing))
        self.calibration, self.uncalibrated_because = self._calibration(model)
        self._threshold = self.calibration.threshold if threshold is None else threshold

    @property
    def median_spacing(self) -> float:
        """Size of a pixel along the last axis of the training images, in mm."""
        spacing = self.plans.original_median_spacing_after_transp
        return float(spacing[list(self.plans.transpose_forward).index(2)])

    def _calibration(self, model: TrainedModel) -> tuple[Calibration, str]:
        dim = len(self.configuration.spacing)
        default = uncalibrated(len(self.names), dim)
        if "all" in model.folds:
            return default, "fold all has no validation cases of its own"
        files = [model.checkpoint_file(fold) for fold in model.folds]
        summaries = [file.parent / "validation" / "summary.json" for file in files]
        learned, reason = from_validation(summaries, [_epoch(file) for file in files], self.names, self.sigma, dim)
        return learned or default, reason

    # --- one case ---

    def predict(self, files: Sequence[str]) -> landmark_files.Landmarks:
        """The landmarks of an image on disk, a file for each channel."""
        data, properties = self.plans.image_reader_writer_class().read_images(list(files))
        return self.predict_array(data, properties)

    def predict_array(self, data: np.ndarray, properties: dict[str, Any]) -> landmark_files.Landmarks:
        """The landmarks of an image as nnU-Net's readers give it.

        Args:
            data: (C, z, y, x); a 2D image has one slice.
            properties: of the reader, with the spacing.
        """
        members = self._members(data, properties)
        geometry = members.geometry
        world = np.stack([geometry.world(voxel) for voxel in members.voxel])
        consensus = agree(world, members.peak, members.width * self.sigma, self.sigma)
        return self._landmarks(consensus, geometry)

    def _members(self, data: np.ndarray, properties: dict[str, Any]) -> Members:
        with _quiet():
            preprocessor = self.configuration.preprocessor_class(verbose=False)
            data, _, properties = preprocessor.run_case_npy(
                data, None, properties, self.plans, self.configuration, self.dataset_json
            )
        image = torch.from_numpy(np.ascontiguousarray(data)).float()
        transpose = self.plans.transpose_forward
        geometry = Geometry.from_properties(properties, transpose)
        if geometry.dim != len(self._sigma):
            raise UserError(f"got an image with {geometry.dim} axes; expected {len(self._sigma)}, as the model has")
        rows = []
        for points, peak, width in self._views(image):
            voxel = to_raw(points.double().numpy(), properties, tuple(image.shape[1:]), transpose, geometry.dim)
            rows.append((voxel, peak.numpy(), width.numpy()))
        voxels, peaks, widths = (np.stack(column).astype(float) for column in zip(*rows, strict=True))
        return Members(voxels, peaks, widths, geometry)

    def _views(self, image: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Points, peaks and widths of every fold, and of every fold on the mirrored image."""
        network, mirror = self._predictor.network, self._mirroring
        for parameters in self._predictor.list_of_parameters:
            getattr(network, "_orig_mod", network).load_state_dict(parameters)
            yield self._decoded(image)
            if mirror is not None:
                axis = mirror.axis + image.ndim - 1 - len(self._sigma)  # of the image without its channels
                points, peak, width = self._decoded(image.flip(axis + 1))
                order = list(mirror.order)
                points = points[order].clone()
                points[:, mirror.axis] = image.shape[axis + 1] - 1 - points[:, mirror.axis]
                yield points, peak[order], width[order]

    @torch.inference_mode()
    def _decoded(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        with _quiet():
            outputs = self._predictor.predict_sliding_window_return_logits(image)
        assert isinstance(outputs, Tensor)
        found = decode_outputs(outputs[:, 0] if len(self._sigma) == 2 else outputs, self._sigma)
        return found.points.cpu(), found.peak.cpu(), found.width.cpu()

    def _landmarks(self, consensus: Consensus, geometry: Geometry) -> landmark_files.Landmarks:
        presence = self.calibration.presence(consensus)
        radius = self.calibration.radius(consensus)
        voxel = geometry.voxel(consensus.world)
        voxel[presence < self._threshold] = np.nan
        values = (presence, radius, consensus.spread, consensus.peak, consensus.width)
        return landmark_files.Landmarks(tuple(self.names), voxel, geometry, dict(zip(DETAILS, values, strict=True)))


def _trainer_class(model: TrainedModel) -> Any:
    with _quiet():
        trainer = find_trainer_class(model.trainer)
    if not hasattr(trainer, "sigma") or not hasattr(trainer, "map_loss"):
        raise UserError(
            f"{model.trainer} trains no heatmaps; expected a model of nnUNetTrainerHeatmap or one of its variants, "
            "choose it with -tr (label maps are predicted by `nnUNetv2_predict`)"
        )
    return trainer


def _epoch(checkpoint: Path) -> int:
    return int(torch.load(checkpoint, map_location="cpu", weights_only=False, mmap=True).get("current_epoch", -1))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with contextlib.redirect_stdout(io.StringIO()):  # nnU-Net prints while it loads and preprocesses
        yield
