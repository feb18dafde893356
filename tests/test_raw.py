"""Folders, plans and raw images: what is found, and a sentence for all that is not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from nnunet_semi import raw
from nnunet_semi.errors import EnvironmentNotReady, UserError, WrongUse

DATASET = "Dataset007_Heart"
DATASET_JSON = {"channel_names": {"0": "T1"}, "labels": {"background": 0}, "file_ending": ".nii.gz"}


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """nnU-Net's folders with an empty dataset in each."""
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        (tmp_path / variable / DATASET).mkdir(parents=True)
        monkeypatch.setenv(variable, str(tmp_path / variable))
    return tmp_path


@pytest.fixture
def images(folders: Path) -> Path:
    """The imagesUn of the dataset."""
    folder = folders / "nnUNet_raw" / DATASET / "imagesUn"
    folder.mkdir()
    return folder


def touch(folder: Path, *names: str) -> None:
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).touch()


def plans(**configurations: dict[str, Any]) -> dict[str, Any]:
    complete = {key: None for key in raw.CONFIGURATION_KEYS}
    return {
        **{key: key for key in raw.PLANS_KEYS},
        "dataset_name": DATASET,
        "plans_name": "nnUNetPlans",
        "configurations": {"2d": complete, **configurations},
    }


# --- folders ---


def test_a_folder_variable_gives_its_folder(folders: Path) -> None:
    assert raw.nnunet_folder("nnUNet_raw") == folders / "nnUNet_raw"


@pytest.mark.parametrize("value", [None, ""])
def test_a_missing_variable_is_named_with_the_remedy(monkeypatch: pytest.MonkeyPatch, value: str | None) -> None:
    monkeypatch.delenv("nnUNet_raw") if value is None else monkeypatch.setenv("nnUNet_raw", value)
    with pytest.raises(EnvironmentNotReady, match="nnUNet_raw is not set.*nnunet_semi init"):
        raw.nnunet_folder("nnUNet_raw")


@pytest.mark.parametrize("quote", ["'", '"'])
def test_quotation_marks_in_a_variable_are_found(folders: Path, monkeypatch: pytest.MonkeyPatch, quote: str) -> None:
    monkeypatch.setenv("nnUNet_raw", f"{quote}{folders / 'nnUNet_raw'}{quote}")
    with pytest.raises(EnvironmentNotReady, match="nnUNet_raw contains the quotation marks"):
        raw.nnunet_folder("nnUNet_raw")


