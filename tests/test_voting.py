"""Majority votes: ties by hand, binary masks of any kind, and the predictions of the AICUP seed."""

from __future__ import annotations

import errno
import json
import os
import tempfile
from itertools import product
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from label_map_folders import SPACING, volumes, write
from nnunet_semi import pool
from nnunet_semi.cli import main
from nnunet_semi.errors import UserError, WrongUse
from nnunet_semi.labelmaps.files import read_label_map
from nnunet_semi.voting import ensemble, majority, majority_mask

AICUP = Path(__file__).resolve().parents[2] / "shared" / "data" / "aicup" / "predictions"
MODELS = ("efficientnetv2", "eca_nfnet", "efficientnet_b6")


def picture(folder, name, array):
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(array)).save(folder / f"{name}.png")


def volume(folder, name, array, spacing=1.0):
    folder.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, np.diag([spacing, 1, 1, 1])), folder / f"{name}.nii.gz")


def pixels(path):
    with Image.open(path) as image:
        assert image.mode == "L"
        return np.asarray(image)


def by_counting(column):
    """The winner among the labels of one voxel: most votes, then first in the list."""
    return max(column, key=lambda label: (column.count(label), -column.index(label)))


# --- the vote ---


@pytest.mark.parametrize("voters", [2, 3, 4, 5])
def test_majority_is_what_counting_says_for_every_combination(voters):
    combinations = list(product(range(3), repeat=voters))
    label_maps = list(np.array(combinations, np.uint8).T)
    assert majority(label_maps).tolist() == [by_counting(column) for column in combinations]


def test_tied_labels_are_decided_by_the_prediction_that_comes_first():
    one, two, three, four = [np.array([label], np.uint8) for label in (5, 2, 2, 5)]
    assert majority([one, two]) == [5] and majority([two, one]) == [2]
    assert majority([one, two, three, four]) == [5] and majority([two, one, four, three]) == [2]
    lonely = np.array([9], np.uint8)
    assert majority([lonely, two, one, three, four]) == [2]  # 9 is first, but not among the tied


@pytest.mark.parametrize("voters", [2, 3, 4, 5])
def test_a_mask_is_set_where_more_than_half_are_as_rounding_the_mean_does(voters):
    combinations = np.array(list(product((0, 1), repeat=voters)), np.uint8)
    assert majority_mask(list(combinations.T)).tolist() == np.round(combinations.mean(axis=1)).tolist()


def test_a_tie_of_three_masks_to_three_is_background():
    """numpy rounds halves to even; .5 goes to 0 for any number of voters."""
    assert majority_mask([np.array([value], np.uint8) for value in (1, 1, 1, 0, 0, 0)]) == [0]


def test_agreement_is_kept_and_labels_above_255_are_not_cut():
    label_map = np.array([0, 300, 65535], np.uint16)
    result = majority([label_map, label_map, np.array([0, 3, 4], np.uint8)])
    assert result.tolist() == label_map.tolist()


def test_voting_does_not_change_what_it_reads():
    label_maps = [np.array([1, 2], np.uint8), np.array([2, 2], np.uint8), np.array([2, 1], np.uint8)]
    before = [label_map.copy() for label_map in label_maps]
    majority(label_maps)
    np.testing.assert_array_equal(label_maps, before)


# --- folders ---


def test_label_maps_are_voted_on_and_keep_format_and_grid(tmp_path):
    arrays = np.random.default_rng(0).integers(0, 4, (3, 5, 6, 7)).astype(np.uint8)
    for number, array in enumerate(arrays):
        volume(tmp_path / str(number), "a", array, spacing=2.0)
    (tmp_path / "0" / "dataset.json").write_text(json.dumps({"labels": {"background": 0}}))
    output = ensemble([tmp_path / str(number) for number in range(3)], tmp_path / "new" / "out")
    image = nibabel.load(output / "a.nii.gz")
    np.testing.assert_array_equal(np.asanyarray(image.dataobj), majority(list(arrays)))
    assert image.header.get_zooms() == (2, 1, 1) and image.get_data_dtype() == np.uint8
    assert sorted(os.listdir(output)) == ["a.nii.gz", "dataset.json"]


