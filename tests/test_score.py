"""`nnunet_semi score` with nnU-Net's own predictor: what is compared, and that nothing else decides on the table."""

from __future__ import annotations

import json
import os
from itertools import combinations
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
import pytest
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

from nnunet_semi.cli import main
from nnunet_semi.errors import EnvironmentNotReady, UserError, WrongUse
from nnunet_semi.filtering import score as module
from nnunet_semi.filtering.model import ESTIMATORS, View, Views
from nnunet_semi.filtering.prediction import CaseScorer, argmax
from nnunet_semi.filtering.rules import Rules
from nnunet_semi.filtering.score import ScoreSummary, score_unlabeled
from nnunet_semi.filtering.table import read_table, work_folder
from nnunet_semi.log import silent, to_stderr
from nnunet_semi.plugin_trainer import CHECKPOINT_KEY
from nnunet_semi.trainers.nnUNetTrainerKeepCheckpoints import nnUNetTrainerKeepCheckpoints
from nnunet_semi.unlabeled.selection import SELECTION
from nnunet_semi.verbs import filtering
from scored_model import edit_checkpoint, make_model

CASES = [f"un_{number:03d}" for number in range(4)]
NAMES = {"disc": 1, "square": 2}


def score(by: str, table: Path, **options: Any) -> ScoreSummary:
    defaults = {"trainer": "nnUNetTrainerCPS", "output": table, "device": "cpu", "mirroring": False, "progress": False}
    return score_unlabeled(1, "2d", by, **{**defaults, "log": lambda sentence: None, **options})


@pytest.fixture
def model(tiny_2d: Path) -> Path:
    return make_model(tiny_2d)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    return tmp_path / "table.csv"


class Expected:
    """Predictions by stock nnU-Net, one checkpoint and one case at a time."""

    def __init__(self, model: Path, plans_file: Path) -> None:
        self.model = model
        self.images = plans_file.parent / "nnUNetPlans_2d_unlabeled"

    def predictor(self, checkpoint: str, fold: int) -> nnUNetPredictor:
        predictor = nnUNetPredictor(use_mirroring=False, device=torch.device("cpu"), allow_tqdm=False)
        predictor.initialize_from_trained_model_folder(str(self.model), (fold,), checkpoint)
        return predictor

    def logits(
        self, case: str, checkpoint: str = "checkpoint_final.pth", fold: int = 0, axes: tuple[int, ...] = ()
    ) -> torch.Tensor:
        image = torch.from_numpy(blosc2.open(str(self.images / f"{case}.b2nd"))[:])
        logits = self.predictor(checkpoint, fold).predict_logits_from_preprocessed_data(image.flip(axes))
        return logits.flip(axes).float()

    def label_map(self, *args: Any, **kwargs: Any) -> np.ndarray:
        return self.logits(*args, **kwargs).argmax(0).numpy()


def mean_dice(members: list[np.ndarray], reference: np.ndarray) -> float:
    """Written out as the methods state it."""
    per_member = []
    for member in members:
        present = [label for label in NAMES.values() if (reference == label).any()]
        dice = [
            2 * ((member == k) & (reference == k)).sum() / ((member == k).sum() + (reference == k).sum())
            for k in present
        ]
        per_member.append(np.mean(dice))
    return float(np.mean(per_member))


def scores(summary: ScoreSummary) -> dict[str, float]:
    return {row.case: row.score for row in summary.rows}


# --- what is compared ---


def test_checkpoints_are_compared_with_the_final_one(model: Path, tiny_2d: Path, table: Path) -> None:
    found = scores(score("checkpoints", table))
    expected = Expected(model, tiny_2d)
    kept = ("checkpoint_036.pth", "checkpoint_066.pth")
    for case in CASES:
        value = mean_dice([expected.label_map(case, name) for name in kept], expected.label_map(case))
        assert found[case] == pytest.approx(value)
    assert len(set(found.values())) > 1 and all(0 < value < 1 for value in found.values())


def test_the_second_network_is_compared_with_the_first(model: Path, tiny_2d: Path, table: Path) -> None:
    found = scores(score("networks", table))
    expected = Expected(model, tiny_2d)
    references = {case: expected.label_map(case) for case in CASES}

    def swap(checkpoint: dict[str, Any]) -> None:
        checkpoint["network_weights"] = checkpoint[CHECKPOINT_KEY]["network_2"]

    edit_checkpoint(model / "fold_0" / "checkpoint_final.pth", swap)
    for case in CASES:
        assert found[case] == pytest.approx(mean_dice([expected.label_map(case)], references[case]))


