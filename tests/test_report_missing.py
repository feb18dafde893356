"""The report on results of which something is missing, moved, or damaged: told in words, or refused in a sentence."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from PIL import Image

from nnunet_semi.cli import main
from nnunet_semi.errors import UserError
from nnunet_semi.report.page import report
from nnunet_semi.report.results import find_results
from nnunet_semi.report.training import read_training
from reported_results import EPOCH, make_fold, page_of
from reported_results import dataset as dataset
from reported_results import scores as scores


def test_a_training_without_validation_and_without_settings_is_still_reported(dataset, tmp_path):
    fold = make_fold(dataset)
    for path in (fold / "validation" / "summary.json", fold / "debug.json", fold.parent / "plans.json"):
        path.unlink()
    (fold.parent / "dataset.json").write_text("no JSON")
    page = page_of([fold], tmp_path)
    assert "the model was not validated" in page.words and "Labeled and unlabeled loss" in page.words


def test_a_fold_with_nothing_but_a_checkpoint_says_what_is_not_there(dataset, tmp_path):
    fold = make_fold(dataset, semi=False)
    (fold / "training_log_2026_1_1_00_00_00.txt").unlink()
    (fold / "debug.json").unlink()
    (fold / "checkpoint_final.pth").touch()
    assert "There is no training log with finished epochs" in page_of([fold], tmp_path).words


def test_images_and_label_maps_that_are_gone_are_told(dataset, scores, tmp_path):
    shutil.rmtree(dataset / "imagesTs")
    (dataset / "predictions" / "case_3.png").unlink()
    page = page_of([scores], tmp_path)
    assert "There is no picture of the worst case case_3" in page.words
    assert "case_2 is drawn on grey: the image of case_2 is not at hand." in page.words


def test_images_that_cannot_be_read_or_have_another_size_are_told(dataset, scores, tmp_path):
    (dataset / "imagesTs" / "case_3_0000.png").write_bytes(b"no picture")
    Image.fromarray(np.zeros((3, 4), np.uint8)).save(dataset / "imagesTs" / "case_0_0000.png")
    words = page_of([scores], tmp_path).words
    assert "The worst case case_3 is drawn on grey: the image " in words and "cannot be read (" in words
    assert "The best case case_0 is drawn on grey: the image " in words and "has the shape (3, 4), not " in words


def test_a_moved_result_finds_its_predictions_beside_the_summary(dataset, tmp_path):
    fold = make_fold(dataset)
    for path in (dataset / "predictions").iterdir():
        path.rename(fold / "validation" / path.name)
    assert "Best: case_0" in page_of([fold], tmp_path).words


def test_an_interrupted_and_resumed_training_is_one_curve(dataset):
    fold = make_fold(dataset, epochs=4)
    (fold / "training_log_2026_1_2_00_00_00.txt").write_text(EPOCH.format(2, 9.0, 8.0) + EPOCH.format(3, 7.0, 6.0))
    found = read_training(find_results([fold])[0])
    assert found.charts["Loss"]["training"] == {0: 1.5, 1: 0.5, 2: 9.0, 3: 7.0}
    (fold / "training_log_2026_1_10_00_00_00.txt").write_text(EPOCH.format(3, 6.0, 6.0))  # nnU-Net pads no day with 0
    assert read_training(find_results([fold])[0]).charts["Loss"]["training"][3] == 6.0
    (fold / "training_log_2026_1_10_00_00_00.txt").unlink()
    assert found.charts["Pseudo Dice in validation patches, mean of the classes"]["Dice"][0] == pytest.approx(0.6)
    assert found.facts["epochs done"] == "4, 12.5 s each"


def test_pseudo_labeled_cases_of_a_round_are_not_called_labeled(dataset, tmp_path, monkeypatch):
    raw = tmp_path / "raw" / "Dataset007_Heart"
    raw.mkdir(parents=True)
    (raw / "branch.json").write_text('{"branch_of": "Dataset001_Heart"}')
    fold = make_fold(dataset)
    assert "labeled cases" in read_training(find_results([fold])[0]).facts
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "raw"))
    facts = read_training(find_results([fold])[0]).facts
    assert facts["labeled and pseudo-labeled cases"] == "8 for training, 2 for validation"


def test_unlabeled_images_of_a_landmark_training_are_told(dataset):
    fold = make_fold(dataset)
    (fold / "progress_semi.csv").unlink(missing_ok=True)
    (fold / "progress_landmarks.csv").write_text("epoch,mre_mm,sdr_2mm,semi_kept\n0,9,0.25,0.5\n1,5,0.75,0.625\n")
    found = read_training(find_results([fold])[0])
    assert found.charts["Share of the landmarks that are found in validation patches"] == {"2 mm": {0: 0.25, 1: 0.75}}
    assert found.charts["Unlabeled images"] == {"kept": {0: 0.5, 1: 0.625}}
    assert not any("supervised" in note for note in found.notes)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("no JSON", "cannot be read as JSON"),
        ("[]", "holds a list"),
        ("{}", "holds no scores of cases"),
        ('{"metric_per_case": []}', "holds no scores of cases"),
        ('{"metric_per_case": [{"metrics": {}}]}', "holds cases without scores"),
        ('{"metric_per_case": [3]}', "holds no scores of cases"),
    ],
)
def test_a_summary_that_is_none_is_one_sentence(tmp_path, capsys, content, said):
    (tmp_path / "summary.json").write_text(content)
    assert main(["report", str(tmp_path), "-o", str(tmp_path / "r.html")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line and "summary.json" in line
    assert not (tmp_path / "r.html").exists()


def test_folders_without_results_and_outputs_that_exist_are_refused(scores, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no result; expected a fold folder"):
        report([tmp_path / "empty"], tmp_path / "r.html")
    with pytest.raises(UserError, match="is not a folder"):
        report([tmp_path / "nowhere"], tmp_path / "r.html")
    with pytest.raises(UserError, match="does not exist; make it"):
        report([scores], tmp_path / "nowhere" / "r.html")
    (tmp_path / "r.html").write_text("mine")
    with pytest.raises(UserError, match="pass --overwrite"):
        report([scores], tmp_path / "r.html")
    assert (tmp_path / "r.html").read_text() == "mine"
    report([scores / "summary.json"], tmp_path / "r.html", overwrite=True)
    assert "Report on 1 result" in (tmp_path / "r.html").read_text()


def test_damaged_curves_are_named(dataset, tmp_path):
    fold = make_fold(dataset)
    (fold / "progress_semi.csv").write_text("epoch,semi_weight\n0,x\n")
    with pytest.raises(UserError, match=r"progress_semi\.csv cannot be read"):
        report([fold], tmp_path / "r.html")
