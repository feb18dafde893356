"""From the data of a task to preprocessed nnU-Net datasets whose plans are the same.

Few labels and all labels are to be compared at the same budget, so they train with the same patches, batches and
network: those planned once for the dataset in which all training cases are labeled. Nothing of the labels flows
through these plans: image sizes and spacings, which a user knows for the unlabeled images too, decide on them, and
MRI is normalised case by case, without the intensities below the labels.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from cases import ALL, Split, Task, dataset_name, read_protocol, split_cases
from children import available_cores, environment, run_child
from nnunet_semi import raw

PLANS = "nnUNetPlans"


@dataclass(frozen=True)
class Preparation:
    """Where the data of a task lies and becomes nnU-Net datasets, and for which network.

    Attributes:
        data: the folder of the real data.
        work: everything is written below it.
        width: channels of the first stage of the network.
        batch_size: labeled patches per step.
    """

    data: Path
    work: Path
    task: Task
    test: str
    width: int
    batch_size: int

    @property
    def configuration(self) -> str:
        """The configuration that all trainings use: narrow, with the batch size of the protocol."""
        pixels = f"_{self.task.spacing:g}mm" if self.task.spacing else ""
        return f"{self.task.configuration}{pixels}_w{self.width}_b{self.batch_size}"

    def split(self, labeled: int | str) -> Split:
        """The cases by role."""
        return split_cases(read_protocol(self.data, self.task), self.task, labeled, self.test)

    def dataset(self, labeled: int | str) -> str:
        """Name of the dataset with these labels."""
        return dataset_name(self.task, labeled, self.test)

    def folder(self, kind: str, dataset: str) -> Path:
        """The dataset's folder of a kind: nnUNet_raw, nnUNet_preprocessed or nnUNet_results."""
        return self.work / kind / dataset

    def command(self, *words: str) -> None:
        """Runs a command to its end; its output is appended to logs/prepare.log."""
        run_child(words, environment(self.work), self.work.resolve() / "logs" / "prepare.log")

    def prepare(self, labeled: Iterable[int | str]) -> None:
        """Makes a dataset for every labeled count; what is there already is left as it is."""
        reference = dataset_name(self.task, ALL, "development")
        cases = split_cases(read_protocol(self.data, self.task), self.task, ALL, "development")
        self._write_raw(reference, cases)
        self._plan(reference)
        for count in labeled:
            self._write_raw(self.dataset(count), self.split(count))
            self._preprocess(self.dataset(count), self.split(count), reference)

    def _write_raw(self, dataset: str, split: Split) -> None:
        """Writes imagesTr with labelsTr, and imagesUn; the labels of unlabeled cases stay where they are."""
        folder = self.folder("nnUNet_raw", dataset)
        if (folder / "dataset.json").is_file():
            return
        source = self.data / self.task.folder
        for kind, cases in (("imagesTr", split.labeled), ("imagesUn", split.unlabeled)):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            for case in cases:
                shutil.copyfile(source / "images" / f"{case}.nii.gz", folder / kind / f"{case}_0000.nii.gz")
        (folder / "labelsTr").mkdir(exist_ok=True)
        for case in split.labeled:
            shutil.copyfile(source / "labels" / f"{case}.nii.gz", folder / "labelsTr" / f"{case}.nii.gz")
        protocol = read_protocol(self.data, self.task)
        description = {
            "channel_names": {"0": protocol["modality"]},
            "labels": protocol["labels"],
            "numTraining": len(split.labeled),
            "file_ending": ".nii.gz",
        }
        write_json(folder / "dataset.json", description)

    def _plan(self, dataset: str) -> None:
        """Plans the reference dataset and adds the configuration of the protocol."""
        path = self.folder("nnUNet_preprocessed", dataset) / f"{PLANS}.json"
        if not path.is_file():
            self.command("nnUNetv2_extract_fingerprint", "-d", dataset[7:10], "-np", processes())
            self.command("nnUNetv2_plan_experiment", "-d", dataset[7:10])
        base, width = self.task.configuration, str(self.width)
        changes: dict[str, Any] = {"batch_size": self.batch_size}
        if self.task.spacing:  # nnunet_semi makes the smaller patch and its network; the pixels are the task's
            longest, spacing = str(self.task.longest), [self.task.spacing] * int(base[0])
            self.command("nnunet_semi", "whole_image", "-d", dataset[7:10], "-c", base, "--longest", longest)
            base = f"{base}_whole{longest}"
            changes |= {"spacing": spacing, "data_identifier": f"{PLANS}_{self.configuration}"}
        self.command("nnunet_semi", "narrow", "-d", dataset[7:10], "-c", base, "--width", width)
        plans = json.loads(path.read_text(encoding="utf-8"))
        narrow = {"inherits_from": f"{base}_w{width}", **changes}
        if plans["configurations"].get(self.configuration) != narrow:
            plans["configurations"][self.configuration] = narrow
            write_json(path, plans)

    def _preprocess(self, dataset: str, split: Split, reference: str) -> None:
        """Preprocesses labeled and unlabeled cases with the plans of the reference.

        Fold 0 trains on all labeled cases. nnU-Net wants a validation case: it is one of them, so that nothing is
        held back and its score, which no benchmark uses, costs next to nothing.
        """
        folder, number = self.folder("nnUNet_preprocessed", dataset), dataset[7:10]
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "dataset_fingerprint.json").is_file():
            self.command("nnUNetv2_extract_fingerprint", "-d", number, "-np", processes())
        shutil.copyfile(self.folder("nnUNet_raw", dataset) / "dataset.json", folder / "dataset.json")
        if dataset != reference:
            self.command("nnUNetv2_move_plans_between_datasets", "-s", reference[7:10], "-t", number, "-sp", PLANS)
        splits = folder / "splits_final.json"
        if not splits.is_file():  # it is written last, so it says that the rest is there
            self.command("nnUNetv2_preprocess", "-d", number, "-c", self.configuration, "-np", processes())
            write_json(splits, [{"train": list(split.labeled), "val": [split.labeled[0]]}])
        if split.unlabeled:
            self.command("nnunet_semi", "preprocess", "-d", number, "-c", self.configuration, "-np", processes())

    def truth(self, labeled: int | str) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
        """Every unlabeled case as nnU-Net preprocesses it: image (C, z, y, x) and true labels (z, y, x).

        For reports on pseudo labels; no training sees these labels.
        """
        folder, source = self.folder("nnUNet_preprocessed", self.dataset(labeled)), self.data / self.task.folder
        plans = PlansManager(str(folder / f"{PLANS}.json"))
        configuration = plans.get_configuration(self.configuration)
        for case in self.split(labeled).unlabeled:
            image, label = (str(source / kind / f"{case}.nii.gz") for kind in ("images", "labels"))
            preprocessor = configuration.preprocessor_class(verbose=False)
            data, seg, _ = preprocessor.run_case(
                [image], label, plans, configuration, raw.load_json(folder / "dataset.json")
            )
            yield case, data, np.maximum(seg[0], 0).astype(np.uint8)


def processes() -> str:
    """Processes for preprocessing: as many as there are cores, and no more than 8."""
    return str(min(8, len(available_cores())))


def write_json(path: Path, content: Any) -> None:
    """Writes a file that appears whole or not at all."""
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text(json.dumps(content, indent=2), encoding="utf-8")
    os.replace(temporary, path)
