"""CPS with filtering of uncertain images: what is sampled, how the share grows, what a continued training gives."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from torch import distributed as dist

from nnunet_semi.consistency.agreement import dice_scores, overlaps
from nnunet_semi.discovery import find_trainer
from nnunet_semi.plugin_trainer import CHECKPOINT_KEY
from nnunet_semi.randomness import seed_everything
from nnunet_semi.trainers.nnUNetTrainerCPS import nnUNetTrainerCPS
from nnunet_semi.trainers.nnUNetTrainerCPSUIF import nnUNetTrainerCPSUIF, patches_of
from nnunet_semi.unlabeled.preprocessing import preprocess_unlabeled
from short_training import NNUNET, differences, one_thread, train
from small_dataset import environment, make_dataset, plan
from test_ddp import ddp_on_cpu, on_cpu
from test_resume import Stopped, stop_after_epoch, stop_in_epoch
from tiny_trainer import make_trainer, random_batch

# batchgenerators may end a worker while its thread still unpacks the worker's last batch
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")

SHORT = {"num_epochs": 4, "num_iterations_per_epoch": 2, "num_val_iterations_per_epoch": 1, "save_every": 1}
UIF = {**SHORT, "refresh_every": 1, "refresh_cost": 10.0, "first_share": 0.25, "last_share": 1.0}
REGIONS = {"background": 0, "whole": (1, 2), "core": 2}


def trainer_of(plans_file: Path, **attributes: Any) -> Any:
    return make_trainer(nnUNetTrainerCPSUIF, plans_file, **{**UIF, **attributes})


def seen_by(trainer: Any) -> list[tuple[int, set[str], set[str]]]:
    """Epoch, unlabeled and labeled cases of every step of the training that follows."""
    seen: list[tuple[int, set[str], set[str]]] = []
    own = trainer.train_step

    def train_step(batch: dict) -> dict:
        seen.append((trainer.current_epoch, set(batch["unlabeled_keys"]), set(batch["keys"])))
        return own(batch)

    trainer.train_step = train_step
    return seen


def certain_of(trainer: Any, scores: dict[str, float]) -> None:
    """Lets the networks agree on each case as `scores` say, whatever they see of it."""

    def see(keys: list[str], *_: torch.Tensor) -> None:
        counts = [[[100, 100, round(100 * scores[key])]] * 2 for key in keys]
        trainer._seen.append((keys, torch.tensor(counts)))

    trainer._see = see


def test_it_is_found_by_its_name():
    assert find_trainer("nnUNetTrainerCPSUIF_7epochs_seed1").num_epochs == 7


@pytest.mark.parametrize("workers", ["0", "1"])
def test_the_most_certain_cases_are_sampled_and_more_of_them_as_training_goes_on(workers, tiny_2d, monkeypatch):
    monkeypatch.setenv("nnUNet_n_proc_DA", workers)
    trainer = trainer_of(tiny_2d, num_iterations_per_epoch=6, batch_size=8)
    certain_of(trainer, {"un_000": 0.2, "un_001": 0.9, "un_002": 0.5, "un_003": 0.7})
    seen = seen_by(trainer)
    train(trainer)
    ranked = ["un_001", "un_003", "un_002", "un_000"]
    # 48 draws in an epoch: that one of four cases is missed has a probability of 4e-6
    shares = [set().union(*(unlabeled for epoch, unlabeled, _ in seen if epoch == e)) for e in range(4)]
    assert shares[0] == set(ranked)  # before networks have learned anything they agree on nothing
    for epoch, share in ((1, 0.25 + 0.75 / 4), (2, 0.25 + 0.75 / 2), (3, 0.25 + 0.75 * 3 / 4)):
        assert shares[epoch] == set(ranked[: int(np.ceil(share * 4))])


def test_labeled_cases_are_never_left_out(tiny_2d, monkeypatch):
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    trainer = trainer_of(tiny_2d, num_iterations_per_epoch=10, batch_size=8, last_share=0.25)
    certain_of(trainer, dict.fromkeys([f"un_{number:03d}" for number in range(4)], 0.0))
    seen = seen_by(trainer)
    train(trainer)
    last = set().union(*(labeled for epoch, _, labeled in seen if epoch == 3))
    assert last == {f"tr_{number:03d}" for number in range(6)}
    assert len(set().union(*(unlabeled for epoch, unlabeled, _ in seen if epoch == 3))) == 1


def test_fewer_cases_than_a_batch_holds(tiny, monkeypatch):
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    trainer = trainer_of(tiny(unlabeled=1), batch_size=4)
    assert np.isfinite(train(trainer)["logging"]["semi_loss_unlabeled"]).all()
    assert trainer.sampled == ["un_000"]


def test_a_selection_made_before_the_training_is_honoured(tiny, tmp_path, monkeypatch):
    import json
    import shutil

    plans_file = tiny()
    shutil.copytree(plans_file.parents[2], tmp_path / "own")
    for name, value in {**environment(tmp_path / "own"), "nnUNet_n_proc_DA": "0"}.items():
        monkeypatch.setenv(name, value)
    plans_file = tmp_path / "own" / plans_file.relative_to(plans_file.parents[2])
    (plans_file.parent / "unlabeled_final.json").write_text(json.dumps({"selected": ["un_001", "un_002"]}))
    trainer = trainer_of(plans_file, last_share=1.0)
    seen = seen_by(trainer)
    train(trainer)
    assert set().union(*(unlabeled for _, unlabeled, _ in seen)) <= {"un_001", "un_002"}
    assert trainer.agreement.cases == ["un_001", "un_002"]


@pytest.mark.parametrize("labels", [None, REGIONS], ids=["labels", "regions"])
def test_a_step_compares_the_pseudo_labels_of_each_case(tiny, labels):
    """The definition, on the outputs of the networks themselves."""
    trainer = trainer_of(tiny() if labels is None else tiny(labels=labels))
    trainer.initialize()
    trainer.on_train_epoch_start()
    trainer.strong_view = lambda images: images
    batch = {**random_batch(trainer), "unlabeled_keys": np.array(["b", "a"])}
    with torch.no_grad():
        images = torch.cat([batch["data"], batch["unlabeled"]])
        outputs = [network(images)[0][len(batch["data"]) :] for network, _ in trainer.trained()]
    predicted = [output.argmax(1, keepdim=True) if labels is None else output > 0 for output in outputs]
    trainer.train_step(batch)
    [(keys, counts)] = trainer._seen
    assert keys == ["b", "a"]
    # a convolution of a joint batch may add in another order, which can turn a voxel that is undecided
    expected = overlaps(*predicted, trainer.label_manager.num_segmentation_heads)
    assert (counts - expected).abs().max() <= 2
    assert counts.shape == (2, 2, 3) and dice_scores(counts.numpy()).shape == (2,)


@pytest.mark.parametrize("cost, patches", [(10.0, 8), (0.5, 4), (0.0, 0)])
def test_what_is_predicted_besides_is_bounded(tiny_2d, cost, patches, monkeypatch):
    """4 cases lack 2 patches each; a period has 2 steps of 2 labeled and 2 unlabeled patches."""
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    trainer = trainer_of(tiny_2d, refresh_cost=cost)
    trainer.initialize()
    trainer.unlabeled_cases = trainer.unlabeled_dataset()
    trainer.dataloader_train, _ = trainer.get_dataloaders()
    passes: list[int] = []
    for network, _ in trainer.trained():
        network.register_forward_pre_hook(lambda _, inputs: passes.append(len(inputs[0])))
    assert trainer._predict_unseen() == patches
    assert sum(passes) == 2 * patches  # by two networks
    trainer._take_over()
    assert trainer.agreement.patches.tolist() == {8: [2, 2, 2, 2], 4: [2, 2, 0, 0], 0: [0] * 4}[patches]
    assert not any(network.training for network, _ in trainer.trained())


def test_cases_that_training_has_seen_are_not_predicted_again(tiny_2d, monkeypatch):
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    trainer = trainer_of(tiny_2d, num_iterations_per_epoch=12, batch_size=8)
    train(trainer)
    told = [int(count) for count in re.findall(r"(\d+) patches were predicted", Path(trainer.log_file).read_text())]
    assert len(told) == 3
    assert told[0] == 0  # all cases were sampled
    assert told[1] == 2 * (4 - 2)  # two of four were


def test_a_patch_is_a_piece_of_its_case_as_it_is(tiny):
    """Neither rotated, scaled nor mirrored, and of the size that the network takes."""
    os.environ["nnUNet_n_proc_DA"] = "0"
    trainer = trainer_of(tiny(shape=(40, 48), unlabeled=2))
    trainer.initialize()
    trainer.get_dataloaders()
    stream = trainer.stream.streams[1]
    seed_everything(0)
    patches = patches_of(["un_001", "un_000", "un_001"], stream)
    height, width = trainer.configuration_manager.patch_size
    assert patches.shape == (3, 1, height, width)
    for patch, case in zip(patches, ["un_001", "un_000", "un_001"], strict=True):
        image = np.pad(stream._data.load_case(case)[0][:][0, 0], ((0, max(0, height - 40)), (0, max(0, width - 48))))
        windows = np.lib.stride_tricks.sliding_window_view(image, (height, width))
        assert (windows == patch[0].numpy()).all((-1, -2)).any()


# --- a continued training ---


@pytest.mark.parametrize("workers", ["0", "1"])
@pytest.mark.parametrize("refresh_every", [1, 2])
@pytest.mark.parametrize("stop, epoch", [(stop_after_epoch, 1), (stop_in_epoch, 3)])
def test_a_stopped_training_ends_as_the_unbroken_one(
    workers, refresh_every, stop, epoch, tiny_2d, tmp_path, monkeypatch
):
    """Stopped before an epoch that ranks the cases anew, and in the middle between two."""
    monkeypatch.setenv("nnUNet_n_proc_DA", workers)
    attributes = {"refresh_every": refresh_every, "refresh_patches": 3, "last_share": 0.75}
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "unbroken"))
    expected = train(trainer_of(tiny_2d, **attributes))
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "continued"))
    first = trainer_of(tiny_2d, **attributes)
    stop(first, epoch)
    with pytest.raises(Stopped):
        train(first)
    second = trainer_of(tiny_2d, **attributes)
    second.load_checkpoint(str(Path(first.output_folder, "checkpoint_latest.pth")))
    found = train(second)
    assert differences(expected, found) == []
    assert 1 <= len(found[CHECKPOINT_KEY]["sampled"]) < 4
    scores = found[CHECKPOINT_KEY]["agreement"]["scores"]
    assert sorted(scores) == [f"un_{number:03d}" for number in range(4)]
    assert all(0 <= score <= 1 for score in scores.values())


def test_a_checkpoint_of_plain_cps_can_be_continued(tiny_2d, monkeypatch):
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    plain = make_trainer(nnUNetTrainerCPS, tiny_2d, **SHORT)
    stop_after_epoch(plain, 1)
    with pytest.raises(Stopped):
        train(plain)
    trainer = trainer_of(tiny_2d)
    trainer.load_checkpoint(str(Path(plain.output_folder, "checkpoint_latest.pth")))
    seen = seen_by(trainer)
    train(trainer)
    assert {epoch for epoch, _, _ in seen} == {2, 3}


# --- several processes ---


def process(rank: int, plans_file: Path, folder: Path) -> None:
    """A whole training in one of two processes; what it sampled goes to a file."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'rendezvous'}", rank=rank, world_size=2)
    with mock.patch(f"{NNUNET}.DDP", ddp_on_cpu), mock.patch("nnunet_semi.plugin_trainer.share_cores", one_thread):
        trainer = make_trainer(on_cpu(nnUNetTrainerCPSUIF), plans_file, **{**UIF, "batch_size": 4, "num_epochs": 2})
        seen = seen_by(trainer)
        trainer.run_training()
    torch.save({"sampled": trainer.sampled, "state": trainer.agreement.state(), "seen": seen}, folder / f"{rank}.pt")
    dist.destroy_process_group()


def test_all_processes_sample_the_same_cases(tmp_path):
    with mock.patch.dict(os.environ, {**environment(tmp_path), "nnUNet_n_proc_DA": "0"}):
        make_dataset(tmp_path)
        plans_file = plan()
        preprocess_unlabeled(1, ["2d"], num_processes=1, progress=False)
        torch.multiprocessing.spawn(process, args=(plans_file, tmp_path), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in range(2))
    assert first["sampled"] == second["sampled"] and len(first["sampled"]) == 3
    assert repr(first["state"]) == repr(second["state"])  # NaN included
    assert first["seen"] != second["seen"]
    for _, unlabeled, _ in (step for rank in (first, second) for step in rank["seen"] if step[0] == 1):
        assert unlabeled <= set(first["sampled"])
