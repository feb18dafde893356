"""The rules of the challenges, each against a computation written out here from the rules, and published constants."""

from __future__ import annotations

import math
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK
from PIL import Image
from scipy.ndimage import distance_transform_edt

from nnunet_semi.errors import UserError, WrongUse
from nnunet_semi.evaluation import CHALLENGE_NAMES
from nnunet_semi.evaluation.challenges import CHALLENGES, fugc_score
from nnunet_semi.evaluation.landmarks import CL_DETECTION
from nnunet_semi.evaluation.run import evaluate
from nnunet_semi.evaluation.surface import surface_areas, surface_codes

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
FLARE = DATA / "flare_layout/Training/FLARE22_LabeledCase50/labels"
FUGC = DATA / "fugc_layout/train/labeled_data/labels"
AICUP = DATA / "aicup/predictions"


def needs(folder):
    return pytest.mark.skipif(not folder.is_dir(), reason=f"{folder} is not there")


def test_the_command_line_offers_the_challenges_that_there_are():
    assert (*CHALLENGES, CL_DETECTION) == CHALLENGE_NAMES  # the latter scores landmarks


def test_an_unknown_challenge_and_labels_of_ones_own_are_wrong_use(tmp_path):
    with pytest.raises(WrongUse, match="expected one of fugc2025"):
        evaluate(tmp_path, tmp_path, challenge="acdc")
    with pytest.raises(WrongUse, match="leave -l out"):
        evaluate(tmp_path, tmp_path, challenge="flare22", labels=[1])


# --- FUGC 2025 ---


def write_png(folder, name, array):
    folder.mkdir(exist_ok=True)
    Image.fromarray(array).save(folder / f"{name}.png")


def lips(rng):
    """Two ellipses as labels 1 and 2."""
    y, x = np.ogrid[:84, :136]
    labels = np.zeros((84, 136), np.uint8)
    for label, centre in ((1, (30, 50)), (2, (55, 80))):
        row, column, height, width = *(c + rng.integers(-6, 7) for c in centre), *rng.integers(8, 20, 2)
        labels[((y - row) / height) ** 2 + ((x - column) / width) ** 2 < 1] = label
    return labels


def fugc_by_the_rules(reference, prediction):
    """Dice of lip 1 and 2, and the Hausdorff distances of both as one, of 1 and of 2, with ITK."""
    dice, hausdorff = [], []
    for members in ((1, 2), (1,), (2,)):
        masks = [np.isin(array, members) for array in (reference, prediction)]
        itk = SimpleITK.HausdorffDistanceImageFilter()
        itk.Execute(*(SimpleITK.GetImageFromArray(mask.astype(np.uint8)) for mask in masks))
        hausdorff.append(itk.GetHausdorffDistance())
        if len(members) == 1:
            both = (masks[0] & masks[1]).sum()
            dice.append((2 * both + 1e-6) / (masks[0].sum() + masks[1].sum() + 1e-6))
    return dice, hausdorff


def test_fugc_is_what_its_rules_say(tmp_path):
    rng = np.random.default_rng(0)
    pairs = [(lips(rng), lips(rng)) for _ in range(6)]
    for number, (reference, prediction) in enumerate(pairs):
        write_png(tmp_path / "reference", f"{number:04d}", reference)
        write_png(tmp_path / "prediction", f"{number:04d}", prediction)
    found = evaluate(tmp_path / "reference", tmp_path / "prediction", challenge="fugc2025", milliseconds=300.0)
    expected = [fugc_by_the_rules(*pair) for pair in pairs]
    for case, (dice, hausdorff) in zip(found.cases, expected, strict=True):
        assert [case.metrics[label]["Dice"] for label in (1, 2)] == pytest.approx(dice, rel=1e-12)
        assert [case.metrics[label]["HD"] for label in ((1, 2), 1, 2)] == pytest.approx(hausdorff, rel=1e-6)
    dice, hausdorff = (np.mean([np.mean(values[part]) for values in expected]) for part in (0, 1))
    assert found.challenge["DSC"] == pytest.approx(dice) and found.challenge["HD"] == pytest.approx(hausdorff)
    score = (
        0.4 * (40 + 60 * (dice - 0.526495) / (0.902611 - 0.526495))
        + 0.4 * (100 - 60 * (hausdorff - 38.88497) / (137.4622 - 38.88497))
        + 0.2 * (100 - 60 * (300 - 268.266) / (837.006 - 268.266))
    )
    assert found.challenge["score"] == pytest.approx(score)
    assert found.unit == "pixels"


