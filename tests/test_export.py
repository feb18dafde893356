import os
import pickle
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.model_sharing.model_export import export_pretrained_model
from nnunetv2.run.load_pretrained_weights import load_pretrained_weights
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.training.nnUNetTrainer.variants.network_architecture.nnUNetTrainerBN import nnUNetTrainerBN
from small_dataset import environment, make_dataset, plan

from nnunet_semi import export as module
from nnunet_semi.discovery import hook_folder
from nnunet_semi.errors import EnvironmentNotReady, UserError, WrongUse
from nnunet_semi.export import export
from nnunet_semi.narrow import narrow
from nnunet_semi.raw import load_json
from nnunet_semi.stock import stock_trainer_name

DATASET, CONFIGURATION, CHECKPOINT = "Dataset001_Tiny", "2d_w4", "checkpoint_final.pth"
TOY_TRAINERS = """
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.training.nnUNetTrainer.variants.network_architecture.nnUNetTrainerBN import nnUNetTrainerBN

class nnUNetTrainerToy(nnUNetTrainer): pass
class nnUNetTrainerToyBN(nnUNetTrainerBN): pass
class nnUNetTrainerToyOwn(nnUNetTrainer):
    @staticmethod
    def build_network_architecture(*args, **kwargs):
        return nnUNetTrainer.build_network_architecture(*args, **kwargs)
"""


def new_trainer(root, name, base=nnUNetTrainer, fold=0):
    """A trainer as nnUNetv2_train makes it, with networks and optimizer, under any class name."""
    folder = root / "nnUNet_preprocessed" / DATASET
    plans = {**load_json(folder / "nnUNetPlans.json"), "continue_training": False}
    dataset_json = load_json(folder / "dataset.json")
    trainer = type(name, (base,), {})(plans, CONFIGURATION, fold, dataset_json, torch.device("cpu"))
    trainer.initialize()
    return trainer


def step(trainer):
    """One step of the optimizer, so that it has a momentum and the weights are no longer those of the start."""
    outputs = trainer.network(torch.randn(2, 1, 32, 32))
    sum(output.square().mean() for output in outputs).backward()
    trainer.optimizer.step()


def train(root, name, base=nnUNetTrainer, fold=0):
    """Leaves in nnUNet_results what a short training of a plugin trainer leaves there."""
    torch.manual_seed((0, 1, "all").index(fold))
    trainer = new_trainer(root, name, base, fold)
    step(trainer)
    trainer.inference_allowed_mirroring_axes = (0, 1)  # as on_train_start sets it
    for key in trainer.logger.local_logger.my_fantastic_logging:
        trainer.logger.log(key, np.float32(0.5), 0)
    file = Path(trainer.output_folder) / CHECKPOINT
    trainer.save_checkpoint(str(file))
    extra = {"network2": trainer.network.state_dict(), "seed": 3, "object": WrongUse("an object of the plugin")}
    edit(file, lambda checkpoint: checkpoint.update(nnunet_semi=extra))
    edit(file, lambda checkpoint: checkpoint["logging"].update(semi=[np.float32(1)]))
    for name in ("plans.json", "dataset.json", "dataset_fingerprint.json"):
        source = name.replace("plans", "nnUNetPlans")
        shutil.copy(root / "nnUNet_preprocessed" / DATASET / source, file.parents[1] / name)
    (file.parent / "validation").mkdir()
    for name in ("progress.png", "debug.json", "validation/summary.json", "validation/case.png"):
        (file.parent / name).write_text(name)


