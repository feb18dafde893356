"""One unlabeled case: predicted in every view of an estimator, and compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetBaseDataset, nnUNetDatasetBlosc2
from nnunetv2.utilities.label_handling.label_handling import LabelManager, convert_labelmap_to_one_hot
from torch import Tensor

from nnunet_semi.errors import UserError
from nnunet_semi.filtering.estimators import Classes, LabelMap, PerClass, agreement, certainty
from nnunet_semi.filtering.model import View, Views
from nnunet_semi.filtering.shape_of_prediction import components, volumes, voxel_size
from nnunet_semi.filtering.table import Row


def foreground_classes(label_manager: LabelManager) -> dict[str, tuple[int, ...]]:
    """Name → labels of every class, or of every region where the network predicts regions, in its order."""
    named = {name: value for name, value in label_manager.label_dict.items() if name != "ignore"}
    if label_manager.has_regions:
        regions = {name: tuple(np.atleast_1d(value).tolist()) for name, value in named.items()}
        return {name: labels for name, labels in regions.items() if set(labels) != {0}}
    return {name: (int(value),) for name, value in sorted(named.items(), key=lambda item: item[1]) if int(value)}


class NotFinite(Exception):
    """A network's outputs for one image are NaN or infinite, as after an overflow of half precision."""


class CaseScorer:
    """Scores cases one by one; of each, label maps of all views and the logits of one are in memory at once.

    A case for which the outputs are not finite counts as one without a prediction: its score is 0.

    Label maps are compared on the grid of the network, that of the preprocessed cases: nothing is resampled, and the
    images that a person looks at lie on the same grid.

    Args:
        predictor: of the model.
        views: what is compared.
        cases: the preprocessed unlabeled cases.

    Attributes:
        not_finite: the cases so far for which outputs were not finite.
    """

    def __init__(self, predictor: nnUNetPredictor, views: Views, cases: nnUNetBaseDataset) -> None:
        self.predictor = predictor
        self.views = views
        self.cases = cases
        self.not_finite: list[str] = []
        self.labels = predictor.label_manager
        self.classes: Classes = foreground_classes(self.labels)

    def __call__(self, case: str) -> tuple[Row, LabelMap]:
        """The row of the table, and the reference prediction.

        Raises:
            UserError: weights of the network are not finite.
        """
        image, properties = self._image(case)
        try:
            score, scores, reference = self._compared(case, image)
        except NotFinite:
            self.not_finite.append(case)
            score, scores = 0.0, dict.fromkeys(self.classes)
            reference = np.zeros(tuple(image.shape[1:]), np.uint8)
        return self._row(case, score, scores, reference, properties), reference

    def _compared(self, case: str, image: Tensor) -> tuple[float, PerClass, LabelMap]:
        """The score, that of each class, and the reference prediction."""
        members, total = [], None
        for view in self.views.members:
            logits = self._logits(case, image, view)
            members.append(self._label_map(logits))
            if self.views.reference is None:
                total = logits.float() if total is None else total.add_(logits)
        if self.views.reference is None:
            assert total is not None
            logits = total.div_(len(members))
        else:
            logits = self._logits(case, image, self.views.reference)
        reference = self._label_map(logits)
        if members:
            return *agreement(members, reference, self.classes), reference
        return *certainty(logits, reference, self.classes, self.labels.has_regions), reference

    def _image(self, case: str) -> tuple[Tensor, dict[str, Any]]:
        data, _, previous, properties = self.cases.load_case(case)
        image = np.asarray(data[:], dtype=np.float32)
        if previous is not None:  # a cascade: what the previous stage predicts is further channels
            image = np.vstack(
                [image, convert_labelmap_to_one_hot(previous[:], self.labels.foreground_labels, np.float32)]
            )
        return torch.from_numpy(image), properties

    def _logits(self, case: str, image: Tensor, view: View) -> Tensor:
        self.predictor.list_of_parameters = view.weights
        patch_size = self.predictor.configuration_manager.patch_size
        axes = [axis + image.ndim - len(patch_size) for axis in view.axes]  # a 2D patch lies in the last two axes
        try:
            logits = self.predictor.predict_logits_from_preprocessed_data(image.flip(axes))
        except RuntimeError as error:
            if "Encountered inf" in str(error):  # nnU-Net looks for these, and not for NaN
                raise NotFinite from error
            raise
        if not torch.isnan(logits).any():
            return logits.flip(axes) if axes else logits  # a copy, also without axes
        if not all(value.isfinite().all() for weights in view.weights for value in weights.values()):
            raise UserError(f"the network predicts NaN for the unlabeled case {case}; train it again, it has diverged")
        raise NotFinite

    def _label_map(self, logits: Tensor) -> LabelMap:
        smallest = np.uint8 if max(self.labels.all_labels) < 256 else np.uint16
        labels = self.labels.convert_logits_to_segmentation(logits) if self.labels.has_regions else argmax(logits)
        return np.asarray(labels).astype(smallest, copy=False)

    def _row(
        self, case: str, score: float, scores: dict[str, float | None], reference: LabelMap, properties: dict[str, Any]
    ) -> Row:
        plans, configuration = self.predictor.plans_manager, self.predictor.configuration_manager
        size = voxel_size(properties, configuration.spacing, plans.transpose_forward)
        counts = components(reference, self.classes)
        return Row(case, score, all(counts.values()), scores, volumes(reference, self.classes, size), counts)


def argmax(logits: Tensor) -> Tensor:
    """The class of the largest of logits (K, *shape), the first of equals; uint8 for up to 256 classes, else int16.

    As nnU-Net's argmax, several times faster: it reads each class once, in order, on all of torch's threads.
    """
    largest = logits[0].clone()
    label = torch.zeros(largest.shape, dtype=torch.uint8 if len(logits) <= 256 else torch.int16)
    for index, plane in enumerate(logits[1:], start=1):
        label.masked_fill_(plane > largest, index)
        torch.maximum(largest, plane, out=largest)
    return label


def store_prediction(prediction: LabelMap, folder: Path, case: str) -> None:
    """Stores a label map as folder/CASE.b2nd, in nnU-Net's own format for label maps, whole or not at all."""
    unfinished = folder / f"unfinished_{case}"
    nnUNetDatasetBlosc2.save_seg(prediction, str(unfinished))
    unfinished.with_name(f"{unfinished.name}.b2nd").replace(folder / f"{case}.b2nd")
