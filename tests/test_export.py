import os
import subprocess
import sys
import zipfile
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from nnunetv2.model_sharing.model_export import export_pretrained_model
from nnunetv2.run.load_pretrained_weights import load_pretrained_weights

from small_dataset import environment
from small_models import (
    CHECKPOINT,
    CONFIGURATION,
    DATASET,
    copy_models,
    edit,
    export_toy,
    install,
    load_predictor,
    make_models,
    new_trainer,
    step,
    toy_checkpoint,
)


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
    (tmp_path / "expected").mkdir()
    original.predict_from_files_sequential(str(images), str(tmp_path / "expected"))
    for case in ("ts_000.png", "ts_001.png"):
        got, expected = (
            sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / folder / case)))
            for folder in ("predictions", "expected")
        )
        assert len(np.unique(expected)) > 1
        np.testing.assert_array_equal(got, expected)
