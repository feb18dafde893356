import json
import os
from unittest import mock

import pytest

from nnunet_semi.errors import EnvironmentNotReady, UserError, WrongUse
from nnunet_semi.narrow import add_narrow_configuration, narrow, narrow_features
from small_dataset import environment, make_dataset, plan

PLANS, RESENC_PLANS = "nnUNetPlans", "nnUNetResEncUNetMPlans"


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
    """A small 3D dataset with two plans: its root, and the text of each plans file."""
    root = tmp_path_factory.mktemp("narrow")
    with mock.patch.dict(os.environ, environment(root)):
        make_dataset(root, dimension=3)
        files = [plan(1, ()), plan(1, (), "nnUNetPlannerResEncM")]
    return root, {file: file.read_text() for file in files}


@pytest.fixture(autouse=True)
def folder(planned, monkeypatch):
    """The preprocessed folder of the dataset, with the plans as nnU-Net wrote them."""
    root, texts = planned
    for name, value in environment(root).items():
        monkeypatch.setenv(name, value)
    for file, text in texts.items():
        file.write_text(text)
    return root / "nnUNet_preprocessed" / "Dataset001_Tiny"


def edit(file, change):
    """Applies `change` to the plans in `file` and gives the new text."""
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))
    return file.read_text()


def resolved(file, configuration):
    """The configuration as nnU-Net reads it."""
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    return PlansManager(str(file)).get_configuration(configuration)


@pytest.mark.parametrize("plans", [PLANS, RESENC_PLANS])
@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
def test_only_the_width_differs_from_the_original(folder, plans, configuration):
    name = narrow(1, configuration, width=8, plans=plans)
    assert name == f"{configuration}_w8"
    original = resolved(folder / f"{plans}.json", configuration).configuration
    copy = resolved(folder / f"{plans}.json", name).configuration
    assert copy["architecture"]["arch_kwargs"]["features_per_stage"] == [8, 16, 32]
    copy["architecture"]["arch_kwargs"]["features_per_stage"] = [32, 64, 128]
    assert copy.pop("inherits_from") == configuration
    assert copy == original


@pytest.mark.parametrize("plans", [PLANS, RESENC_PLANS])
def test_nnunet_builds_the_narrow_network(folder, plans):
    import torch
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    manager = PlansManager(str(folder / f"{plans}.json"))
    configuration = PlansManager(str(folder / f"{plans}.json")).get_configuration("3d_fullres")
    wide = nnUNetTrainer.build_network_architecture(manager, configuration, 1, 3)
    name = narrow(1, "3d_fullres", width=4, plans=plans)
    configuration = resolved(folder / f"{plans}.json", name)
    network = nnUNetTrainer.build_network_architecture(manager, configuration, 1, 3, enable_deep_supervision=False)
    assert network(torch.zeros(1, 1, *configuration.patch_size)).shape == (1, 3, *configuration.patch_size)
    weights, wide_weights = (sum(p.numel() for p in net.parameters()) for net in (network, wide))
    assert weights < wide_weights / 50  # 8 times narrower: about 64 times fewer


def test_everything_else_in_the_plans_stays(folder):
    file = folder / f"{PLANS}.json"
    before = json.loads(file.read_text())
    narrow(1, "2d")
    after = json.loads(file.read_text())
    del after["configurations"]["2d_w8"]
    assert after == before and list(after) == list(before)


def test_second_call_leaves_the_file_alone(folder):
    file = folder / f"{PLANS}.json"
    first = add_narrow_configuration(1, "2d")
    inode, text = file.stat().st_ino, file.read_text()
    second = add_narrow_configuration("Dataset001_Tiny", "2d")
    assert (first.added, second.added) == (True, False)
    assert (second.name, second.features, second.plans_file) == ("2d_w8", [8, 16, 32], file)
    assert (file.stat().st_ino, file.read_text()) == (inode, text)


def test_another_configuration_of_that_name_is_not_overwritten(folder):
    file = folder / f"{PLANS}.json"
    narrow(1, "2d", width=8, name="small")
    text = file.read_text()
    with pytest.raises(UserError, match="another configuration 'small'"):
        narrow(1, "2d", width=4, name="small")
    with pytest.raises(UserError, match="another configuration '3d_fullres'"):
        narrow(1, "2d", name="3d_fullres")
    assert file.read_text() == text