def test_folds_are_compared_with_their_mean(tiny_2d: Path, table: Path) -> None:
    model = make_model(tiny_2d, folds=(0, 1, 2))
    found = scores(score("folds", table, folds=(0, 1, 2)))
    expected = Expected(model, tiny_2d)
    for case in CASES:
        logits = [expected.logits(case, fold=fold) for fold in range(3)]
        reference = torch.stack(logits).mean(0).argmax(0).numpy()
        assert found[case] == pytest.approx(mean_dice([one.argmax(0).numpy() for one in logits], reference))


def test_mirrored_predictions_are_compared_with_their_mean(model: Path, tiny_2d: Path, table: Path) -> None:
    found = scores(score("mirrors", table, mirroring=True))
    expected = Expected(model, tiny_2d)
    for case in CASES:
        axes = [c for n in range(3) for c in combinations((2, 3), n)]  # y and x of (channel, z, y, x)
        logits = [expected.logits(case, axes=one) for one in axes]
        reference = torch.stack(logits).mean(0).argmax(0).numpy()
        assert found[case] == pytest.approx(mean_dice([one.argmax(0).numpy() for one in logits], reference))


def test_entropy_is_that_of_the_final_prediction(model: Path, tiny_2d: Path, table: Path) -> None:
    found = scores(score("entropy", table))
    for case in CASES:
        logits = Expected(model, tiny_2d).logits(case)
        p = logits.softmax(0)
        entropy = -(p * p.log()).sum(0) / np.log(3)
        assert found[case] == pytest.approx(1 - float(entropy[logits.argmax(0) > 0].mean()), abs=1e-5)


def test_logits_of_several_folds_are_averaged(tiny_2d: Path, table: Path) -> None:
    model = make_model(tiny_2d, folds=(0, 1))
    score("entropy", table, folds=(0, 1))
    expected = Expected(model, tiny_2d)
    mean = (expected.logits("un_000") + expected.logits("un_000", fold=1)) / 2
    kept = blosc2.open(str(work_folder(table) / "predictions" / "un_000.b2nd"))[:]
    assert np.array_equal(kept, mean.argmax(0))


def test_rows_describe_the_prediction_that_is_kept(model: Path, table: Path) -> None:
    score("checkpoints", table)
    for row in read_table(table):
        prediction = blosc2.open(str(work_folder(table) / "predictions" / f"{row.case}.b2nd"))[:]
        assert row.volumes == {name: (prediction == label).sum() for name, label in NAMES.items()}
        assert row.complete == all((prediction == label).any() for label in NAMES.values())
        assert row.complete == all(row.components.values())


def test_regions_in_3d(tiny: Any, table: Path) -> None:
    labels = {"background": 0, "whole": [1, 2], "core": 2}
    plans_file = tiny(("3d_fullres",), dimension=3, labels=labels, labeled=2, unlabeled=2, test=0, dataset_id=3)
    trainer = make_model(plans_file, configuration="3d_fullres")
    assert trainer.name.endswith("3d_fullres")
    options = {"trainer": "nnUNetTrainerCPS", "output": table, "device": "cpu", "mirroring": False, "progress": False}
    for by in ("checkpoints", "entropy"):
        summary = score_unlabeled(3, "3d_fullres", by, **{**options, "output": table.with_name(f"{by}.csv")})
        for row in summary.rows:
            prediction = blosc2.open(str(work_folder(summary.table) / "predictions" / f"{row.case}.b2nd"))[:]
            assert prediction.ndim == 3
            assert row.volumes == {"whole": (prediction > 0).sum(), "core": (prediction == 2).sum()}
            assert 0 <= row.score <= 1
            assert row.score == (0 if not prediction.any() else row.score)


