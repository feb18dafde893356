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
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from nnunetv2.training.dataloading.nnunet_dataset import comp_blosc2_params, nnUNetDatasetBlosc2
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

from nnunet_semi.errors import UserError
from nnunet_semi.raw import channel_names, dataset_id, name_some
from nnunet_semi.unlabeled.index import FILES_OF_A_CASE

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
SPACING_OF_2D = 900  # nnU-Net's readers give a 2D image a slice distance 999 times its pixel size


class BadCase(Exception):
    """A case that training cannot use; the message says why."""


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
    chosen = f" -c {' '.join(configurations)}" if configurations else ""
    return f"nnunet_semi preprocess -d {dataset_id(dataset)}{chosen}" + (
        f" -p {plans}" if plans != "nnUNetPlans" else ""
    )


class CheckedPlans(PlansManager):
    """Plans whose reader refuses, with a reason, what must not reach a preprocessor.

    The check sits in the reader so that a preprocessor of the user's own is checked as well, and no file is read twice.
    """

    def __init__(self, plans: dict[str, Any], dataset_json: dict[str, Any]) -> None:
        super().__init__(plans)
        self.channels = channel_names(dataset_json)

    @property
    def image_reader_writer_class(self) -> type[BaseReaderWriter]:
        """nnU-Net's reader for this dataset, checking."""
        reader: Any = super().image_reader_writer_class
        plans = self

        class CheckedReader(reader):
            def read_images(self, image_fnames: Sequence[str]) -> tuple[np.ndarray, dict]:
                try:
                    data, properties = super().read_images(image_fnames)
                except Exception as error:
                    raise BadCase(why_unreadable(reader(), image_fnames, error)) from error
                plans.check_image(data, properties["spacing"])
                return data, properties

        return CheckedReader

    def check_image(self, data: np.ndarray, spacing: Sequence[float]) -> None:
        """Raises BadCase for what cannot be an unlabeled case of this dataset.

        Args:
            data: channels × z × y × x, as nnU-Net's readers give it.
            spacing: of z, y and x in millimetres.
        """
        if len(data) != len(self.channels):
            raise BadCase(f"it has {len(data)} channel(s); expected {len(self.channels)} ({', '.join(self.channels)})")
        if 0 in data.shape:
            raise BadCase(f"it is empty: its shape is {data.shape[1:]}")
        self._check_dimension(data.shape[1:], spacing)
        if not all(np.isfinite(value) and value > 0 for value in spacing):
            raise BadCase(f"its spacing is {tuple(spacing)}; expected positive numbers")
        for name, channel in zip(self.channels, data, strict=True):
            unusable = channel.size - np.count_nonzero(np.isfinite(channel))
            if unusable:
                raise BadCase(f"{unusable} of {channel.size} values of its channel {name} are NaN or infinite")
        if all(channel.min() == channel.max() for channel in data):
            raise BadCase(f"it is empty: all values are {data.flat[0]:g}")

    def _check_dimension(self, shape: Sequence[int], spacing: Sequence[float]) -> None:
        slices = self.plans.get("original_median_shape_after_transp", [None])[0]
        if slices is None:
            return
        volumes_planned = any(len(c.get("patch_size", [])) == 3 for c in self.plans["configurations"].values())
        if slices == 1 and not volumes_planned and shape[0] != 1:
            raise BadCase(f"it is a volume of shape {tuple(shape)}; the labeled cases are 2D images")
        if slices > 1 and shape[0] == 1 and spacing[0] > SPACING_OF_2D * max(spacing[1:]):
            raise BadCase(f"it is a 2D image of shape {tuple(shape[1:])}; the labeled cases are volumes")


def why_unreadable(reader: BaseReaderWriter, files: Sequence[str], error: Exception) -> str:
    """The reason in words why `reader` failed with `error` on the files of a case, found by reading them one by one."""
    seen = {}
    for file in files:
        name = os.path.basename(file)
        if not os.path.exists(file):
            return f"{name} is a link to a file that does not exist"
        if os.path.getsize(file) == 0:
            return f"{name} is empty (0 bytes)"
        try:
            data, properties = reader.read_images([file])
        except Exception as reason:
            return f"{name} cannot be read by {type(reader).__name__} ({brief(reason)})"
        seen[name] = data.shape[1:], tuple(float(x) for x in properties["spacing"])
    for what, position in (("shape", 0), ("spacing", 1)):
        if len({found[position] for found in seen.values()}) > 1:
            found = ", ".join(f"{name} {values[position]}" for name, values in seen.items())
            return f"its channels differ in {what}: {found}"
    return f"its channels cannot be read together ({brief(error)})"


def brief(error: Exception, longest: int = 200) -> str:
    """The last line of an error's message, which is where SimpleITK says what is wrong; its class if it has none."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:longest] if lines else type(error).__name__


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
        self.preprocessor = self.configuration.preprocessor_class(verbose=False)

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