def test_gipl_is_voted_on_and_noticed_if_it_was_cut_off(tmp_path):
    arrays = [volumes(seed)["case_0"] for seed in range(3)]
    folders = [tmp_path / str(number) for number in range(3)]
    for folder, array in zip(folders, arrays, strict=True):
        last = write(folder / "a.gipl", array)
    output = ensemble(folders, tmp_path / "out")
    np.testing.assert_array_equal(read_label_map(output / "a.gipl")[0], majority(arrays))
    last.write_bytes(last.read_bytes()[:-9])
    with pytest.raises(UserError, match=r"a\.gipl cannot be read \(got 415 of 424 bytes\)"):
        ensemble(folders, tmp_path / "new")


def test_binary_masks_of_any_depth_and_channels_become_0_and_255(tmp_path):
    column = np.array([[0, 1, 200, 255]], np.uint8)
    rgb = np.stack([column * 0, column, column * 0], axis=-1)
    picture(tmp_path / "grey", "a", column)
    picture(tmp_path / "rgb", "a", rgb)
    picture(tmp_path / "deep", "a", np.array([[0, 0, 0, 65535]], np.uint16))
    picture(tmp_path / "bits", "a", np.array([[True, False, True, True]]))
    folders = [tmp_path / name for name in ("grey", "rgb", "deep")]
    ensemble(folders, tmp_path / "three")
    assert pixels(tmp_path / "three" / "a.png").tolist() == [[0, 255, 255, 255]]
    ensemble([*folders, tmp_path / "bits"], tmp_path / "four")
    assert pixels(tmp_path / "four" / "a.png").tolist() == [[0, 0, 255, 255]]  # two of four are a tie


def test_masks_may_be_empty_or_have_grey_edges(tmp_path):
    for name in ("one", "two"):
        picture(tmp_path / name, "a", np.array([[0, 0, 0, 0]], np.uint8))
        picture(tmp_path / name, "b", np.array([[3, 0, 90, 255]], np.uint8))
        picture(tmp_path / name, "c", np.array([[255, 255, 255, 7]], np.uint8))
    said = []
    ensemble([tmp_path / "one", tmp_path / "two"], tmp_path / "out", log=said.append)
    results = [pixels(tmp_path / "out" / f"{case}.png").tolist() for case in "abc"]
    assert results == [[[0, 0, 0, 0]], [[255, 0, 255, 255]], [[255, 255, 255, 255]]]
    (sentence,) = said
    assert "look like masks" in sentence and "--no-binary" in sentence


@pytest.mark.parametrize("channels", [1, 3])
def test_a_few_pixels_of_255_do_not_make_masks_of_label_maps(tmp_path, channels):
    arrays = np.random.default_rng(0).integers(0, 4, (3, 9, 8)).astype(np.uint8)
    arrays[0, 4, 4] = 255
    for name, array in zip("abc", arrays, strict=True):
        picture(tmp_path / name, "x", array if channels == 1 else np.stack([array] * 3, axis=-1))
    said = []
    ensemble([tmp_path / name for name in "abc"], tmp_path / "out", log=said.append)
    np.testing.assert_array_equal(pixels(tmp_path / "out" / "x.png"), majority(list(arrays)))
    (sentence,) = said
    assert "look like label maps" in sentence and "--binary" in sentence


MASK = [[0, 255, 255, 0, 0, 0]]


