"""Datasets of labeled and pseudo-labeled cases: what they share, what they add, and what stays as it was."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from batchgenerators.utilities.file_and_folder_operations import load_pickle
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_semi.errors import EnvironmentNotReady, UserError, WrongUse
from nnunet_semi.narrow import narrow
from nnunet_semi.plugin_trainer import PluginTrainer
from nnunet_semi.raw import load_json
from nnunet_semi.selftraining.branch import branch
from nnunet_semi.selftraining.links import point_to, share, share_files
from nnunet_semi.selftraining.pseudo import pseudo_cases, pseudo_images
from nnunet_semi.trainers.nnUNetTrainerCPS import nnUNetTrainerCPS
from nnunet_semi.unlabeled.preprocessing import preprocess_unlabeled
from short_training import train, validate
from small_dataset import LABELS, draw_case, environment, write_image
from tiny_trainer import make_trainer

BASE, NUMBER, NAME = "Dataset001_Tiny", 30, "Dataset030_Tiny_branch"
REGIONS = {"background": 0, "whole": (1, 2), "core": 2}
IGNORE = {"background": 0, "disc": 1, "square": 2, "ignore": 3}
CASES = [
    ("2d", {"dimension": 2, "labels": LABELS}),
    ("2d", {"dimension": 2, "labels": IGNORE, "channels": 2}),
    ("3d_fullres", {"dimension": 3, "labels": REGIONS}),
    ("3d_fullres", {"dimension": 3, "labels": IGNORE}),
]
NAMES = ["2D PNG", "2D ignore, two channels", "3D regions", "3D ignore"]


class Dataset:
    """A copy of a tiny dataset that a test may change, and the branch that is made of it."""

    def __init__(self, root: Path, configuration: str) -> None:
        self.root, self.configuration = root, configuration
        self.data = "nnUNetPlans_" + configuration
        self.ending = load_json(self.raw(BASE) / "dataset.json")["file_ending"]

    def raw(self, name: str = NAME) -> Path:
        return self.root / "nnUNet_raw" / name

    def preprocessed(self, name: str = NAME) -> Path:
        return self.root / "nnUNet_preprocessed" / name

    def select(self, *cases: str) -> None:
        (self.preprocessed() / "unlabeled_final.json").write_text(json.dumps({"selected": list(cases)}))

    def label(self, case: str, values: Callable[[tuple[int, ...]], np.ndarray]) -> Path:
        """Writes a pseudo label of the shape and spacing of the image of a case."""
        import SimpleITK as sitk

        image = sitk.ReadImage(str(self.raw() / "imagesUn" / f"{case}_0000{self.ending}"))
        folder = self.raw() / "labelsPs"
        folder.mkdir(exist_ok=True)
        shape = sitk.GetArrayFromImage(image).shape
        write_image(folder / f"{case}{self.ending}", values(shape).astype(np.uint8), image.GetSpacing()[::-1])
        return folder / f"{case}{self.ending}"

    def make(self, *cases: str, values: Callable[[tuple[int, ...]], np.ndarray] | None = None) -> None:
        """A branch with pseudo labels of these cases."""
        branch(1, NUMBER)
        self.select(*cases)
        pseudo_images(NUMBER)
        for number, case in enumerate(cases):
            self.label(case, values or (lambda shape, seed=number: drawn(shape, seed)))
        pseudo_cases(NUMBER, self.configuration, num_processes=1, progress=False)

    def stored(self, case: str) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
        data, seg, _, properties = nnUNetDatasetBlosc2(str(self.preprocessed() / self.data), [case]).load_case(case)
        return data[:], seg[:], properties


def drawn(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return draw_case(np.random.default_rng(seed), shape, 1)[1]


def noise(shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 3, shape)


@pytest.fixture
def own(tiny: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Dataset]:
    def make(configuration: str = "2d", **settings: Any) -> Dataset:
        plans_file = tiny((configuration,), **settings)
        shutil.copytree(plans_file.parents[2], tmp_path / "own")
        for name, value in environment(tmp_path / "own").items():
            monkeypatch.setenv(name, value)
        return Dataset(tmp_path / "own", configuration)

    return make


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:60])


def content(folder: Path) -> dict[str, bytes]:
    """All files below a folder; links are followed."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# --- links ---


