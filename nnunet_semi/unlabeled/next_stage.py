"""The cascade's link for unlabeled cases: what the previous stage predicts for them, as input of the next stage."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import blosc2
import torch
from nnunetv2.configuration import default_num_processes
from nnunetv2.inference.export_prediction import resample_and_save
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetBaseDataset
from torch import nn

from nnunet_semi.errors import EnvironmentNotReady
from nnunet_semi.fingerprint import fingerprint
from nnunet_semi.raw import name_some
from nnunet_semi.unlabeled.index import UnlabeledCase

NETWORK, CASE = "nnunet_semi_network", "nnunet_semi_case"  # keys of the fingerprints in a prediction's file


def predictions_folder(stage_output: str | Path, next_configuration: str, fold: int | str) -> Path:
    """Where a fold of a stage leaves its predictions of unlabeled cases, beside those that nnU-Net leaves of labeled
    ones. Every fold has its own, so that no next stage learns from a network that knew its validation cases."""
    return Path(stage_output, "predicted_next_stage", f"{next_configuration}_unlabeled_fold_{fold}")


def find_predictions(stage_output: str | Path, next_configuration: str, fold: int | str) -> Path:
    """The predictions of the same fold of the previous stage; of another one where that fold was not trained."""
    own = predictions_folder(stage_output, next_configuration, fold)
    others = sorted(own.parent.glob(f"{next_configuration}_unlabeled_fold_*"))
    return own if own.is_dir() or not others else others[0]


def require_predictions(folder: Path, cases: Sequence[UnlabeledCase], previous_stage: str) -> None:
    """Check that the previous stage predicted every unlabeled case as it is now.

    Args:
        folder: see `find_predictions`.
        cases: of the stage that reads the predictions.
        previous_stage: its configuration, for the message.

    Raises:
        EnvironmentNotReady: some are missing, or their images were replaced since.
    """
    missing = [case.case for case in cases if _names(folder / f"{case.case}.b2nd").get(CASE) != _identity(case)]
    if missing:
        raise EnvironmentNotReady(
            f"{folder} lacks the predictions of stage {previous_stage} for {len(missing)} of {len(cases)} unlabeled "
            f"cases as they are now ({name_some(missing)}), which the cascade takes as input; train {previous_stage} "
            "with the same trainer first, or run that training again with --val"
        )


def predict_cases(
    predictor: nnUNetPredictor, images: nnUNetBaseDataset, cases: Sequence[UnlabeledCase], folder: Path
) -> int:
    """Predict unlabeled cases and store each as label map at the resolution of the next stage.

    While one case is predicted, those before it are resampled in threads, as many as nnU-Net uses processes by default.

    Args:
        predictor: initialised with the network of this stage.
        images: the unlabeled cases, preprocessed for this stage.
        cases: those to predict, preprocessed for the next stage, whose shape the predictions get.
        folder: gets one CASE.b2nd each, which names its network and case; what the same network has made of a case that
            did not change is kept.

    Returns:
        The number of cases that were predicted.
    """
    folder.mkdir(parents=True, exist_ok=True)
    network = _fingerprint(predictor.network)

    def finish(case: UnlabeledCase, logits: torch.Tensor, properties: dict) -> None:
        assert case.shape is not None
        unfinished = folder / f"unfinished_{case.case}"
        resample_and_save(
            logits,
            list(case.shape),
            str(unfinished),
            predictor.plans_manager,
            predictor.configuration_manager,
            properties,
            predictor.dataset_json,
            torch.get_num_threads(),
        )
        file = unfinished.with_name(unfinished.name + ".b2nd")
        array = blosc2.open(str(file), mode="a")
        array.schunk.vlmeta[NETWORK], array.schunk.vlmeta[CASE] = network, _identity(case)
        file.replace(folder / f"{case.case}.b2nd")

    left = [c for c in cases if _names(folder / f"{c.case}.b2nd") != {NETWORK: network, CASE: _identity(c)}]
    with ThreadPoolExecutor(default_num_processes) as pool:
        pending: deque[Future[None]] = deque()
        for case in left:
            data, _, _, properties = images.load_case(case.case)
            logits = predictor.predict_sliding_window_return_logits(torch.from_numpy(data[:])).cpu()
            pending.append(pool.submit(finish, case, logits, properties))
            if len(pending) > default_num_processes:  # probabilities of all cases would not fit into memory
                pending.popleft().result()
        for future in pending:
            future.result()
    return len(left)


def _names(prediction: Path) -> dict[str, str]:
    """What a prediction says of the network and the case that it was made of; empty where there is none."""
    if not prediction.is_file():
        return {}
    array = blosc2.open(str(prediction), mode="r")
    return {key: array.schunk.vlmeta[key] for key in (NETWORK, CASE) if key in array.schunk.vlmeta}


def _identity(case: UnlabeledCase) -> str:
    """What changes when the image, or its preprocessing for the next stage, does."""
    return fingerprint([case.sources, case.settings])


def _fingerprint(network: nn.Module) -> str:
    """Of the weights: a checkpoint's time does not tell whether the final or the best network predicts."""
    digest = hashlib.sha256()
    for tensor in network.state_dict().values():
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
