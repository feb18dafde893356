"""The cascade's link for unlabeled cases: what the previous stage predicts for them, as input of the next stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from nnunetv2.inference.export_prediction import resample_and_save
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetBaseDataset

from nnunet_semi.errors import EnvironmentNotReady
from nnunet_semi.raw import name_some


def predictions_folder(stage_output: str | Path, next_configuration: str) -> Path:
    """Where a stage leaves its predictions of unlabeled cases, beside those that nnU-Net leaves of labeled ones."""
    return Path(stage_output, "predicted_next_stage", f"{next_configuration}_unlabeled")


def require_predictions(folder: Path, cases: Sequence[str], previous_stage: str) -> None:
    """Check that the previous stage predicted every unlabeled case.

    Raises:
        EnvironmentNotReady: some are missing.
    """
    present = {path.stem for path in folder.glob("*.b2nd")}
    missing = [case for case in cases if case not in present]
    if missing:
        raise EnvironmentNotReady(
            f"{folder} lacks the predictions of stage {previous_stage} for {len(missing)} of {len(cases)} unlabeled "
            f"cases ({name_some(missing)}), which the cascade takes as input; train {previous_stage} with the same "
            "trainer first, or run that training again with --val"
        )


def predict_cases(
    predictor: nnUNetPredictor,
    cases: nnUNetBaseDataset,
    shapes: Mapping[str, Sequence[int]],
    folder: Path,
    checkpoint: Path,
) -> None:
    """Predict unlabeled cases and store each as label map at the resolution of the next stage.

    Args:
        predictor: initialised with the network of this stage.
        cases: the unlabeled cases, preprocessed for this stage.
        shapes: spatial shape of each case in the next stage; only these cases are predicted.
        folder: gets one CASE.b2nd each; cases whose file is newer than `checkpoint` are passed over.
        checkpoint: of the network.
    """
    folder.mkdir(parents=True, exist_ok=True)
    trained = checkpoint.stat().st_mtime
    for case, shape in shapes.items():
        prediction = folder / f"{case}.b2nd"
        if prediction.is_file() and prediction.stat().st_mtime >= trained:
            continue
        data, _, _, properties = cases.load_case(case)
        logits = predictor.predict_sliding_window_return_logits(torch.from_numpy(data[:])).cpu()
        unfinished = folder / f"unfinished_{case}"
        resample_and_save(
            logits,
            list(shape),
            str(unfinished),
            predictor.plans_manager,
            predictor.configuration_manager,
            properties,
            predictor.dataset_json,
            torch.get_num_threads(),
        )
        unfinished.with_name(unfinished.name + ".b2nd").replace(prediction)
