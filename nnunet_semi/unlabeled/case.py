"""One unlabeled case: read and checked, preprocessed by nnU-Net's own preprocessor, stored whole or not at all."""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.training.dataloading.nnunet_dataset import comp_blosc2_params, nnUNetDatasetBlosc2
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager

from nnunet_semi.errors import UserError
from nnunet_semi.raw import channel_names, dataset_id, name_some
from nnunet_semi.unlabeled.index import FILES_OF_A_CASE
from nnunet_semi.unlabeled.reading import BadCase, CheckedPlans, brief

# Everything in the plans on which a preprocessed case depends. The patch size is not among them: it decides how the
# arrays are cut into chunks, not what they hold.
SETTINGS_OF_PLANS = ("image_reader_writer", "transpose_forward", "foreground_intensity_properties_per_channel")
SETTINGS_OF_CONFIGURATION = (
    "preprocessor_name",
    "spacing",
    "normalization_schemes",
    "use_mask_for_norm",
    "resampling_fn_data",
    "resampling_fn_data_kwargs",
    "resampling_fn_seg",
    "resampling_fn_seg_kwargs",
)


@dataclass(frozen=True)
class Recipe:
    """How the unlabeled cases of one data identifier are preprocessed, and where they go.

    Attributes:
        plans: nnU-Net's plans.
        configuration_name: a configuration with this data identifier.
        configuration: that configuration with all it inherits.
        dataset_json: dataset.json of the labeled cases.
        dataset_folder: the dataset in nnUNet_preprocessed.
    """

    plans: dict[str, Any]
    configuration_name: str
    configuration: dict[str, Any]
    dataset_json: dict[str, Any]
    dataset_folder: Path

    @property
    def data_identifier(self) -> str:
        """The name nnU-Net gives to data preprocessed in this way."""
        return self.configuration["data_identifier"]

    @property
    def folder(self) -> Path:
        """Where the preprocessed unlabeled cases are, beside the labeled ones; holds .b2nd and .pkl files only."""
        return self.dataset_folder / f"{self.data_identifier}_unlabeled"

    @property
    def index_path(self) -> Path:
        """The file that says what is in `folder`."""
        return self.folder.with_name(f"{self.folder.name}.jsonl")

    @property
    def command(self) -> str:
        """The command line that preprocesses by this recipe."""
        return preprocess_command(self.dataset_folder.name, [self.configuration_name], self.plans["plans_name"])

    @cached_property
    def settings(self) -> str:
        """A hash of everything that preprocessing depends on; where it changes, cases are preprocessed again."""
        relevant = [
            [self.plans.get(key) for key in SETTINGS_OF_PLANS],
            [self.configuration.get(key) for key in SETTINGS_OF_CONFIGURATION],
            [self.dataset_json["file_ending"], len(channel_names(self.dataset_json))],
        ]
        return hashlib.sha256(json.dumps(relevant, sort_keys=True, default=str).encode()).hexdigest()[:16]


def preprocess_command(dataset: str, configurations: Sequence[str] | None, plans: str) -> str:
    """What to type to preprocess the unlabeled cases of a dataset; None stands for the default configurations."""
    command = f"nnunet_semi preprocess -d {dataset_id(dataset)}"
    command += f" -c {' '.join(configurations)}" if configurations else ""
    return command + (f" -p {plans}" if plans != "nnUNetPlans" else "")


class CasePreprocessor:
    """Preprocesses cases by one recipe; made once in each worker.

    Args:
        recipe: how and where to.
        scratch: a folder on the file system of `recipe.folder`, where a case lies until it is complete.
    """

    def __init__(self, recipe: Recipe, scratch: Path) -> None:
        self.recipe = recipe
        self.scratch = scratch
        self.plans = CheckedPlans(recipe.plans, recipe.dataset_json)
        self.configuration = ConfigurationManager(recipe.configuration)
        self.preprocessor = self._find_preprocessor()

    def __call__(self, case: str, files: Sequence[str]) -> tuple[tuple[int, ...] | None, str | None]:
        """Stores the case; gives its spatial shape and None, or None and the reason why it is bad.

        Raises:
            UserError: the result could not be written, which is not the fault of the case.
            MemoryError: nor is this.
        """
        try:
            self._check_names(files)
            with redirect_stdout(io.StringIO()):  # readers print what is wrong and raise without a word
                data, seg, properties = self.preprocessor.run_case(
                    files, None, self.plans, self.configuration, self.recipe.dataset_json
                )
            if 0 in data.shape or not np.isfinite(data).all():
                raise BadCase(f"{self._name} made NaN, infinite values or nothing at all of it")
        except BadCase as error:
            return None, str(error)
        except MemoryError:
            raise
        except Exception as error:
            return None, f"{self._name} failed on it ({type(error).__name__}: {brief(error)})"
        self._store(case, data, seg, properties)
        return tuple(data.shape[1:]), None

    def _find_preprocessor(self) -> DefaultPreprocessor:
        name = self.configuration.preprocessor_name
        found = self.configuration.preprocessor_class
        if found is None:
            raise UserError(
                f"the plans ask for the preprocessor {name}, which is not in nnunetv2.preprocessing of this "
                "installation; add it there, or plan again without it"
            )
        return found(verbose=False)

    @property
    def _name(self) -> str:
        return type(self.preprocessor).__name__

    def _check_names(self, files: Sequence[str]) -> None:
        ending = self.recipe.dataset_json["file_ending"]
        numbers = [file[: -len(ending)][-4:] for file in files]
        if numbers != [f"{number:04d}" for number in range(len(files))]:
            expected = ", ".join(f"{number:04d}" for number in range(len(self.plans.channels)))
            raise BadCase(f"its files are numbered {name_some(numbers)}; expected {expected}")

    def _store(self, case: str, data: np.ndarray, seg: np.ndarray, properties: dict[str, Any]) -> None:
        data, seg = data.astype(np.float32, copy=False), seg.astype(np.int16, copy=False)
        patch_size = tuple(self.configuration.patch_size)
        blocks, chunks = comp_blosc2_params(data.shape, patch_size, data.itemsize)
        blocks_seg, chunks_seg = comp_blosc2_params(seg.shape, patch_size, seg.itemsize)
        properties["class_locations"] = {}  # nnU-Net's loader reads this key of every case
        try:
            nnUNetDatasetBlosc2.save_case(
                data,
                seg,
                properties,
                str(self.scratch / case),
                chunks=chunks,
                blocks=blocks,
                chunks_seg=chunks_seg,
                blocks_seg=blocks_seg,
            )
            for ending in FILES_OF_A_CASE:  # nnU-Net counts a case as there when its .b2nd, the last, is
                os.replace(self.scratch / (case + ending), self.recipe.folder / (case + ending))
        except Exception as error:
            raise UserError(
                f"case {case} could not be written into {self.recipe.folder} ({brief(error)}); make sure that there is "
                "free space and that you may write there, then run again"
            ) from error