def test_the_best_and_the_worst_of_fugc_have_100_and_40():
    assert fugc_score(0.902611, 38.88497, 268.266) == pytest.approx(
        {"S_DSC": 100, "S_HD": 100, "S_RT": 100, "score": 100}
    )
    assert fugc_score(0.526495, 137.4622, 837.006) == pytest.approx({"S_DSC": 40, "S_HD": 40, "S_RT": 40, "score": 40})


def test_fugc_gives_nothing_for_being_faster_than_the_fastest_and_no_total_without_a_time():
    assert fugc_score(0.8, 60.0, 1.0)["S_RT"] == 100
    assert set(fugc_score(0.8, 60.0)) == {"S_DSC", "S_HD"}


def test_the_published_seventh_of_fugc():
    """Dice .8518, HD 58.81 px, 349.6 ms; the parts by hand."""
    found = fugc_score(0.8518, 58.81, 349.6)
    assert found["S_DSC"] == pytest.approx(91.894, abs=1e-3)
    assert found["S_HD"] == pytest.approx(87.872, abs=1e-3)
    assert found["S_RT"] == pytest.approx(91.420, abs=1e-3)
    assert found["score"] == pytest.approx(90.190, abs=1e-3)


def test_an_empty_lip_of_fugc_has_a_dice_and_no_distance(tmp_path):
    labels = lips(np.random.default_rng(1))
    write_png(tmp_path / "reference", "a", labels)
    write_png(tmp_path / "prediction", "a", labels * (labels == 1))
    found = evaluate(tmp_path / "reference", tmp_path / "prediction", challenge="fugc2025")
    metrics = found.cases[0].metrics
    assert found.notes[0].startswith("1 values of HD are not defined, because a class is empty in one of the two files")
    assert metrics[1]["Dice"] == 1 and 0 < metrics[2]["Dice"] < 1e-6
    assert math.isnan(metrics[2]["HD"]) and metrics[1]["HD"] == 0 and metrics[1, 2]["HD"] > 0


def test_masks_with_other_labels_than_the_challenge_has_are_refused(tmp_path):
    write_png(tmp_path / "reference", "a", np.full((4, 5), 255, np.uint8))
    write_png(tmp_path / "prediction", "a", np.zeros((4, 5), np.uint8))
    with pytest.raises(UserError, match=r"holds the labels \[255\]; expected those of fugc2025, \[0, 1, 2\]"):
        evaluate(tmp_path / "reference", tmp_path / "prediction", challenge="fugc2025")


@needs(FUGC)
def test_fugc_on_its_layout():
    found = evaluate(FUGC, FUGC, challenge="fugc2025", num_processes=1)
    assert len(found.cases) == 30 and found.challenge["DSC"] == 1


# --- FLARE22 ---

TOLERANCE = {1: 5, 2: 3, 3: 3, 4: 5, 5: 2, 6: 2, 7: 2, 8: 2, 9: 2, 10: 3, 11: 5, 12: 7, 13: 3}


def nsd_by_whole_distance_maps(reference, prediction, spacing, tolerance):
    codes = [surface_codes(mask) for mask in (reference, prediction)]
    surfaces = [(code > 0) & (code < 255) for code in codes]
    maps = [distance_transform_edt(~surface, sampling=spacing) for surface in surfaces]
    areas = [surface_areas(tuple(map(float, spacing)))[code] for code in codes]
    within = sum(areas[i][surfaces[i] & (maps[1 - i] <= tolerance)].sum() for i in (0, 1))
    return within / sum(areas[i][surfaces[i]].sum() for i in (0, 1))