def test_a_cascade_sees_the_prediction_of_the_stage_before(model: Path, tiny_2d: Path, tmp_path: Path) -> None:
    previous = np.random.default_rng(0).integers(0, 3, (1, 32, 32), dtype=np.uint8)
    nnUNetDatasetBlosc2.save_seg(previous, str(tmp_path / "un_000"))
    images = tiny_2d.parent / "nnUNetPlans_2d_unlabeled"
    predictor = Expected(model, tiny_2d).predictor("checkpoint_final.pth", 0)
    cases = nnUNetDatasetBlosc2(str(images), ["un_000"], str(tmp_path))
    image, _ = CaseScorer(predictor, Views([], View([])), cases)._image("un_000")
    assert image.shape == (3, 1, 32, 32)
    assert np.array_equal(image[0], blosc2.open(str(images / "un_000.b2nd"))[0])
    for channel, label in enumerate((1, 2), 1):
        assert np.array_equal(image[channel], previous == label)


def test_all_unlabeled_cases_are_scored_whatever_is_selected(model: Path, tiny_2d: Path, table: Path) -> None:
    selection = tiny_2d.parent / SELECTION
    selection.write_text(json.dumps({"selected": ["un_000"]}))
    try:
        assert list(scores(score("entropy", table))) == CASES
    finally:
        selection.unlink()


# --- the table depends on nothing else ---


