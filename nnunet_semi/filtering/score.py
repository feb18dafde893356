"""`nnunet_semi score`: predicts the unlabeled cases and writes a table of how far each prediction can be trusted.

The work goes case by case, not model by model: all networks of an estimator, a handful, stay in memory as weights and
take turns in one network, which costs a copy of the weights. So a case is read once, its predictions are compared at
once, and a row is all that is left of it, beside the reference prediction as a label map. Model by model would keep the
label maps of all cases and models on disk, and an interrupted run would have no row to show.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from tqdm import tqdm

from nnunet_semi import raw
from nnunet_semi.devices import usable_device
from nnunet_semi.errors import WrongUse
from nnunet_semi.filtering.model import ESTIMATORS, FINAL, load_views, make_predictor, needed_files
from nnunet_semi.filtering.parts import Parts
from nnunet_semi.filtering.prediction import CaseScorer, store_prediction
from nnunet_semi.filtering.table import PREDICTIONS, Row, default_table, write_table
from nnunet_semi.fingerprint import fingerprint, hash_of_file
from nnunet_semi.log import Log, to_stderr
from nnunet_semi.trained_model import TrainedModel, find_model
from nnunet_semi.unlabeled.index import UnlabeledIndex
from nnunet_semi.unlabeled.next_stage import find_predictions, require_predictions
from nnunet_semi.unlabeled.preprocessing import ensure_preprocessed


@dataclass(frozen=True)
class ScoreSummary:
    """What a run of `score` came to; as text, a line.

    Attributes:
        table: the CSV, which exists once no case is missing.
        rows: of all cases scored so far, by this run, others and earlier ones.
        missing: number of cases that other parts have still to score.
    """

    table: Path
    rows: list[Row]
    missing: int

    def __str__(self) -> str:
        if self.missing:
            total = len(self.rows) + self.missing
            return f"{len(self.rows)} of {total} cases are scored; the part that comes last will write {self.table}"
        scores = [row.score for row in self.rows]
        empty, complete = sum(not score for score in scores), sum(row.complete for row in self.rows)
        return (
            f"{self.table}: {len(scores)} cases, scores {min(scores):.3f} to {max(scores):.3f}, median "
            f"{statistics.median(scores):.3f}; {complete} complete, {empty} with score 0"
        )


def score_unlabeled(
    dataset: str | int,
    configuration: str,
    by: str,
    trainer: str = "nnUNetTrainerCPS",
    plans: str = "nnUNetPlans",
    folds: Sequence[int | str] = (0,),
    output: Path | str | None = None,
    *,
    num_parts: int | None = None,
    part_id: int | None = None,
    num_processes: int | None = None,
    device: str | None = None,
    mirroring: bool = True,
    overwrite: bool = False,
    progress: bool = True,
    log: Log = to_stderr,
) -> ScoreSummary:
    """Scores the unlabeled cases of a dataset by the predictions of a trained model.

    Args:
        by: one of `ESTIMATORS`. `checkpoints`: agreement of the kept checkpoints with the final one. `networks`: of
            the second network of a CPS training with the first. `folds`: of each fold with the mean of all.
            `mirrors`: of each mirrored prediction with the mean of all. `entropy`: certainty of the final one.
        folds: with all estimators but `folds`, the logits of several folds are averaged, as in nnU-Net's prediction.
        output: the CSV; None for a place in the folder of the model.
        num_parts, part_id: this run does every num_parts-th case, from part_id on; None for WORLD_SIZE and RANK, which
            torchrun sets, or else all. The run that finds all cases scored writes the table.
        num_processes: for preprocessing, where unlabeled cases are not preprocessed yet.
        device: cuda, cpu or mps; None for cuda if there is one.
        mirroring: predict with nnU-Net's mirrored copies, as the deployed model does.
        overwrite: start over where the table was made with another model or other settings.

    Raises:
        WrongUse, EnvironmentNotReady, UserError: flags, folders, checkpoints or an earlier table are not as needed.
    """
    part_id, num_parts = _part(part_id, num_parts)
    model = find_model(dataset, configuration, trainer, plans, folds, FINAL)
    files = _needed_files(model, by, mirroring)
    table = _table(output, model, by, mirroring)
    index, cases = _unlabeled_cases(model, num_processes, log)
    parts = Parts(table, _provenance(model, by, mirroring, files))
    if not overwrite:
        parts.check()
    images = _images(index, cases)
    done = parts.rows(images)
    todo = [case for case in index.good[part_id::num_parts] if case not in done]
    log(f"{len(todo)} of {len(index.good)} unlabeled cases to score by {by}{_of(part_id, num_parts)}")
    if todo:
        scorer = _scorer(model, by, mirroring, _device(device, log), cases)
        parts.begin()
        predictions = parts.folder / PREDICTIONS
        with parts.writing(part_id, num_parts) as path:
            for case in tqdm(todo, desc="scoring", disable=None if progress else True):
                row, prediction = scorer(case)
                store_prediction(prediction, predictions, case)
                parts.append(path, row, images[case])
            if scorer.not_finite:
                named = raw.name_some(scorer.not_finite)
                log(f"warning: NaN or infinity is predicted for {len(scorer.not_finite)} cases, which score 0: {named}")
    rows = parts.rows(images)
    if len(rows) == len(images):
        write_table(table, rows.values())
    return ScoreSummary(table, sorted(rows.values(), key=lambda row: row.case), len(images) - len(rows))


def _part(part_id: int | None, num_parts: int | None) -> tuple[int, int]:
    """The part of the work: as asked for, or as torchrun says."""
    if num_parts is None and part_id is None:
        num_parts, part_id = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    if num_parts is None or part_id is None or not 0 <= part_id < num_parts:
        raise WrongUse(
            f"got -num_parts {num_parts} and -part_id {part_id}; expected both, with part ids from 0 to num_parts - 1"
        )
    return part_id, num_parts


def _of(part_id: int, num_parts: int) -> str:
    return f" in part {part_id} of {num_parts}" if num_parts > 1 else ""


def _needed_files(model: TrainedModel, by: str, mirroring: bool) -> list[Path]:
    if by not in ESTIMATORS:
        raise WrongUse(f"got --by {by}; expected one of {', '.join(ESTIMATORS)}")
    if by == "mirrors" and not mirroring:
        raise WrongUse("got --disable_tta with --by mirrors, which compares the mirrored predictions; leave one out")
    return needed_files(model, by)


def _table(output: Path | str | None, model: TrainedModel, by: str, mirroring: bool) -> Path:
    if output is None:
        return default_table(model.folder, by, model.folds, mirroring)
    if Path(output).suffix != ".csv":
        raise WrongUse(f"got -o {output}; expected a name that ends in .csv")
    return Path(output).resolve()


def _provenance(model: TrainedModel, by: str, mirroring: bool, files: Sequence[Path]) -> dict[str, Any]:
    """Everything beside the images on which the scores depend."""
    return {
        "by": by,
        "dataset": model.dataset,
        "configuration": model.configuration,
        "trainer": model.trainer,
        "plans": model.plans,
        "folds": list(model.folds),
        "mirroring": mirroring,
        "checkpoints": {file.relative_to(model.folder).as_posix(): hash_of_file(file) for file in files},
    }


def _unlabeled_cases(
    model: TrainedModel, num_processes: int | None, log: Log
) -> tuple[UnlabeledIndex, nnUNetDatasetBlosc2]:
    """The preprocessed unlabeled cases, all of them: an earlier selection does not count here."""
    plans = PlansManager(raw.load_json(model.folder / "plans.json"))
    index = ensure_preprocessed(
        plans,
        model.configuration,
        raw.load_json(model.folder / "dataset.json"),
        num_processes=num_processes,
        log=log,
    )
    previous = None
    stage = plans.get_configuration(model.configuration).previous_stage_name
    if stage is not None:
        first = model.folder.with_name(f"{model.trainer}__{model.plans}__{stage}")
        previous = find_predictions(first, model.configuration, model.folds[0])
        require_predictions(previous, [index.cases[case] for case in index.good], stage)
    return index, nnUNetDatasetBlosc2(str(index.folder), index.good, None if previous is None else str(previous))


def _images(index: UnlabeledIndex, cases: nnUNetDatasetBlosc2) -> dict[str, str]:
    """Case → a hash that changes when its image does, or the previous stage's prediction of it."""
    previous = cases.folder_with_segs_from_previous_stage
    images = {}
    for case in index.good:
        known = index.cases[case]
        changed = None if previous is None else os.stat(Path(previous, f"{case}.b2nd")).st_mtime_ns
        images[case] = fingerprint([known.sources, known.settings, changed])
    return images


def _scorer(
    model: TrainedModel, by: str, mirroring: bool, device: torch.device, cases: nnUNetDatasetBlosc2
) -> CaseScorer:
    predictor = make_predictor(model, device, mirroring and by != "mirrors")
    return CaseScorer(predictor, load_views(model, by, predictor.allowed_mirroring_axes), cases)


def _device(name: str | None, log: Log) -> torch.device:
    """The device asked for, or cuda if there is one; under torchrun each process has a GPU of its own."""
    name = usable_device(name)
    device = torch.device(name, int(os.environ.get("LOCAL_RANK", 0))) if name == "cuda" else torch.device(name)
    log(f"predicting on {device}")
    return device
