import shutil
import zipfile
from unittest import mock

import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.training.nnUNetTrainer.variants.network_architecture.nnUNetTrainerBN import nnUNetTrainerBN

from nnunet_semi import export as module
from nnunet_semi.discovery import hook_folder
from nnunet_semi.errors import EnvironmentNotReady, UserError, WrongUse
from nnunet_semi.export import export
from nnunet_semi.stock import stock_trainer_name
from small_models import CONFIGURATION, copy_models, edit, export_toy, make_models, toy_checkpoint


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return make_models(tmp_path_factory.mktemp("models"))


@pytest.fixture
def results(trained, tmp_path, monkeypatch):
    return copy_models(trained, tmp_path, monkeypatch)


@pytest.fixture
def output(results, tmp_path):
    """Where the zip file shall be; its folder must never hold anything else."""
    (tmp_path / "out").mkdir()
    yield tmp_path / "out" / "model.zip"
    assert {path.name for path in (tmp_path / "out").iterdir()} <= {"model.zip"}


def test_network_of_the_trainers_own_is_refused(results, output):
    with pytest.raises(UserError, match="nnUNetTrainerToyOwn builds a network of its own"):
        export_toy(output, "nnUNetTrainerToyOwn")


def test_stock_trainer_is_the_one_that_defines_the_network():
    length = type("nnUNetTrainer_3epochs", (nnUNetTrainer,), {})
    assert stock_trainer_name(length) == "nnUNetTrainer"
    assert stock_trainer_name(type("Child", (type("Parent", (nnUNetTrainerBN,), {}),), {})) == "nnUNetTrainerBN"


def test_unknown_trainer_is_named(results, output, monkeypatch):
    monkeypatch.setenv("nnUNet_extTrainer", str(hook_folder()))
    with pytest.raises(EnvironmentNotReady, match="the trainer nnUNetTrainerToy is not found"):
        export_toy(output)


def test_missing_model_lists_those_that_are_there(results, output):
    with pytest.raises(
        EnvironmentNotReady, match="nnUNetTrainerCPS__nnUNetPlans__2d_w4 does not exist.*there is .*Toy"
    ):
        export(1, CONFIGURATION, output)
    shutil.rmtree(results)
    with pytest.raises(EnvironmentNotReady, match="nothing is trained"):
        export(1, CONFIGURATION, output)


@pytest.mark.parametrize(
    ("missing", "options"),
    [
        ("fold_7/checkpoint_final.pth", {"folds": [0, 7]}),
        ("fold_0/checkpoint_best.pth", {"checkpoint": "checkpoint_best.pth"}),
        ("plans.json", {}),
        ("dataset.json", {}),
    ],
)
def test_missing_file_is_named(results, output, missing, options):
    (toy_checkpoint(results).parents[1] / missing).unlink(missing_ok=True)
    with pytest.raises(EnvironmentNotReady, match=f"{missing} does not exist"):
        export_toy(output, **options)


def test_file_that_is_no_checkpoint_is_named(results, output):
    file = toy_checkpoint(results)
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(UserError, match=f"{file} cannot be read"):
        export_toy(output)
    for content in ({"weights": 1}, [1]):
        torch.save(content, file)
        with pytest.raises(UserError, match=f"{file} lacks network_weights"):
            export_toy(output)


def test_weights_that_do_not_fit_the_plans_are_refused(results, output):
    def drop(checkpoint):
        checkpoint["network_weights"].popitem()

    edit(toy_checkpoint(results, fold=1), drop)
    with pytest.raises(UserError, match="fold_1.*does not fit plans.json"):
        export_toy(output, folds=(0, 1))


def test_diverged_network_is_refused(results, output):
    def diverge(checkpoint):
        for value in checkpoint["network_weights"].values():
            value.fill_(float("nan"))

    edit(toy_checkpoint(results), diverge)
    with pytest.raises(UserError, match="not finite"):
        export_toy(output)


def test_export_that_predicts_otherwise_is_not_written(results, output):
    def spoiled(*arguments):
        checkpoint = stock_checkpoint(*arguments)
        next(iter(checkpoint["network_weights"].values())).mul_(1.001)
        return checkpoint

    stock_checkpoint = module.stock_checkpoint
    output.write_text("an older model")
    with mock.patch.object(module, "stock_checkpoint", spoiled), pytest.raises(UserError, match="does not predict"):
        export_toy(output, overwrite=True)
    assert output.read_text() == "an older model"


def test_existing_file_is_replaced_only_when_asked_for(results, output):
    output.write_text("an older model")
    with pytest.raises(UserError, match="--overwrite"):
        export_toy(output)
    assert output.read_text() == "an older model"
    assert zipfile.is_zipfile(export_toy(output, overwrite=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"output": "model.pth"}, r"expected a name that ends in \.zip"),
        ({"output": "model"}, r"expected a name that ends in \.zip"),
        ({"folds": ()}, "got no fold"),
        ({"folds": ("first",)}, "got fold 'first'"),
        ({"folds": (-1,)}, "got fold -1"),
        ({"trainer": "../nnUNetTrainerToy"}, "plain name"),
        ({"checkpoint": "../../x.pth"}, "plain name"),
        ({"configuration": "a/b"}, "plain name"),
    ],
)
def test_wrong_use_is_told(results, tmp_path, change, message):
    arguments = {"configuration": CONFIGURATION, "trainer": "nnUNetTrainerToy", "output": "model.zip"} | change
    with pytest.raises(WrongUse, match=message):
        export(1, **(arguments | {"output": tmp_path / arguments["output"]}))


def test_folder_of_the_output_must_exist(results, tmp_path):
    with pytest.raises(UserError, match="missing.* does not exist"):
        export_toy(tmp_path / "missing" / "model.zip")
    assert not (tmp_path / "missing").exists()


@pytest.mark.parametrize("evil", ["../../../evil", "/evil"])
def test_names_in_the_checkpoint_decide_nothing_about_paths(results, output, tmp_path, evil):
    def files():
        return {path for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".pyc"}

    before = files()
    for change in ({"trainer_name": evil}, {"init_args": {"configuration": evil}}):
        edit(toy_checkpoint(results), lambda checkpoint, change=change: checkpoint.update(change))
        with pytest.raises(UserError):
            export_toy(output)
    assert files() == before


def test_object_in_the_log_is_refused(results, output):
    edit(toy_checkpoint(results), lambda checkpoint: checkpoint["logging"].update(lrs=[WrongUse()]))
    with pytest.raises(UserError, match="where nnU-Net writes numbers and text"):
        export_toy(output)