def test_a_shared_file_is_the_same_file_and_survives_the_first_one(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("content")
    share(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "a").samefile(tmp_path / "b")
    (tmp_path / "a").unlink()
    share(tmp_path / "gone", tmp_path / "b")
    assert (tmp_path / "b").read_text() == "content"


def refuse(*_: object, **__: object) -> None:
    raise OSError("no links here")


def test_where_hard_links_are_refused_nothing_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As between file systems, and for files of another user."""
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "a").write_text("content")
    monkeypatch.setattr(os, "link", refuse)
    share_files(tmp_path / "one", tmp_path / "two")
    assert (tmp_path / "two" / "a").is_symlink() and (tmp_path / "two" / "a").read_text() == "content"
    (tmp_path / "one" / "a").rename(tmp_path / "one" / "b")
    share(tmp_path / "one" / "b", tmp_path / "two" / "a")  # over a link to what is gone
    assert (tmp_path / "two" / "a").samefile(tmp_path / "one" / "b")


def test_where_there_are_no_links_files_are_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a").write_text("content")
    monkeypatch.setattr(os, "link", refuse)
    monkeypatch.setattr(Path, "symlink_to", refuse)
    point_to(tmp_path / "folder", tmp_path / "other")
    assert (tmp_path / "other" / "a").read_text() == "content"
    assert not (tmp_path / "other" / "a").samefile(tmp_path / "folder" / "a")


def test_what_a_killed_process_left_is_not_shared(tmp_path: Path) -> None:
    for name in (".1234_a.json", "a.json"):
        (tmp_path / name).touch()
    share_files(tmp_path, tmp_path / "other")
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["a.json"]


def test_symbolic_links_survive_when_both_ends_move(tmp_path: Path) -> None:
    (tmp_path / "raw" / "one").mkdir(parents=True)
    (tmp_path / "raw" / "one" / "a").touch()
    (tmp_path / "raw" / "two").mkdir()
    point_to(tmp_path / "raw" / "one", tmp_path / "raw" / "two" / "link")
    (tmp_path / "raw").rename(tmp_path / "moved")
    assert (tmp_path / "moved" / "two" / "link" / "a").is_file()


# --- a branch ---


def test_a_branch_shares_files_and_differs_in_its_name(own: Callable[..., Dataset]) -> None:
    dataset = own()
    assert branch(1, NUMBER) == NAME
    expected = content(dataset.preprocessed(BASE))
    found = content(dataset.preprocessed())
    assert set(found) - set(expected) == {"splits_final.json"}  # of the original there was none yet
    assert set(expected) - set(found) == {"nnUNetPlans_2d_unlabeled.lock"}
    for name in found.keys() & expected.keys() - {"nnUNetPlans.json"}:
        assert found[name] == expected[name], name
    for name in ("nnUNetPlans_2d/tr_000.b2nd", "nnUNetPlans_2d_unlabeled/un_000.b2nd", "gt_segmentations/tr_000.png"):
        assert (dataset.preprocessed() / name).samefile(dataset.preprocessed(BASE) / name)
    plans = load_json(dataset.preprocessed() / "nnUNetPlans.json")
    assert plans == {**load_json(dataset.preprocessed(BASE) / "nnUNetPlans.json"), "dataset_name": NAME}
    assert (dataset.raw() / "imagesTr").is_symlink()
    assert content(dataset.raw() / "imagesUn") == content(dataset.raw(BASE) / "imagesUn")


def test_a_branch_has_the_folds_of_its_original_and_one_of_all_cases(own: Callable[..., Dataset]) -> None:
    dataset = own()
    trainer = make_trainer(PluginTrainer, dataset.preprocessed(BASE) / "nnUNetPlans.json", fold=1)
    branch(1, NUMBER)
    before = json.loads((dataset.preprocessed() / "splits_final.json").read_text())
    split = trainer.do_split()  # nnU-Net makes the file now
    assert before[:-1] == json.loads((dataset.preprocessed(BASE) / "splits_final.json").read_text())
    assert list(map(list, split)) == [before[1]["train"], before[1]["val"]]
    assert len(before[-1]["train"]) == 6 and before[-1]["train"] == before[-1]["val"]


def test_with_two_labeled_cases_there_is_the_fold_of_all_cases_only(own: Callable[..., Dataset]) -> None:
    dataset = own(labeled=2)
    branch(1, NUMBER)
    both = ["tr_000", "tr_001"]
    assert json.loads((dataset.preprocessed() / "splits_final.json").read_text()) == [{"train": both, "val": both}]


def test_a_branch_that_was_interrupted_is_completed(own: Callable[..., Dataset]) -> None:
    dataset = own()
    branch(1, NUMBER)
    expected = content(dataset.preprocessed()), content(dataset.raw())
    (dataset.preprocessed() / "dataset.json").unlink()  # the last thing that is put in place
    (dataset.preprocessed() / "nnUNetPlans_2d" / "tr_003.b2nd").unlink()
    (dataset.raw() / "imagesUn").unlink()
    branch(1, NUMBER)
    assert (content(dataset.preprocessed()), content(dataset.raw())) == expected


def test_a_semi_supervised_trainer_finds_the_unlabeled_cases_of_a_branch_up_to_date(
    own: Callable[..., Dataset],
) -> None:
    dataset = own()
    branch(1, NUMBER)
    trainer = make_trainer(nnUNetTrainerCPS, dataset.preprocessed() / "nnUNetPlans.json")
    assert trainer.unlabeled_dataset().identifiers == [f"un_{number:03d}" for number in range(4)]
    assert "preprocessing for" not in Path(trainer.log_file).read_text()


@pytest.mark.parametrize(
    "number, name, said",
    [
        (1, None, "the dataset id 1 belongs to Dataset001_Tiny"),
        (0, None, "expected 1 to 999"),
        (1000, None, "expected 1 to 999"),
        (30, "../elsewhere", "got the dataset name"),
    ],
)
def test_a_name_that_cannot_be_is_refused(
    own: Callable[..., Dataset], number: int, name: str | None, said: str
) -> None:
    dataset = own()
    with pytest.raises(WrongUse, match=said):
        branch(1, number, name)
    assert [path.name for path in dataset.raw().parent.iterdir()] == [BASE]


def test_a_dataset_that_is_no_branch_of_this_one_is_left_alone(own: Callable[..., Dataset]) -> None:
    dataset = own()
    shutil.copytree(dataset.raw(BASE), dataset.raw())
    before = content(dataset.raw())
    with pytest.raises(WrongUse, match="is no branch of Dataset001_Tiny"):
        branch(1, NUMBER)
    (dataset.raw() / "branch.json").write_text('{"branch_of": "Dataset004_Other"}')
    with pytest.raises(WrongUse, match="is a branch of Dataset004_Other, not of Dataset001_Tiny"):
        branch(1, NUMBER)
    (dataset.raw() / "branch.json").unlink()
    assert content(dataset.raw()) == before


def test_plans_that_have_changed_are_told_and_added_configurations_are_taken_over(
    own: Callable[..., Dataset],
) -> None:
    dataset = own()
    branch(1, NUMBER)
    narrow(1, "2d", width=4)
    branch(1, NUMBER)
    file = dataset.preprocessed() / "nnUNetPlans.json"
    assert "2d_w4" in load_json(file)["configurations"]
    before = file.read_bytes()
    original = dataset.preprocessed(BASE) / "nnUNetPlans.json"
    plans = load_json(original)
    plans["configurations"]["2d"]["spacing"] = [2.0, 2.0]
    original.write_text(json.dumps(plans))
    with pytest.raises(UserError, match=r"have changed since \(2d\); delete this branch"):
        branch(1, NUMBER)
    assert file.read_bytes() == before


# --- pseudo-labeled cases ---


@pytest.mark.parametrize("configuration, settings", CASES, ids=NAMES)
@pytest.mark.parametrize("reused", [True, False], ids=["image reused", "image lost"])
def test_a_pseudo_labeled_case_is_what_nnunet_makes_of_a_labeled_one(
    own: Callable[..., Dataset], configuration: str, settings: dict[str, Any], reused: bool
) -> None:
    """Cropping to what is not zero and resampling included."""
    dataset = own(configuration, **settings)
    channels, volume = settings.get("channels", 1), settings["dimension"] == 3
    image, _ = draw_case(np.random.default_rng(5), (20, 30, 26) if volume else (40, 37), channels)
    image[..., :4] = image[..., :3, :] = 0
    for channel, values in enumerate(image):
        path = dataset.raw(BASE) / "imagesUn" / f"un_001_{channel:04d}{dataset.ending}"
        write_image(path, values, (1.5, 0.8, 1.3) if volume else None)
    preprocess_unlabeled(1, [configuration], num_processes=1, progress=False)
    if not reused:
        (dataset.preprocessed(BASE) / f"{dataset.data}_unlabeled" / "un_001.b2nd").unlink()
    dataset.make("un_001")
    plans = PlansManager(str(dataset.preprocessed() / "nnUNetPlans.json"))
    images = sorted(str(path) for path in (dataset.raw() / "imagesUn").glob("un_001_*"))
    expected = DefaultPreprocessor(verbose=False).run_case(
        images,
        str(dataset.raw() / "labelsPs" / f"un_001{dataset.ending}"),
        plans,
        plans.get_configuration(configuration),
        load_json(dataset.preprocessed() / "dataset.json"),
    )
    data, seg, properties = dataset.stored("un_001")
    assert np.array_equal(data, expected[0])
    assert seg.dtype == np.int16 and np.array_equal(seg, expected[1])
    assert {1, 2} <= set(np.unique(seg)) or volume
    assert properties.keys() == expected[2].keys()
    for name, locations in expected[2]["class_locations"].items():
        assert np.array_equal(properties["class_locations"][name], locations)
    file = dataset.preprocessed() / dataset.data / "un_001.b2nd"
    assert file.stat().st_nlink == (3 if reused else 1)  # the original's, the branch's unlabeled and its training case


def test_where_hard_links_are_refused_images_are_linked(
    own: Callable[..., Dataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "link", refuse)
    dataset = own()
    dataset.make("un_001")
    image = dataset.preprocessed() / dataset.data / "un_001.b2nd"
    assert image.is_symlink()
    assert image.samefile(dataset.preprocessed(BASE) / f"{dataset.data}_unlabeled" / "un_001.b2nd")
    assert np.isfinite(dataset.stored("un_001")[0]).all()


def test_pseudo_labels_reach_the_training_cases_and_nothing_else(own: Callable[..., Dataset]) -> None:
    """Of two branches whose pseudo labels are as different as can be, only the segmentations of these cases differ."""
    dataset = own()
    before = content(dataset.raw(BASE)), content(dataset.preprocessed(BASE))
    dataset.make("un_001", "un_003", values=lambda shape: np.zeros(shape))
    clean = content(dataset.preprocessed())
    for case in ("un_001", "un_003"):
        dataset.label(case, noise)
    pseudo_cases(NUMBER, "2d", num_processes=1, progress=False)
    poisoned = content(dataset.preprocessed())
    assert poisoned.keys() == clean.keys()
    changed = {name for name in clean if clean[name] != poisoned[name]}
    made = {f"nnUNetPlans_2d/{case}{ending}" for case in ("un_001", "un_003") for ending in (".pkl", "_seg.b2nd")}
    assert changed == made
    assert (content(dataset.raw(BASE)), content(dataset.preprocessed(BASE))) == before
    for name in ("dataset_fingerprint.json", *(f"gt_segmentations/tr_{number:03d}.png" for number in range(6))):
        assert poisoned[name] == before[1][name]
    assert [name for name in poisoned if name.startswith("gt_segmentations/un")] == []
    splits = json.loads(poisoned["splits_final.json"])
    assert len(splits) == 6
    for fold in splits:
        assert {case for case in fold["train"] if case.startswith("un")} == {"un_001", "un_003"}
        assert not [case for case in fold["val"] if case.startswith("un")]


def test_a_training_learns_pseudo_labels_and_is_validated_without_them(own: Callable[..., Dataset]) -> None:
    dataset = own()
    dataset.make("un_001", "un_003", values=noise)
    trainer = make_trainer(PluginTrainer, dataset.preprocessed() / "nnUNetPlans.json", fold=0, batch_size=16)
    seen: dict[str, list[str]] = {"train": [], "val": []}
    own_step, own_validation = trainer.train_step, trainer.validation_step
    trainer.train_step = lambda batch: (seen["train"].extend(batch["keys"]), own_step(batch))[1]
    trainer.validation_step = lambda batch: (seen["val"].extend(batch["keys"]), own_validation(batch))[1]
    os.environ["nnUNet_n_proc_DA"] = "0"
    train(trainer)
    validate(trainer)
    assert {"un_001", "un_003"} < set(seen["train"])
    assert {case for case in seen["val"] if case.startswith("un")} == set()
    summary = json.loads(Path(trainer.output_folder, "validation", "summary.json").read_text())
    validated = {Path(case["prediction_file"]).stem for case in summary["metric_per_case"]}
    assert validated == set(trainer.do_split()[1]) and all(case.startswith("tr") for case in validated)


def test_cases_that_are_selected_no_more_vanish(own: Callable[..., Dataset]) -> None:
    dataset = own()
    dataset.make("un_001", "un_003")
    dataset.select("un_002", "un_003")
    assert {path.name[:6] for path in pseudo_images(NUMBER).iterdir()} == {"un_002", "un_003"}
    dataset.label("un_002", noise)
    again = pseudo_cases(NUMBER, "2d", num_processes=1, progress=False)
    assert (again.cases, again.made) == (["un_002", "un_003"], 1)
    assert sorted(path.stem for path in again.folder.glob("un*.pkl")) == ["un_002", "un_003"]
    splits = json.loads((dataset.preprocessed() / "splits_final.json").read_text())
    assert all("un_001" not in fold["train"] and "un_002" in fold["train"] for fold in splits)
    assert len(list(again.folder.glob("tr*.pkl"))) == 6


def test_a_second_run_changes_nothing(own: Callable[..., Dataset]) -> None:
    dataset = own()
    dataset.make("un_001", "un_003")
    before = content(dataset.preprocessed())
    pseudo_images(NUMBER)
    assert pseudo_cases(NUMBER, "2d", num_processes=1, progress=False).made == 0
    assert content(dataset.preprocessed()) == before


def test_a_case_half_written_is_made_again(own: Callable[..., Dataset]) -> None:
    dataset = own()
    dataset.make("un_001", "un_003")
    expected = dataset.stored("un_003")
    (dataset.preprocessed() / "nnUNetPlans_2d" / "un_003.b2nd").unlink()  # put in place last
    (dataset.preprocessed() / ".nnUNetPlans_2d_pseudo_killed").mkdir()
    assert pseudo_cases(NUMBER, "2d", num_processes=1, progress=False).made == 1
    assert np.array_equal(dataset.stored("un_003")[1], expected[1])
    assert not (dataset.preprocessed() / ".nnUNetPlans_2d_pseudo_killed").exists()


def test_a_branch_of_a_branch_takes_the_labeled_cases_only_as_labeled(own: Callable[..., Dataset]) -> None:
    dataset = own()
    dataset.make("un_001", "un_003")
    second = branch(NUMBER, NUMBER + 1)
    splits = json.loads((dataset.preprocessed(second) / "splits_final.json").read_text())
    before = json.loads((dataset.preprocessed() / "splits_final.json").read_text())
    assert [fold["val"] for fold in splits[:-1]] == [fold["val"] for fold in before]
    assert all(case.startswith("tr") for fold in splits for case in (*fold["train"], *fold["val"]))
    assert all(len(fold["train"]) >= 4 for fold in splits)


@pytest.mark.parametrize(
    "spoil, error, said",
    [
        (lambda d: (d.raw() / "labelsPs" / "un_001.png").unlink(), EnvironmentNotReady, r"lacks .* 1 of 2 .*un_001"),
        (lambda d: d.label("un_001", lambda shape: np.full(shape, 7)), UserError, r"un_001.png holds 7, which is no"),
        (lambda d: d.label("un_001", lambda _: np.zeros((9, 9))), UserError, r"un_001.png cannot be used as the label"),
        (lambda d: truncate(d.raw() / "labelsPs" / "un_001.png"), UserError, r"un_001.png cannot be read as a label"),
        (lambda d: (d.raw() / "branch.json").unlink(), EnvironmentNotReady, "is no branch, and pseudo-labeled cases"),
        (lambda d: shutil.rmtree(d.raw() / "imagesPs"), EnvironmentNotReady, "run `nnunet_semi pseudo_images -d 30`"),
    ],
    ids=["label missing", "strange value", "wrong shape", "torn", "no branch", "no images"],
)
def test_what_is_wrong_is_a_sentence(
    own: Callable[..., Dataset], spoil: Callable[[Dataset], Any], error: type[UserError], said: str
) -> None:
    dataset = own()
    dataset.make("un_001", "un_003")
    spoil(dataset)
    with pytest.raises(error, match=said) as caught:
        pseudo_cases(NUMBER, "2d", num_processes=1, progress=False)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("take_away", [shutil.rmtree, lambda folder: [file.unlink() for file in folder.iterdir()]])
def test_labeled_cases_that_are_not_at_hand_are_not_taken_for_none(
    own: Callable[..., Dataset], take_away: Callable[[Path], Any]
) -> None:
    dataset = own()
    dataset.make("un_001")
    before = sorted(dataset.preprocessed().rglob("*"))
    take_away(dataset.raw(BASE) / "imagesTr")
    for command in (lambda: branch(1, NUMBER + 1), lambda: pseudo_cases(NUMBER, "2d", num_processes=1, progress=False)):
        with pytest.raises(EnvironmentNotReady, match="imagesTr holds no labeled case"):
            command()
    assert sorted(dataset.preprocessed().rglob("*")) == before


def test_images_need_a_selection_of_cases_that_are_there(own: Callable[..., Dataset]) -> None:
    dataset = own()
    branch(1, NUMBER)
    with pytest.raises(EnvironmentNotReady, match="run `nnunet_semi select -d 30` first"):
        pseudo_images(NUMBER)
    dataset.select("un_001", "un_999")
    with pytest.raises(UserError, match="selects un_999, not in"):
        pseudo_images(NUMBER)
    assert not (dataset.raw() / "imagesPs").exists()


def test_properties_of_labeled_cases_are_shared_untouched(own: Callable[..., Dataset]) -> None:
    dataset = own()
    dataset.make("un_001")
    for number in range(6):
        name = f"nnUNetPlans_2d/tr_{number:03d}.pkl"
        assert (dataset.preprocessed() / name).samefile(dataset.preprocessed(BASE) / name)
        assert load_pickle(str(dataset.preprocessed() / name))["class_locations"].keys() == {1, 2}
