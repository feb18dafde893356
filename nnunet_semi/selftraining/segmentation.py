"""A pseudo label, preprocessed as nnU-Net preprocesses labels, beside an image that is preprocessed already."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from batchgenerators.utilities.file_and_folder_operations import write_pickle
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.training.dataloading.nnunet_dataset import comp_blosc2_params, nnUNetDatasetBlosc2
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

from nnunet_semi.errors import UserError
from nnunet_semi.raw import name_some
from nnunet_semi.selftraining.links import share

FILES_OF_A_CASE = (".pkl", "_seg.b2nd", ".b2nd")  # nnU-Net counts a case as there when its .b2nd is: put in place last


@dataclass(frozen=True)
class PseudoCase:
    """An unlabeled case and its pseudo label.

    Attributes:
        name: its id.
        images: the raw files of its channels.
        label: the label map.
    """

    name: str
    images: tuple[str, ...]
    label: str


@dataclass(frozen=True)
class PseudoRecipe:
    """How pseudo-labeled cases of one configuration become training cases, and where they go; sent to processes.

    Attributes:
        plans: nnU-Net's plans.
        configuration: its name in them.
        dataset_json: of the dataset.
        unlabeled: the preprocessed unlabeled cases, whose images are shared; it need not hold all.
        folder: the preprocessed training cases.
        scratch: a folder beside that one, where a case lies until it is complete.
    """

    plans: dict[str, Any]
    configuration: str
    dataset_json: dict[str, Any]
    unlabeled: Path
    folder: Path
    scratch: Path

    def __call__(self, case: PseudoCase) -> None:
        """Stores a case.

        Raises:
            UserError: the label map cannot be read, does not fit its image, or holds values that are no labels.
        """
        made = self.scratch / case.name
        seg, properties = self._segmentation(case, made)
        write_pickle(properties, f"{made}.pkl")
        blocks, chunks = comp_blosc2_params(seg.shape, tuple(self._configuration.patch_size), seg.itemsize)
        nnUNetDatasetBlosc2.save_seg(seg, f"{made}_seg", chunks_seg=chunks, blocks_seg=blocks)
        for ending in FILES_OF_A_CASE:
            os.replace(f"{made}{ending}", self.folder / (case.name + ending))

    @property
    def _configuration(self) -> ConfigurationManager:
        return PlansManager(self.plans).get_configuration(self.configuration)

    def _segmentation(self, case: PseudoCase, made: Path) -> tuple[np.ndarray, dict[str, Any]]:
        """The segmentation and properties of a case, whose image is put in place beside `made`."""
        image = self.unlabeled / f"{case.name}.b2nd"
        preprocessor = self._configuration.preprocessor_class(verbose=False)
        self._refuse_strange_values(case)
        if image.is_file() and is_default(preprocessor):
            seg, properties = self._run(segmentation_only(preprocessor), case, ConfigurationWithoutData)[1:]
            if seg.shape[1:] == preprocessed_shape(self.unlabeled, case.name):
                share(image, made.with_name(f"{case.name}.b2nd"))
                return seg, properties
        data, seg, properties = self._run(preprocessor.run_case, case, ConfigurationManager)
        self._store_image(data, made)
        return seg, properties

    def _run(
        self, run_case: Callable[..., tuple], case: PseudoCase, view: type[ConfigurationManager]
    ) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
        plans = PlansManager(self.plans)
        configuration = view(plans.get_configuration(self.configuration).configuration)
        try:
            data, seg, properties = run_case(list(case.images), case.label, plans, configuration, self.dataset_json)
        except (AssertionError, ValueError, RuntimeError, OSError) as error:
            raise UserError(
                f"{case.label} cannot be used as the label of its image ({type(error).__name__}: "
                f"{str(error).splitlines()[0] if str(error) else 'no reason given'}); predict this case again"
            ) from error
        return data, seg.astype(np.int16, copy=False), properties

    def _refuse_strange_values(self, case: PseudoCase) -> None:
        plans = PlansManager(self.plans)
        manager = plans.get_label_manager(self.dataset_json)
        known = {0, *manager.all_labels} | ({manager.ignore_label} if manager.has_ignore_label else set())
        try:
            found = np.unique(plans.image_reader_writer_class().read_seg(case.label)[0]).tolist()
        except (OSError, RuntimeError, ValueError, SyntaxError) as error:  # SyntaxError: of a broken PNG, by Pillow
            raise UserError(
                f"{case.label} cannot be read as a label map ({type(error).__name__}: "
                f"{next(iter(str(error).splitlines()), 'no reason given')}); predict this case again"
            ) from error
        strange = sorted(set(found) - known)
        if strange:
            values = name_some(f"{value:g}" for value in strange)
            raise UserError(
                f"{case.label} holds {values}, which is no label in dataset.json; predict this case again with a model "
                "of this dataset"
            )

    def _store_image(self, data: np.ndarray, made: Path) -> None:
        data = data.astype(np.float32, copy=False)
        blocks, chunks = comp_blosc2_params(data.shape, tuple(self._configuration.patch_size), data.itemsize)
        empty = np.zeros((1, *data.shape[1:]), dtype=np.int16)  # save_case writes both; the other is written again
        nnUNetDatasetBlosc2.save_case(data, empty, {}, str(made), chunks=chunks, blocks=blocks)
        Path(f"{made}_seg.b2nd").unlink()


class ConfigurationWithoutData(ConfigurationManager):
    """A configuration that leaves images as they are, since only the labels are asked for."""

    @property
    def resampling_fn_data(self) -> Callable[..., np.ndarray]:
        """The images, not resampled."""
        return lambda data, *_: data


def is_default(preprocessor: DefaultPreprocessor) -> bool:
    """Whether the order of nnU-Net's own preprocessing is followed, of which a part can be left out."""
    return type(preprocessor).run_case_npy is DefaultPreprocessor.run_case_npy


def segmentation_only(preprocessor: DefaultPreprocessor) -> Callable[..., tuple]:
    """`run_case` of a preprocessor, which then does not normalise; cropping, the label and all else are the same."""
    preprocessor._normalize = lambda data, *_: data
    return preprocessor.run_case


def preprocessed_shape(folder: Path, case: str) -> Sequence[int]:
    """The spatial shape of a preprocessed case."""
    data, _, _, _ = nnUNetDatasetBlosc2(str(folder), [case]).load_case(case)
    return tuple(data.shape[1:])