def test_a_variable_that_names_no_folder(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for value in (str(folders / "nothing"), "~/nothing"):
        monkeypatch.setenv("nnUNet_raw", value)
        with pytest.raises(EnvironmentNotReady, match="not a folder") as error:
            raw.nnunet_folder("nnUNet_raw")
        assert ("~ is not expanded" in str(error.value)) == value.startswith("~")


# --- datasets ---


@pytest.mark.parametrize("dataset", [7, "7", "007", DATASET])
def test_a_dataset_is_known_by_id_and_by_name(dataset: str | int) -> None:
    assert raw.dataset_name(dataset) == DATASET


def test_a_dataset_that_is_neither(folders: Path) -> None:
    with pytest.raises(WrongUse, match="got dataset 'Heart'; expected an id such as 7"):
        raw.dataset_name("Heart")


def test_an_id_without_a_dataset_says_where_was_looked(folders: Path) -> None:
    with pytest.raises(EnvironmentNotReady, match=f"no dataset with id 8 .nnUNet_raw={folders}"):
        raw.dataset_name(8)


def test_a_mistyped_name_is_not_taken_for_a_dataset_to_plan(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`nnUNetv2_plan_and_preprocess -d 7` would plan the other one again."""
    with pytest.raises(EnvironmentNotReady, match="Dataset007_Haert does not exist .*; did you mean Dataset007_Heart"):
        raw.dataset_name("Dataset007_Haert")
    for variable in raw.FOLDERS:
        monkeypatch.delenv(variable, raising=False)
    with pytest.raises(EnvironmentNotReady, match="nnUNet_raw is not set"):
        raw.dataset_name(DATASET)


def test_an_id_of_two_datasets_names_both(folders: Path) -> None:
    (folders / "nnUNet_raw" / "Dataset007_Liver").mkdir()
    with pytest.raises(EnvironmentNotReady, match="Dataset007_Heart, Dataset007_Liver"):
        raw.dataset_name(7)


def test_a_mistyped_dataset_folder_gets_a_suggestion() -> None:
    with pytest.raises(EnvironmentNotReady, match="did you mean Dataset007_Heart"):
        raw.dataset_folder("nnUNet_raw", "Dataset007_Haert")


# --- plans ---


def test_plans_and_dataset_json_are_loaded(folders: Path) -> None:
    folder = folders / "nnUNet_preprocessed" / DATASET
    (folder / "nnUNetPlans.json").write_text('{"a": 1}')
    (folder / "dataset.json").write_text('{"b": 2}')
    assert raw.load_plans(DATASET) == ({"a": 1}, {"b": 2})


@pytest.mark.parametrize(
    "name, command",
    [
        ("nnUNetPlans", "`nnUNetv2_plan_and_preprocess -d 7`"),
        ("nnUNetResEncUNetLPlans", "`nnUNetv2_plan_and_preprocess -d 7 -pl nnUNetPlannerResEncL`"),
    ],
)
def test_missing_plans_name_the_command_that_makes_them(name: str, command: str) -> None:
    with pytest.raises(EnvironmentNotReady) as error:
        raw.load_plans(DATASET, name)
    assert f"{DATASET}/{name}.json does not exist" in str(error.value) and command in str(error.value)


def test_missing_plans_name_the_plans_there_are(folders: Path) -> None:
    (folders / "nnUNet_preprocessed" / DATASET / "nnUNetResEncUNetMPlans.json").write_text("{}")
    with pytest.raises(EnvironmentNotReady, match="there is nnUNetResEncUNetMPlans: choose with -p"):
        raw.load_plans(DATASET)


@pytest.mark.parametrize("content", ["{", "[]", ""])
def test_broken_plans_are_named(folders: Path, content: str) -> None:
    (folders / "nnUNet_preprocessed" / DATASET / "nnUNetPlans.json").write_text(content)
    (folders / "nnUNet_preprocessed" / DATASET / "dataset.json").write_text("{}")
    with pytest.raises(UserError, match="nnUNetPlans.json"):
        raw.load_plans(DATASET)


def test_a_configuration_has_what_it_inherits() -> None:
    given = plans(small={"inherits_from": "2d", "patch_size": [8]}, tiny={"inherits_from": "small", "spacing": [1]})
    resolved = raw.resolve_configuration(given, "tiny")
    assert (resolved["patch_size"], resolved["spacing"], resolved["architecture"]) == ([8], [1], None)
    assert given["configurations"]["2d"]["patch_size"] is None


def test_an_unknown_configuration_gets_a_suggestion() -> None:
    with pytest.raises(WrongUse, match="no configuration '3d_fulres'; it has 2d, 3d_fullres; did you mean 3d_fullres"):
        raw.resolve_configuration(plans(**{"3d_fullres": {}}), "3d_fulres")


@pytest.mark.parametrize("parent, reason", [("x", "inherits from itself"), ("gone", "inherits from gone, which does")])
def test_inheritance_that_leads_nowhere(parent: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        raw.resolve_configuration(plans(x={"inherits_from": parent}), "x")


@pytest.mark.parametrize("key", ["architecture", "resampling_fn_seg_kwargs"])
def test_plans_of_an_older_nnunet_are_named_with_the_remedy(folders: Path, key: str) -> None:
    old = plans()
    del old["configurations"]["2d"][key]
    with pytest.raises(UserError) as error:
        raw.resolve_configuration(old, "2d")
    assert str(folders / "nnUNet_preprocessed" / DATASET / "nnUNetPlans.json") in str(error.value)
    assert f"lacks {key}" in str(error.value) and "`nnUNetv2_plan_experiment` again" in str(error.value)


def test_channels_in_both_spellings() -> None:
    assert raw.channel_names({"file_ending": ".png", "channel_names": {"0": "T1", "1": "T2"}}) == ["T1", "T2"]
    assert raw.channel_names({"file_ending": ".png", "modality": {"0": "CT"}}) == ["CT"]


@pytest.mark.parametrize("missing", ["channel_names", "file_ending"])
def test_a_dataset_json_without_what_is_needed(missing: str) -> None:
    with pytest.raises(UserError, match=missing):
        raw.channel_names({key: value for key, value in DATASET_JSON.items() if key != missing})


# --- unlabeled images ---


def test_cases_are_found_with_their_channels_in_order(images: Path) -> None:
    touch(images, "b_0000.nii.gz", "a_0001.nii.gz", "a_0000.nii.gz", ".DS_Store", ".a_0002.nii.gz")
    (images / "folder_0000.nii.gz").mkdir()
    cases = raw.unlabeled_cases(images.parent, DATASET_JSON)
    expected = {"a": ["a_0000.nii.gz", "a_0001.nii.gz"], "b": ["b_0000.nii.gz"]}
    assert cases == {case: [str(images / name) for name in names] for case, names in expected.items()}
    assert list(cases) == ["a", "b"]


def test_case_ids_may_hold_numbers_and_underscores(images: Path) -> None:
    touch(images, "scan_0001_0000.nii.gz", "x.y_0000.nii.gz")
    assert list(raw.unlabeled_cases(images.parent, DATASET_JSON)) == ["scan_0001", "x.y"]


def test_no_images_folder(folders: Path) -> None:
    with pytest.raises(EnvironmentNotReady, match=r"imagesUn does not exist; put.*CASE_0000\.nii\.gz"):
        raw.unlabeled_cases(folders / "nnUNet_raw" / DATASET, DATASET_JSON)


def test_an_empty_images_folder(images: Path) -> None:
    touch(images, ".DS_Store")
    with pytest.raises(UserError, match="imagesUn is empty"):
        raw.unlabeled_cases(images.parent, DATASET_JSON)


def test_images_of_another_format(images: Path) -> None:
    touch(images, "a_0000.mha", "b_0000.mha")
    with pytest.raises(UserError, match=r"ends in \.nii\.gz, as dataset.json says .*a_0000.mha.*; convert"):
        raw.unlabeled_cases(images.parent, DATASET_JSON)


def test_some_files_of_another_format_are_left_out_and_told(images: Path) -> None:
    touch(images, "a_0000.nii.gz", "b_0000.mha")
    told: list[str] = []
    assert list(raw.unlabeled_cases(images.parent, DATASET_JSON, told.append)) == ["a"]
    assert len(told) == 1 and "b_0000.mha" in told[0]


def test_the_spacing_file_of_a_tif_belongs_to_it(images: Path) -> None:
    touch(images, "a_0000.tif", "a.json", "b.json")
    told: list[str] = []
    assert list(raw.unlabeled_cases(images.parent, {**DATASET_JSON, "file_ending": ".tif"}, told.append)) == ["a"]
    assert len(told) == 1 and "b.json" in told[0] and "a.json" not in told[0]


def test_a_file_without_channel_number(images: Path) -> None:
    touch(images, "a_0000.nii.gz", "b.nii.gz", "_0000.nii.gz")
    with pytest.raises(UserError, match=r"no channel number; expected CASE_0000\.nii\.gz.*rename"):
        raw.unlabeled_cases(images.parent, DATASET_JSON)


def test_a_case_named_like_nnunets_own_files(images: Path) -> None:
    touch(images, "a_seg_0000.nii.gz")
    with pytest.raises(UserError, match="a_seg in .* ends in _seg"):
        raw.unlabeled_cases(images.parent, DATASET_JSON)


def test_a_case_that_is_labeled_too(images: Path) -> None:
    touch(images, "a_0000.nii.gz", "b_0000.nii.gz")
    touch(images.parent / "imagesTr", "b_0000.nii.gz", "c_0000.nii.gz")
    with pytest.raises(UserError, match="^b is labeled.*the same image, delete it.*another one, rename"):
        raw.unlabeled_cases(images.parent, DATASET_JSON)


def test_labeled_cases_listed_in_dataset_json_count_instead_of_the_folder(images: Path) -> None:
    touch(images, "a_0000.nii.gz", "b_0000.nii.gz")
    touch(images.parent / "imagesTr", "a_0000.nii.gz")
    listing = {**DATASET_JSON, "dataset": {"c": {"images": ["elsewhere/c.nii.gz"], "label": "c.nii.gz"}}}
    assert list(raw.unlabeled_cases(images.parent, listing)) == ["a", "b"]
    listing["dataset"]["b"] = {"images": ["elsewhere/b.nii.gz"], "label": "b.nii.gz"}
    with pytest.raises(UserError, match="^b is labeled"):
        raw.unlabeled_cases(images.parent, listing)


def test_many_names_are_shortened() -> None:
    assert raw.name_some("abc") == "a, b, c"
    assert raw.name_some("abcde") == "a, b, c and 2 more"


def test_importing_it_is_light() -> None:
    """Commands such as doctor look at folders without waiting for torch."""
    code = "import sys, nnunet_semi.raw; print({'torch', 'numpy', 'nnunetv2'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_errors_are_one_line(images: Path) -> None:
    touch(images, *(f"{i}{os.extsep}nii.gz" for i in range(5)))
    with pytest.raises(UserError) as error:
        raw.unlabeled_cases(images.parent, DATASET_JSON)
    assert "\n" not in str(error.value) and "and 2 more" in str(error.value)