def flare_by_the_rules(reference, prediction, spacing):
    """{label: (DSC, NSD)}; arrays and spacing in the order x, y, z, as the official script has them."""
    scores = {}
    for label, tolerance in TOLERANCE.items():
        masks = [reference == label, prediction == label]
        if not masks[0].any():
            scores[label] = (0.0, 0.0) if masks[1].any() else (1.0, 1.0)
            continue
        if label in (5, 6, 10):
            slices = np.where(masks[0])[2]
            masks = [mask[:, :, slices.min() : slices.max()] for mask in masks]
        dice = 2 * (masks[0] & masks[1]).sum() / (masks[0].sum() + masks[1].sum())
        nsd = 0.0 if dice < 0.2 else nsd_by_whole_distance_maps(*masks, spacing, tolerance)
        scores[label] = (np.round(dice, 4), np.round(nsd, 4))
    return scores


def write_volume(folder, name, array, spacing=(0.8, 0.9, 2.5)):
    """x, y, z."""
    folder.mkdir(exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, np.diag([*spacing, 1.0])), folder / f"{name}.nii.gz")


def organs(seed):
    """Balls as organs, the esophagus (10) and the aorta (5) longer than in the reference where the seed is odd."""
    rng = np.random.default_rng(seed)
    x, y, z = np.ogrid[:40, :42, :24]
    labels = np.zeros((40, 42, 24), np.uint8)
    for label in TOLERANCE:
        centre = np.array([8 + 9 * (label % 4), 7 + 9 * (label // 4), 12]) + (
            0 if label in (5, 6, 10) else rng.integers(0, 2, 3)
        )
        depth = 6 + 3 * (seed % 2) if label in (5, 10) else 6
        labels[((x - centre[0]) / 5) ** 2 + ((y - centre[1]) / 4) ** 2 + ((z - centre[2]) / depth) ** 2 < 1] = label
    return labels


def flare_scores(tmp_path, reference, prediction, spacing=(0.8, 0.9, 2.5)):
    write_volume(tmp_path / "reference", "a", reference, spacing)
    write_volume(tmp_path / "prediction", "a", prediction, spacing)
    found = evaluate(tmp_path / "reference", tmp_path / "prediction", challenge="flare22")
    return {label: (values["Dice"], values["NSD"]) for label, values in found.cases[0].metrics.items()}, found


def test_flare_is_what_its_rules_say(tmp_path):
    reference, prediction = organs(0), organs(1)
    prediction[prediction == 9] = 0  # a missing organ
    reference[reference == 8] = 0  # one that is not there
    reference[reference == 7] = prediction[prediction == 7] = 0  # one that neither has
    prediction[prediction == 4] = 0
    prediction[:4, :4, :4] = 4  # Dice 0 with some voxels
    scores, found = flare_scores(tmp_path, reference, prediction)
    assert scores == flare_by_the_rules(reference, prediction, np.float32((0.8, 0.9, 2.5)).astype(float))
    assert scores[7] == (1, 1) and scores[8] == scores[9] == scores[4] == (0, 0)
    assert found.challenge["DSC"] == pytest.approx(np.mean([dice for dice, _ in scores.values()]))
    assert found.challenge["NSD"] == pytest.approx(np.mean([nsd for _, nsd in scores.values()]))


def test_flare_scores_tubes_only_where_the_reference_has_them_without_its_last_slice(tmp_path):
    reference, prediction = np.zeros((2, 12, 12, 10), np.uint8)
    for tube in (5, 6, 10):
        reference[tube - 4 : tube - 2, 3:6, 2:7] = tube
        prediction[tube - 4 : tube - 2, 3:6, :6] = tube  # wrong below, and missing in the last slice: both forgiven
    reference[0, 8:11, 2:7] = prediction[0, 8:11, :6] = 1  # the liver is forgiven nothing
    scores, _ = flare_scores(tmp_path, reference, prediction)
    assert scores[5] == scores[6] == scores[10] == (1, 1)
    assert scores[1][0] == round(2 * 4 / 11, 4)


def test_flare_gives_no_nsd_below_a_dice_of_a_fifth(tmp_path):
    reference, prediction = np.zeros((2, 12, 12, 12), np.uint8)
    reference[2:8, 2:8, 2:8] = prediction[7:10, 2:8, 2:8] = 1
    scores, _ = flare_scores(tmp_path, reference, prediction)
    assert scores[1] == (round(2 * 36 / (216 + 108), 4), 1.0)  # .2222
    prediction[prediction == 1] = 0
    prediction[7:11, 2:8, 2:8] = 1
    (tmp_path / "again").mkdir()
    scores, _ = flare_scores(tmp_path / "again", reference, prediction)
    assert scores[1][0] == 0.2 and scores[1][1] > 0  # not below
    prediction[11, 2:8, 2:8] = 1
    (tmp_path / "third").mkdir()
    scores, _ = flare_scores(tmp_path / "third", reference, prediction)
    assert scores[1] == (round(2 * 36 / (216 + 180), 4), 0)


def test_a_tube_of_a_single_slice_is_not_defined_as_in_the_official_script(tmp_path):
    reference = np.zeros((6, 6, 6), np.uint8)
    reference[2:4, 2:4, 3] = 5
    scores, found = flare_scores(tmp_path, reference, reference)
    assert all(math.isnan(value) for value in scores[5])
    assert found.challenge["DSC"] == 1


def test_flare_refuses_pictures_by_name(tmp_path):
    for folder in ("reference", "prediction"):
        write_png(tmp_path / folder, "a", np.ones((4, 5), np.uint8))
    with pytest.raises(UserError, match=r"reference/a\.png has 2 dimensions; expected a volume for flare22"):
        evaluate(tmp_path / "reference", tmp_path / "prediction", challenge="flare22")


@needs(FLARE)
def test_flare_on_its_layout(tmp_path):
    (file,) = FLARE.glob("*.nii.gz")
    image = nibabel.load(file)
    reference = np.asanyarray(image.dataobj)
    prediction = np.roll(reference, (1, 0, -1), (0, 1, 2))
    scores, _ = flare_scores(tmp_path, reference, prediction, image.header.get_zooms())
    assert scores == flare_by_the_rules(reference, prediction, np.asarray(image.header.get_zooms(), float))


# --- AICUP 2022 ---


def test_aicup_reads_masks_of_any_kind_and_reports_all_three_means(tmp_path):
    reference, prediction = np.zeros((2, 3, 4, 6), np.uint8)
    reference[0, :2], prediction[0, :2, :3] = 255, 3  # Dice 12 / 18
    reference[1, 1], prediction[1, 1] = 1, 255  # Dice 1
    for number in range(3):  # the third is empty in both
        write_png(tmp_path / "reference", str(number), np.stack([reference[number]] * 3, axis=-1))
        write_png(tmp_path / "prediction", str(number), prediction[number])
    found = evaluate(tmp_path / "reference", tmp_path / "prediction", challenge="aicup-stas")
    assert found.challenge == pytest.approx(
        {
            "Dice of all pixels": 2 * (6 + 6) / (18 + 12),
            "mean Dice": (12 / 18 + 1) / 2,
            "mean Dice, 1 where both are empty": (12 / 18 + 1 + 1) / 3,
        }
    )
    assert found.undefined(1) == (1, 0)


@needs(AICUP)
def test_aicup_on_real_predictions():
    one, other = (AICUP / name for name in ("efficientnetv2", "eca_nfnet"))
    found = evaluate(one, other, challenge="aicup-stas", num_processes=1)
    dice = []
    for file in sorted(one.glob("*.png")):
        a, b = (np.asarray(Image.open(folder / file.name)) > 0 for folder in (one, other))
        dice.append((2 * (a & b).sum(), a.sum() + b.sum()))
    both, each = np.array(dice).T
    assert found.challenge["Dice of all pixels"] == pytest.approx(both.sum() / each.sum())
    assert found.challenge["mean Dice"] == pytest.approx((both[each > 0] / each[each > 0]).mean())