def test_narrowing_a_narrow_configuration(folder):
    name = narrow(1, narrow(1, "2d", width=16), width=4)
    assert name == "2d_w16_w4"
    assert resolved(folder / f"{PLANS}.json", name).network_arch_init_kwargs["features_per_stage"] == [4, 8, 16]


@pytest.mark.parametrize("width", [0, -8, 33])
def test_width_outside_the_original_is_wrong_use(folder, width):
    before = (folder / f"{PLANS}.json").read_text()
    with pytest.raises(WrongUse, match=f"width {width}; expected 1 to 32"):
        narrow(1, "2d", width=width)
    assert (folder / f"{PLANS}.json").read_text() == before


@pytest.mark.parametrize("name", ["", "a__b", "../a", "a/b", "-a", "a b"])
def test_name_that_is_no_folder_name_is_wrong_use(name):
    with pytest.raises(WrongUse, match="--name"):
        narrow(1, "2d", name=name)


def test_unknown_configuration_is_wrong_use():
    with pytest.raises(WrongUse, match="has no configuration '3d_fullrez'.*did you mean 3d_fullres"):
        narrow(1, "3d_fullrez")


def test_missing_plans_are_named():
    with pytest.raises(EnvironmentNotReady, match=r"otherPlans\.json does not exist"):
        narrow(1, "2d", plans="otherPlans")


def test_features_follow_the_formula_of_nnunet():
    for width in (1, 3, 8, 16, 32):
        for top in (320, 512):
            original = [min(32 * 2**i, top) for i in range(7)]
            assert narrow_features(original, width) == [min(width * 2**i, top * width // 32) for i in range(7)]
    assert narrow_features([32, 48, 64], 8) == [8, 12, 16]


def add_cascade(content):
    """Adds a cascade to plans, as nnU-Net does for large images."""
    content["configurations"]["3d_lowres"] = {"inherits_from": "3d_fullres", "next_stage": "3d_cascade_fullres"}
    content["configurations"]["3d_cascade_fullres"] = {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"}


def test_narrow_lowres_ends_its_cascade(folder):
    file = folder / f"{PLANS}.json"
    edit(file, add_cascade)
    name = narrow(1, "3d_lowres")
    assert resolved(file, name).next_stage_names is None
    assert resolved(file, name).previous_stage_name is None
    assert resolved(file, "3d_lowres").next_stage_names == ["3d_cascade_fullres"]


def test_second_stage_of_a_cascade_is_refused(folder):
    file = folder / f"{PLANS}.json"
    before = edit(file, add_cascade)
    with pytest.raises(UserError, match="refines the predictions of '3d_lowres'.*narrow one"):
        narrow(1, "3d_cascade_fullres")
    assert file.read_text() == before


def test_network_without_features_is_refused(folder):
    def change(content):
        del content["configurations"]["2d"]["architecture"]["arch_kwargs"]["features_per_stage"]

    before = edit(folder / f"{PLANS}.json", change)
    with pytest.raises(UserError, match="PlainConvUNet.*no list 'features_per_stage'"):
        narrow(1, "2d")
    assert (folder / f"{PLANS}.json").read_text() == before


def test_plans_of_an_older_nnunet_are_refused(folder):
    def change(content):
        configuration = content["configurations"]["2d"]
        del configuration["architecture"]
        configuration["UNet_base_num_features"] = 32

    edit(folder / f"{PLANS}.json", change)
    with pytest.raises(UserError, match="older nnU-Net.*nnUNetv2_plan_experiment"):
        narrow(1, "2d")


def test_interrupted_write_keeps_the_plans(folder):
    file = folder / f"{PLANS}.json"
    before, files = file.read_text(), sorted(folder.iterdir())
    with mock.patch("os.replace", side_effect=KeyboardInterrupt), pytest.raises(KeyboardInterrupt):
        narrow(1, "2d")
    assert file.read_text() == before and sorted(folder.iterdir()) == files