def edit(file, change):
    """Applies `change` to the content of a checkpoint."""
    checkpoint = torch.load(file, weights_only=False)
    change(checkpoint)
    torch.save(checkpoint, file)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A planned 2D dataset and four trained models, one of them with three folds."""
    root = tmp_path_factory.mktemp("export")
    with mock.patch.dict(os.environ, environment(root)):
        make_dataset(root)
        plan(1)
        narrow(1, "2d", width=4)
        for fold in (0, 1, "all"):
            train(root, "nnUNetTrainerToy", fold=fold)
        train(root, "nnUNetTrainerToyBN", nnUNetTrainerBN)
        train(root, "nnUNetTrainerToyOwn")
        train(root, "nnUNetTrainer_2epochs_seed1")
    return root


@pytest.fixture
def results(trained, tmp_path, monkeypatch):
    """A copy of the trained models, which a test may spoil, on a machine that knows the trainers."""
    for name, value in environment(trained).items():
        monkeypatch.setenv(name, value)
    folder = tmp_path / "results"
    shutil.copytree(trained / "nnUNet_results", folder)
    trainers = tmp_path / "trainers"
    trainers.mkdir()
    (trainers / "toy_trainers.py").write_text(TOY_TRAINERS)
    (tmp_path / "out").mkdir()
    monkeypatch.setenv("nnUNet_results", str(folder))
    monkeypatch.setenv("nnUNet_extTrainer", f"{trainers}{os.pathsep}{hook_folder()}")
    return folder / DATASET


@pytest.fixture
def output(results, tmp_path):
    """Where the zip file shall be; the folder must never hold anything else."""
    yield tmp_path / "out" / "model.zip"
    assert {path.name for path in (tmp_path / "out").iterdir()} <= {"model.zip"}


def export_toy(output, trainer="nnUNetTrainerToy", **options):
    return export(1, CONFIGURATION, output, trainer=trainer, **options)


def toy_checkpoint(results, trainer="nnUNetTrainerToy", fold=0):
    return results / f"{trainer}__nnUNetPlans__{CONFIGURATION}" / f"fold_{fold}" / CHECKPOINT


def install(archive, folder, trainer="nnUNetTrainer"):
    """Unpacks the zip file as nnU-Net does, and gives the folder of the model in it."""
    with zipfile.ZipFile(archive) as content:
        content.extractall(folder)
    return folder / DATASET / f"{trainer}__nnUNetPlans__{CONFIGURATION}"


def load_predictor(model, folds=(0,)):
    predictor = nnUNetPredictor(device=torch.device("cpu"), perform_everything_on_device=False)
    predictor.initialize_from_trained_model_folder(str(model), folds, CHECKPOINT)
    return predictor


# --- what the file holds ---


def test_layout_is_that_of_nnunets_own_export(results, output, tmp_path):
    export_pretrained_model(1, str(tmp_path / "stock.zip"), (CONFIGURATION,), "nnUNetTrainerToy", folds=(0, 1))
    assert export_toy(output, folds=(0, 1)) == output
    stock = {name.replace("Toy__", "__") for name in zipfile.ZipFile(tmp_path / "stock.zip").namelist()}
    ours = zipfile.ZipFile(output).namelist()
    assert set(ours) == {name for name in stock if not name.endswith("debug.json")}
    assert len(ours) == len(set(ours)) == 3 + 2 * 3
    assert f"{DATASET}/nnUNetTrainer__nnUNetPlans__2d_w4/fold_0/checkpoint_final.pth" in ours


def test_crossvalidation_results_of_these_folds_come_along(results, output):
    for folds in ("0_1", "0_1_2_3_4"):
        folder = toy_checkpoint(results).parents[1] / f"crossval_results_folds_{folds}"
        folder.mkdir()
        (folder / "postprocessing.json").write_text("{}")
    names = zipfile.ZipFile(export_toy(output, folds=(0, 1))).namelist()
    crossvalidation = [name.split("/", 2)[2] for name in names if "crossval" in name]
    assert crossvalidation == ["crossval_results_folds_0_1/postprocessing.json"]


def test_checkpoint_holds_nnunets_keys_in_plain_types(results, output, tmp_path):
    original = torch.load(toy_checkpoint(results), weights_only=False)
    file = install(export_toy(output), tmp_path / "installed") / "fold_0" / CHECKPOINT
    checkpoint = torch.load(file, weights_only=True)  # refuses every class that is not torch's own
    assert checkpoint.keys() == original.keys() - {"nnunet_semi"}
    assert checkpoint["trainer_name"] == "nnUNetTrainer"
    assert checkpoint["init_args"].keys() == original["init_args"].keys()
    assert checkpoint["logging"].keys() == original["logging"].keys() - {"semi"}
    assert checkpoint["logging"]["train_losses"] == [0.5]
    assert checkpoint["inference_allowed_mirroring_axes"] == original["inference_allowed_mirroring_axes"] == (0, 1)
    assert checkpoint["optimizer_state"]["state"] == {}
    assert file.stat().st_size < toy_checkpoint(results).stat().st_size * 0.6


def test_no_byte_of_the_pickle_names_the_plugin(results, output, tmp_path):
    def pickled(file):
        with zipfile.ZipFile(file) as content:
            return b"".join(content.read(name) for name in content.namelist() if name.endswith(".pkl"))

    exported = install(export_toy(output), tmp_path / "installed") / "fold_0" / CHECKPOINT
    assert b"nnunet_semi" in pickled(toy_checkpoint(results))
    assert b"nnunet_semi" not in pickled(exported)


def test_original_model_stays_as_it_is(results, output):
    before = {path: path.read_bytes() for path in results.rglob("*") if path.is_file()}
    export_toy(output)
    assert {path: path.read_bytes() for path in results.rglob("*") if path.is_file()} == before


# --- what can be done with it ---


@pytest.mark.parametrize(
    ("trainer", "stock"), [("nnUNetTrainerToy", "nnUNetTrainer"), ("nnUNetTrainerToyBN", "nnUNetTrainerBN")]
)
def test_stock_predictor_gives_the_same_logits(results, output, tmp_path, trainer, stock):
    model = install(export_toy(output, trainer), tmp_path / "installed", stock)
    original = load_predictor(toy_checkpoint(results, trainer).parents[1])
    with mock.patch.dict(os.environ):
        del os.environ["nnUNet_extTrainer"]  # noqa: SIM112
        exported = load_predictor(model)
    image = torch.randn((1, 1, 40, 50), generator=torch.Generator().manual_seed(1))
    expected, got = (predictor.predict_logits_from_preprocessed_data(image) for predictor in (original, exported))
    assert expected.shape == (3, 1, 40, 50)
    assert torch.equal(expected, got)


def test_every_fold_keeps_its_own_weights(results, output, tmp_path):
    model = install(export_toy(output, folds=("1", "all", 0, 1)), tmp_path / "installed")
    assert sorted(path.name for path in model.glob("fold_*")) == ["fold_0", "fold_1", "fold_all"]
    for fold in (0, 1, "all"):
        original = torch.load(toy_checkpoint(results, fold=fold), weights_only=False)["network_weights"]
        exported = torch.load(model / f"fold_{fold}" / CHECKPOINT, weights_only=True)["network_weights"]
        assert exported.keys() == original.keys()
        assert all(torch.equal(exported[key], original[key]) for key in original)


def test_stock_trainer_continues_and_finetunes_from_it(trained, results, output, tmp_path):
    model = install(export_toy(output), tmp_path / "installed")
    weights = torch.load(model / "fold_0" / CHECKPOINT, weights_only=True)["network_weights"]
    continued, finetuned = new_trainer(trained, "nnUNetTrainer"), new_trainer(trained, "nnUNetTrainer")
    continued.load_checkpoint(str(model / "fold_0" / CHECKPOINT))
    assert all(torch.equal(value, weights[key]) for key, value in continued.network.state_dict().items())
    assert continued.optimizer.param_groups[0]["lr"] == continued.initial_lr
    step(continued)
    load_pretrained_weights(finetuned.network, str(model / "fold_0" / CHECKPOINT))
    pretrained = finetuned.network.state_dict()
    assert all(torch.equal(pretrained[key], weights[key]) for key in weights if ".seg_layers." not in key)


def test_names_of_a_compiled_network_are_those_of_the_bare_one(results, output, tmp_path):
    def compiled(checkpoint):
        weights = checkpoint["network_weights"]
        checkpoint["network_weights"] = {f"_orig_mod.{key}": value for key, value in weights.items()}

    names = torch.load(toy_checkpoint(results), weights_only=False)["network_weights"].keys()
    edit(toy_checkpoint(results), compiled)
    file = install(export_toy(output), tmp_path / "installed") / "fold_0" / CHECKPOINT
    assert torch.load(file, weights_only=True)["network_weights"].keys() == names


def test_variants_by_name_and_other_checkpoints_are_found(results, output, tmp_path):
    trainer = "nnUNetTrainer_2epochs_seed1"
    toy_checkpoint(results, trainer).rename(toy_checkpoint(results, trainer).with_name("checkpoint_best.pth"))
    model = install(export_toy(output, trainer, checkpoint="checkpoint_best.pth"), tmp_path / "installed")
    assert (model / "fold_0" / "checkpoint_best.pth").is_file()


@pytest.mark.slow
def test_prediction_on_a_machine_without_the_plugin(trained, results, output, tmp_path):
    export_toy(output)
    poison = tmp_path / "poison" / "nnunet_semi"
    poison.mkdir(parents=True)
    (poison / "__init__.py").write_text("raise ImportError('the plugin was imported')")
    settings = environment(tmp_path / "bare") | {"NNUNET_SEMI_NO_HOOK": "1", "PYTHONPATH": str(poison.parent)}
    bare = os.environ | settings
    for name in ("nnUNet_extTrainer", "nnUNet_raw", "nnUNet_preprocessed"):
        del bare[name]
    Path(bare["nnUNet_results"]).mkdir(parents=True)

    def run(command, *arguments, check=True):
        program = [str(Path(sys.executable).with_name(command)), *map(str, arguments)]
        return subprocess.run(program, env=bare, cwd=tmp_path, check=check, capture_output=True, text=True)

    assert "the plugin was imported" in run("python", "-c", "import nnunet_semi", check=False).stderr
    images, predictions = trained / "nnUNet_raw" / DATASET / "imagesTs", tmp_path / "predictions"
    run("nnUNetv2_install_pretrained_model_from_zip", output)
    options = ["-c", CONFIGURATION, "-f", 0, "-device", "cpu", "-npp", 1, "-nps", 1]
    run("nnUNetv2_predict", "-d", DATASET, "-i", images, "-o", predictions, *options)

    original = load_predictor(toy_checkpoint(results).parents[1])
    original.predict_from_files_sequential(str(images), str(tmp_path / "expected"))
    for case in ("ts_000.png", "ts_001.png"):
        got, expected = (
            sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / folder / case)))
            for folder in ("predictions", "expected")
        )
        assert len(np.unique(expected)) > 1
        np.testing.assert_array_equal(got, expected)


# --- what is refused ---


def test_network_of_the_trainers_own_is_refused(results, output):
    with pytest.raises(UserError, match="nnUNetTrainerToyOwn builds a network of its own"):
        export_toy(output, "nnUNetTrainerToyOwn")


def test_stock_trainer_is_the_one_that_defines_the_network():
    length = type("nnUNetTrainer_3epochs", (nnUNetTrainer,), {})
    assert stock_trainer_name(length) == "nnUNetTrainer"
    assert stock_trainer_name(type("Child", (type("Parent", (nnUNetTrainerBN,), {}),), {})) == "nnUNetTrainerBN"


def test_unknown_trainer_is_named(results, output, monkeypatch):
    monkeypatch.setenv("nnUNet_extTrainer", str(hook_folder()))
    with pytest.raises(EnvironmentNotReady, match="nnUNetTrainerToy that wrote the checkpoint is not found"):
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
    edit(toy_checkpoint(results), lambda checkpoint: checkpoint["logging"].update(lrs=[pickle.PickleBuffer]))
    with pytest.raises(UserError, match="where nnU-Net writes numbers and text"):
        export_toy(output)