@pytest.mark.parametrize(
    ("mask", "labels", "said"),
    [
        (MASK, [[0, 1, 2, 3, 1, 2]], r"2 of 4 files look like masks.*one.a\.png.*expected label maps.*--no-binary"),
        (MASK, [[0, 1, 0, 0, 0, 0]], r"2 of 4 files look like label maps, without any white.*b\.png.*expected white"),
        ([[[9, 0, 0], [0, 0, 0]]], [[1, 2]], r"2 of 4 files look like masks, black and white or coloured.*a\.png"),
    ],
)
def test_masks_and_label_maps_together_are_refused_unless_one_says_what_they_are(tmp_path, mask, labels, said):
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        picture(folder, "a", np.array(mask, np.uint8))
        picture(folder, "b", np.array(labels, np.uint8))
    with pytest.raises(UserError, match=said):
        ensemble(folders, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    ensemble(folders, tmp_path / "out", binary=True)
    assert set(pixels(tmp_path / "out" / "b.png").ravel()) == {0, 255} or np.ndim(mask) == 3


def test_white_masks_and_volumes_of_labels_together_are_refused(tmp_path):
    picture(tmp_path / "one", "a", np.array([[255, 0]], np.uint8))
    volume(tmp_path / "two", "a", np.array([[2], [0]], np.uint8))
    with pytest.raises(UserError, match=r"look like masks.*a\.png.*expected label maps"):
        ensemble([tmp_path / "one", tmp_path / "two"], tmp_path / "out")


def test_volumes_are_not_looked_at(tmp_path, monkeypatch):
    monkeypatch.setattr("nnunet_semi.voting.count_white", None)
    for name in ("one", "two"):
        volume(tmp_path / name, "a", np.full((2, 3, 4), 255, np.uint8))
    said = []
    ensemble([tmp_path / "one", tmp_path / "two"], tmp_path / "out", log=said.append)
    assert said == []


@pytest.mark.parametrize(("binary", "expected"), [(None, [[1, 2]]), (True, [[255, 255]]), (False, [[1, 2]])])
def test_pictures_with_few_labels_are_label_maps_unless_told_otherwise(tmp_path, binary, expected):
    for name, array in (("one", [[1, 2]]), ("two", [[2, 1]])):
        picture(tmp_path / name, "a", np.array(array, np.uint8))
    ensemble([tmp_path / "one", tmp_path / "two"], tmp_path / "out", binary=binary)
    assert pixels(tmp_path / "out" / "a.png").tolist() == expected


def test_a_palette_is_no_white_mask(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        image = Image.new("P", (2, 1))
        image.putpalette(list(range(256)) * 3)
        image.putdata([1, 255])
        image.save(tmp_path / name / "a.png")
    ensemble([tmp_path / "one", tmp_path / "two"], tmp_path / "out")
    assert pixels(tmp_path / "out" / "a.png").tolist() == [[1, 255]]


@pytest.mark.skipif(not AICUP.is_dir(), reason=f"{AICUP} is not there")
@pytest.mark.parametrize("models", [MODELS, MODELS[:2]], ids=["three", "two"])
def test_real_predictions_give_what_the_seed_gives(tmp_path, models):
    """The seed: above 0 in each prediction, the mean over the models, rounded, times 255."""
    output = ensemble([AICUP / model for model in models], tmp_path / "out", num_processes=1, progress=False)
    names = sorted(os.listdir(AICUP / models[0]))
    assert sorted(os.listdir(output)) == names and len(names) == 40
    for name in names:
        masks = [np.asarray(Image.open(AICUP / model / name)) > 0 for model in models]
        expected = np.round(np.mean(masks, axis=0)).astype(np.uint8) * 255
        np.testing.assert_array_equal(pixels(output / name), expected, err_msg=name)


def test_processes_change_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(pool, "HEAD_START", 0.0)
    rng = np.random.default_rng(0)
    for number, case in product(range(3), "abcd"):
        picture(tmp_path / str(number), case, rng.integers(0, 4, (9, 8)).astype(np.uint8))
        picture(tmp_path / "masks" / str(number), case, 255 * rng.integers(0, 2, (9, 8)).astype(np.uint8))
    folders = [tmp_path / str(number) for number in range(3)]
    for processes in (1, 2):
        ensemble(folders, tmp_path / f"out{processes}", num_processes=processes)
    for case in "abcd":
        one, two = (pixels(tmp_path / f"out{processes}" / f"{case}.png") for processes in (1, 2))
        np.testing.assert_array_equal(one, two)
    found = ensemble([tmp_path / "masks" / str(number) for number in range(3)], tmp_path / "voted", num_processes=2)
    assert set(pixels(found / "a.png").ravel()) == {0, 255}


# --- what can be wrong ---


@pytest.fixture
def two(tmp_path):
    for name in ("one", "two"):
        for case in "ab":
            picture(tmp_path / name, case, np.zeros((4, 5), np.uint8))
    return [tmp_path / "one", tmp_path / "two"]


def test_cases_missing_on_either_side_and_other_shapes_are_named_at_once(two, tmp_path):
    (two[0] / "a.png").unlink()
    picture(two[0], "c", np.zeros((4, 5), np.uint8))
    picture(two[1], "b", np.zeros((4, 6), np.uint8))
    with pytest.raises(UserError) as refused:
        ensemble(two, tmp_path / "out")
    for part in (
        f"{two[0]} lacks 1 of 3 cases: a",
        f"{two[1]} lacks 1 of 3 cases: c",
        "b (shape (4, 5) against (4, 6)",
    ):
        assert part in str(refused.value)
    assert not (tmp_path / "out").exists()


def test_files_that_are_no_label_maps_are_named_and_leave_no_output(two, tmp_path):
    picture(two[1], "b", np.random.default_rng(0).integers(0, 255, (4, 5, 3)).astype(np.uint8))
    with pytest.raises(UserError, match=r"1 of 2 cases cannot be voted on: .*b\.png is a coloured picture"):
        ensemble(two, tmp_path / "out", binary=False)
    assert sorted(os.listdir(tmp_path)) == ["one", "two"]


def test_files_are_not_replaced_silently(two, tmp_path):
    picture(tmp_path / "out", "a", np.ones((4, 5), np.uint8))
    with pytest.raises(UserError, match=r"already holds a\.png"):
        ensemble(two, tmp_path / "out")
    assert pixels(tmp_path / "out" / "a.png").all()
    ensemble(two, tmp_path / "out", overwrite=True)
    assert not pixels(tmp_path / "out" / "a.png").any()


def test_files_beside_the_results_are_not_replaced_silently(tmp_path):
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        write(folder / "a.tif", volumes(0)["case_0"])
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.json").write_text("mine")
    with pytest.raises(UserError, match=r"already holds a\.json"):
        ensemble(folders, tmp_path / "out")
    assert (tmp_path / "out" / "a.json").read_text() == "mine"
    ensemble(folders, tmp_path / "out", overwrite=True)
    assert json.loads((tmp_path / "out" / "a.json").read_text()) == {"spacing": list(SPACING)}


def test_a_link_into_nowhere_is_not_replaced_silently(two, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.png").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"already holds a\.png"):
        ensemble(two, tmp_path / "out")


@pytest.mark.skipif(not os.access("/dev/shm", os.W_OK), reason="there is no other file system")
def test_the_output_may_be_on_another_file_system_than_its_parent(two, tmp_path):
    with tempfile.TemporaryDirectory(dir="/dev/shm") as elsewhere:
        (tmp_path / "out").symlink_to(elsewhere)
        ensemble(two, tmp_path / "out")
        assert sorted(os.listdir(elsewhere)) == ["a.png", "b.png"]


@pytest.mark.parametrize("there_before", [False, True])
def test_a_full_disk_is_a_sentence_and_leaves_no_output(two, tmp_path, monkeypatch, there_before):
    def full(path, labels, like):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr("nnunet_semi.voting.write_label_map", full)
    if there_before:
        (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match=r"out.*\.png: No space left on device; make sure that there is free space"):
        ensemble(two, tmp_path / "out", num_processes=1)
    assert (tmp_path / "out").exists() == there_before
    assert not there_before or os.listdir(tmp_path / "out") == []


def test_an_output_that_cannot_be_made_is_a_sentence(two, tmp_path):
    with pytest.raises(UserError, match="Not a directory; .* choose another -o"):
        ensemble(two, two[0] / "a.png" / "out")


def test_what_cannot_be_meant(two, tmp_path):
    with pytest.raises(WrongUse, match="got 1 predictions"):
        ensemble(two[:1], tmp_path / "out")
    with pytest.raises(WrongUse, match="one of them twice"):
        ensemble([*two, two[0] / ".." / "one"], tmp_path / "out")
    with pytest.raises(WrongUse, match="which is one of the predictions"):
        ensemble(two, two[1], overwrite=True)
    with pytest.raises(UserError, match="is a file"):
        ensemble(two, two[0] / "a.png")
    with pytest.raises(UserError, match="is not a folder"):
        ensemble([two[0], tmp_path / "nowhere"], tmp_path / "out")


# --- the command ---


def test_the_command_prints_where_the_result_is(two, tmp_path, capsys):
    assert main(["ensemble", *map(str, two), "-o", str(tmp_path / "out"), "--binary", "-q"]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'out'}\n"
    assert main(["ensemble", *map(str, two), "-o", str(tmp_path / "out"), "-q"]) == 1
    assert "--overwrite" in capsys.readouterr().err


def test_the_command_says_what_the_look_said(two, tmp_path, capsys):
    assert main(["ensemble", *map(str, two), "-o", str(tmp_path / "out")]) == 0
    assert "the pictures look like label maps" in capsys.readouterr().err
    assert main(["ensemble", *map(str, two), "-o", str(tmp_path / "out"), "--overwrite", "-q"]) == 0
    assert capsys.readouterr().err == ""