def test_parts_in_any_order_give_the_same_table(model: Path, table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    score("checkpoints", table)
    split = table.with_name("split.csv")
    for part in (2, 0, 1):
        assert not split.exists()
        summary = score("checkpoints", split, num_parts=3, part_id=part)
    assert summary.missing == 0
    assert split.read_bytes() == table.read_bytes()
    by_torchrun = table.with_name("torchrun.csv")
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("1", "0"):
        monkeypatch.setenv("RANK", rank)
        score("checkpoints", by_torchrun)
    assert by_torchrun.read_bytes() == table.read_bytes()


class Killed(BaseException):
    """Stands for kill -9: nothing handles it."""


def predicted(monkeypatch: pytest.MonkeyPatch, stop_after: int = 99) -> list[str]:
    """Notes the cases that are predicted from now on, and stops in the middle of the next one."""
    store, cases = module.store_prediction, []

    def store_or_stop(prediction: np.ndarray, folder: Path, case: str) -> None:
        if len(cases) == stop_after:
            raise Killed
        cases.append(case)
        store(prediction, folder, case)

    monkeypatch.setattr(module, "store_prediction", store_or_stop)
    return cases


def test_a_run_that_was_killed_goes_on_where_it_was(model: Path, table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unbroken = table.with_name("unbroken.csv")
    score("checkpoints", unbroken)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        predicted(patch, stop_after=2)
        score("checkpoints", table)
    assert not table.exists()
    part = work_folder(table) / "part_0_of_1.jsonl"
    part.write_text(part.read_text()[:-20])  # the last line was torn
    done = predicted(monkeypatch)
    score("checkpoints", table, num_parts=2, part_id=1)  # another split than before
    score("checkpoints", table)
    assert sorted(done) == CASES[1:]
    assert table.read_bytes() == unbroken.read_bytes()


def test_a_second_run_does_nothing(model: Path, table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    score("checkpoints", table)
    before = table.read_bytes()
    done = predicted(monkeypatch)
    summary = score("checkpoints", table)
    assert done == [] and table.read_bytes() == before
    assert "4 cases" in str(summary) and str(table) in str(summary)


def test_an_image_that_changed_is_scored_again(model: Path, table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    score("checkpoints", table)
    [image] = Path(os.environ["nnUNet_raw"]).glob("Dataset001_Tiny/imagesUn/un_002_0000.png")
    os.utime(image)
    done = predicted(monkeypatch)
    score("checkpoints", table)
    assert done == ["un_002"]


def test_scores_of_other_checkpoints_are_refused_or_started_over(
    tiny_2d: Path, model: Path, table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    score("checkpoints", table)
    before = table.read_bytes()
    make_model(tiny_2d, seed=5)
    with pytest.raises(UserError, match="other checkpoints .fold_0/checkpoint_036.pth.*--overwrite"):
        score("checkpoints", table)
    assert table.read_bytes() == before
    done = predicted(monkeypatch)
    score("checkpoints", table, overwrite=True)
    assert done == CASES
    assert table.read_bytes() != before


def test_another_estimator_is_refused(model: Path, table: Path) -> None:
    score("checkpoints", table)
    with pytest.raises(UserError, match="made with by 'checkpoints', and not 'networks'"):
        score("networks", table)


def test_a_file_that_is_no_table_of_ours_is_refused(model: Path, table: Path) -> None:
    table.write_text("mine")
    with pytest.raises(UserError, match=r"table.csv comes without .*provenance.json.*--overwrite"):
        score("entropy", table)
    assert table.read_text() == "mine"


def test_two_runs_of_one_part_do_not_write_at_once(model: Path, table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    messages = []

    def meanwhile(*args: Any) -> None:
        with pytest.raises(UserError, match="another process is working on") as refusal:
            score("checkpoints", table)
        messages.append(str(refusal.value))
        raise Killed

    monkeypatch.setattr(module, "store_prediction", meanwhile)
    with pytest.raises(Killed):
        score("checkpoints", table)
    assert len(messages) == 1


# --- what is missing or wrong ---


def test_a_missing_kept_checkpoint_is_named_with_what_to_do(model: Path, table: Path) -> None:
    missing = model / "fold_0" / "checkpoint_066.pth"
    missing.unlink()
    with pytest.raises(EnvironmentNotReady) as refusal:
        score("checkpoints", table)
    assert str(missing) in str(refusal.value) and "nnUNetTrainerKeepCheckpoints" in str(refusal.value)
    assert score("entropy", table).missing == 0


def test_a_kept_checkpoint_of_another_training_is_refused(model: Path, table: Path) -> None:
    edit_checkpoint(model / "fold_0" / "checkpoint_036.pth", lambda c: c[CHECKPOINT_KEY].update(seed=77))
    with pytest.raises(UserError, match="left from another training"):
        score("checkpoints", table)
    assert not work_folder(table).exists()


def test_one_network_has_no_second(tiny_2d: Path, table: Path) -> None:
    make_model(tiny_2d, nnUNetTrainerKeepCheckpoints)
    assert score("checkpoints", table, trainer="nnUNetTrainerKeepCheckpoints").missing == 0
    with pytest.raises(UserError, match="holds one network"):
        score("networks", table.with_name("networks.csv"), trainer="nnUNetTrainerKeepCheckpoints")


@pytest.mark.parametrize(("classes", "kind"), [(3, torch.half), (2, torch.float32), (300, torch.half)])
def test_the_label_map_is_numpys_argmax_of_equals_the_first(classes: int, kind: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randint(-3, 4, (classes, 3, 9, 11), generator=generator).to(kind)
    untouched = logits.clone()
    assert np.array_equal(argmax(logits).numpy(), logits.numpy().argmax(0))
    assert torch.equal(logits, untouched)


def test_a_diverged_network_is_told(model: Path, table: Path) -> None:
    def diverge(checkpoint: dict[str, Any]) -> None:
        for weights in checkpoint["network_weights"].values():
            weights.fill_(float("nan"))

    edit_checkpoint(model / "fold_0" / "checkpoint_final.pth", diverge)
    with pytest.raises(UserError, match="predicts NaN for the unlabeled case un_000"):
        score("entropy", table)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_case_whose_outputs_overflow_scores_nothing_and_the_others_go_on(
    model: Path, table: Path, value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in half precision on a GPU; nnU-Net itself raises an error of infinity, and none of NaN."""
    predict, seen = nnUNetPredictor._internal_maybe_mirror_and_predict, []

    def overflow(self: Any, patch: torch.Tensor) -> torch.Tensor:
        seen.append(patch)
        return predict(self, patch) + (value if len(seen) == 1 else 0)

    monkeypatch.setattr(nnUNetPredictor, "_internal_maybe_mirror_and_predict", overflow)
    log: list[str] = []
    score("checkpoints", table, log=log.append)
    rows = {row.case: row for row in read_table(table)}
    assert rows["un_000"].score == 0 and not rows["un_000"].complete
    assert len(rows) > 1 and any(row.score > 0 for row in rows.values())
    assert log[-1] == "warning: NaN or infinity is predicted for 1 cases, which score 0: un_000"


@pytest.mark.parametrize(
    ("by", "options", "said"),
    [
        ("folds", {}, "compares two or more"),
        ("luck", {}, "expected one of checkpoints"),
        ("mirrors", {}, "--disable_tta with --by mirrors"),
        ("entropy", {"num_parts": 2, "part_id": 2}, "part ids from 0"),
        ("entropy", {"num_parts": 2}, "expected both"),
        ("entropy", {"output": "table.txt"}, "ends in .csv"),
        ("entropy", {"trainer": "../other"}, "plain name"),
        ("entropy", {"device": "cuda"}, "got -device cuda, but PyTorch sees no GPU of that kind"),
        ("entropy", {"device": "mps"}, "got -device mps, but PyTorch sees no GPU of that kind"),
    ],
)
def test_wrong_use(
    model: Path, table: Path, by: str, options: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for backend in (torch.cuda, torch.backends.mps):
        monkeypatch.setattr(backend, "is_available", lambda: False)
    with pytest.raises(EnvironmentNotReady if "device" in options else WrongUse, match=said):
        score(by, table, **options)


def test_an_unfinished_model_is_told(model: Path, table: Path) -> None:
    with pytest.raises(EnvironmentNotReady, match=r"fold_3.checkpoint_final.pth does not exist; finish"):
        score("entropy", table, folds=(3,))
    with pytest.raises(EnvironmentNotReady, match="there is nnUNetTrainerCPS__nnUNetPlans__2d"):
        score("entropy", table, trainer="nnUNetTrainerCPSCutMix")


def test_a_place_that_cannot_be_written_is_told(model: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file.table cannot be written .Not a directory.; choose another file with -o"):
        score("entropy", tmp_path / "file" / "table.csv")


def test_the_table_goes_to_the_folder_of_the_model(model: Path) -> None:
    summary = score("entropy", None)
    assert summary.table == model / "unlabeled_scores" / "entropy_fold0_no_tta.csv"
    assert summary.table.is_file()


# --- the verbs ---


def recorded(monkeypatch: pytest.MonkeyPatch, function: str) -> list[tuple[Any, Any]]:
    """Notes the arguments with which a function is called, and lets it give its name."""
    calls: list[tuple[Any, Any]] = []
    monkeypatch.setattr(function, lambda *args, **kwargs: calls.append((args, kwargs)) or function)
    return calls


def test_score_passes_its_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = recorded(monkeypatch, "nnunet_semi.filtering.score.score_unlabeled")
    short = ["score", "-d", "1", "-c", "2d", "--by", "entropy"]
    long = ["-tr", "T", "-p", "P", "-f", "0", "3", "-o", "t.csv", "-num_parts", "4", "-part_id", "0", "-np", "2"]
    assert main(short) == 0
    assert main([*short, *long, "-device", "cpu", "--disable_tta", "--overwrite", "-q"]) == 0
    assert [args for args, _ in calls] == [
        ("1", "2d", "entropy", "nnUNetTrainerCPS", "nnUNetPlans", [0], None),
        ("1", "2d", "entropy", "T", "P", [0, 3], Path("t.csv")),
    ]
    names = ("num_parts", "part_id", "num_processes", "device", "mirroring", "overwrite", "progress", "log")
    assert [tuple(kwargs[name] for name in names) for _, kwargs in calls] == [
        (None, None, None, None, True, False, True, to_stderr),
        (4, 0, 2, "cpu", False, True, False, silent),
    ]


def test_select_and_screen_pass_their_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    selects = recorded(monkeypatch, "nnunet_semi.filtering.select.select_unlabeled")
    screens = recorded(monkeypatch, "nnunet_semi.filtering.screen.screen_unlabeled")
    rules = ["--top", ".5", "--threshold", ".9", "--complete", "--max", "1000", "--components", "2"]
    lists = ["--exclude", "bad.txt", "--include", "good.txt"]
    assert main(["select", "-d", "1", "--table", "t.csv", *rules, *lists, "--overwrite", "-p", "Mine"]) == 0
    expected = Rules(0.5, 0.9, True, 2, Path("bad.txt"), Path("good.txt"), 1000)
    assert selects == [(("1", expected, Path("t.csv"), True, "Mine", to_stderr), {})]
    assert main(["screen", "-d", "1", "--table", "t.csv", "-o", "s.html", "-np", "2", "-p", "Mine", "-q"]) == 0
    options = {"overwrite": False, "progress": False, "plans": "Mine", "log": silent}
    assert screens == [(("1", Path("t.csv"), Path("s.html"), 2), options)]


def test_the_estimators_of_the_verb_are_those_that_there_are() -> None:
    assert filtering.ESTIMATORS == ESTIMATORS
