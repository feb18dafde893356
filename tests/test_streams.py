"""Two streams: what the unlabeled one may read, how it samples, and that its geometry is shared by all views."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from batchgenerators.utilities.file_and_folder_operations import load_pickle, write_pickle
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.training.nnUNetTrainer.variants.data_augmentation.nnUNetTrainerDA5 import nnUNetTrainerDA5
from scipy.stats import chisquare

from nnunet_semi.discovery.variants import variant
from nnunet_semi.errors import WrongUse
from nnunet_semi.perturbation.intensity import IntensityPerturbation
from nnunet_semi.pipelines import GeometryOnly, transforms_in
from nnunet_semi.trainers.nnUNetTrainerCPS import nnUNetTrainerCPS
from tiny_trainer import make_trainer

REGIONS = {"background": 0, "whole": (1, 2), "core": 2}
IGNORE = {"background": 0, "disc": 1, "square": 2, "ignore": 3}


def streams(plans_file: Path, configuration: str = "2d", cls: type = nnUNetTrainerCPS, **attributes):
    """A trainer and its training stream, in this process."""
    os.environ["nnUNet_n_proc_DA"] = "0"
    trainer = make_trainer(cls, plans_file, configuration, **attributes)
    trainer.initialize()
    training, _ = trainer.get_dataloaders()
    return trainer, training.data_loader.loader


def test_a_batch_holds_labeled_and_unlabeled_patches(tiny):
    trainer, loader = streams(tiny(channels=2), unlabeled_batch_size=3)
    batch = next(loader)
    assert batch["data"].shape == (2, 2, 32, 32)
    assert batch["unlabeled"].shape == (3, 2, 32, 32)
    assert set(batch["unlabeled_keys"]) <= {f"un_{i:03d}" for i in range(4)}
    assert set(batch["keys"]) <= {f"tr_{i:03d}" for i in range(6)}


def test_a_batch_without_unlabeled_patches_is_refused(tiny_2d):
    with pytest.raises(WrongUse, match="got 0 as unlabeled_batch_size of nnUNetTrainerCPS; expected 1 or more"):
        streams(tiny_2d, unlabeled_batch_size=0)


@pytest.mark.parametrize("labels", [REGIONS, IGNORE], ids=["regions", "ignore label"])
def test_labels_of_unlabeled_cases_are_never_read(tiny, labels):
    """Poisoned foreground locations and a poisoned segmentation change nothing."""
    plans_file = tiny(labels=labels, unlabeled=3)
    trainer, loader = streams(plans_file)
    unlabeled = loader.streams[1]
    folder = Path(unlabeled._data.source_folder)

    def drawn() -> torch.Tensor:
        np.random.seed(0)
        torch.manual_seed(0)
        return torch.cat([next(unlabeled)["data"] for _ in range(6)])

    clean = drawn()
    for case in unlabeled._data.identifiers:
        data, seg, _, properties = unlabeled._data.load_case(case)
        properties["class_locations"] = {1: np.full((5, 4), 10**6), (1, 2): np.full((5, 4), 10**6)}
        write_pickle(properties, str(folder / f"{case}.pkl"))
        values = np.random.default_rng(0).integers(0, 3, seg.shape).astype(np.int16)
        (folder / f"{case}_seg.b2nd").unlink()
        nnUNetDatasetBlosc2.save_seg(values, str(folder / f"{case}_seg"))
    assert torch.equal(drawn(), clean)
    assert load_pickle(str(folder / "un_000.pkl"))["class_locations"][1].shape == (5, 4)


def test_unlabeled_patches_are_sampled_uniformly(tiny):
    """Cases, and places in a case; a chance of 1e-4 to fail with another seed."""
    _, loader = streams(tiny(unlabeled=2), batch_size=8)
    unlabeled, shape = loader.streams[1], np.array([1, 60, 100])
    np.random.seed(0)
    cases = [case for _ in range(100) for case in unlabeled.get_indices()]
    boxes = [unlabeled.get_bbox(shape, unlabeled.get_do_oversample(j % 8), None) for j in range(4000)]
    starts = [lower[-1] for lower, _ in boxes]
    reach = shape[-1] - unlabeled.final_patch_size[-1]  # as far as a patch of which nothing is padded goes
    assert {upper[-1] - lower[-1] for lower, upper in boxes} == {unlabeled.patch_size[-1]}
    places = range(min(starts), max(starts) + 1)
    assert len(places) in (reach + 1, reach + 2)  # nnU-Net rounds half a voxel of padding up at both ends
    for counts in ([cases.count(f"un_{i:03d}") for i in range(2)], [starts.count(place) for place in places]):
        assert chisquare(counts).pvalue > 1e-4


class CPSDA5(nnUNetTrainerCPS, nnUNetTrainerDA5):
    """CPS with an augmentation in which nnU-Net chooses one of several intensity transforms."""


@pytest.mark.parametrize("cls", [nnUNetTrainerCPS, CPSDA5])
def test_geometry_only_moves_voxels_and_changes_no_intensity(cls, tiny_2d):
    """An image whose two intensities encode their positions keeps exactly these: nothing but geometry acted."""
    trainer, loader = streams(tiny_2d, cls=cls)
    geometry = loader.streams[1].transforms
    for transform in geometry.transforms:
        if hasattr(transform, "p_rotation"):
            transform.p_rotation = transform.p_scaling = 0
    size = loader.streams[1].patch_size[1:]
    image = torch.arange(int(np.prod(size)), dtype=torch.float32).reshape(1, *size)
    for _ in range(20):
        view = geometry(image=image, segmentation=torch.zeros(1, *size, dtype=torch.int16))["image"]
        assert set(view.unique().tolist()) <= set(image.unique().tolist())
        assert view.shape == (1, 32, 32)
    assert isinstance(geometry, GeometryOnly)


def test_all_views_of_a_patch_share_its_geometry(tiny_2d):
    """Intensities that encode their places stay in this order in both views, which bend intensities alone."""
    trainer, _ = streams(tiny_2d)
    trainer.perturb = IntensityPerturbation(noise_p=0, blur_p=0, low_resolution_p=0, contrast_p=0, gamma_inverted_p=0)
    patch = (torch.arange(2 * 32 * 32.0).view(2, 1, 32, 32) / 100 + 1).contiguous()
    views = [trainer.strong_view(patch) for _ in range(8)]
    for view in views:
        for bent, original in zip(view, patch, strict=True):
            assert torch.equal(bent.flatten().argsort(), original.flatten().argsort())
    assert not torch.equal(views[0], views[1])


@pytest.mark.parametrize("allowed", [True, False])
def test_a_name_forbids_mirroring_of_both_streams_and_at_prediction(tiny_2d, tmp_path, allowed):
    trainer, loader = streams(tiny_2d, **({} if allowed else vars(variant("nnUNetTrainer_nomirror"))))
    for stream in loader.streams:
        axes = [t.allowed_axes for t in transforms_in(stream) if isinstance(t, MirrorTransform)]
        assert axes == ([(0, 1)] if allowed else [])
    trainer.save_checkpoint(str(tmp_path / "checkpoint_final.pth"))
    checkpoint = torch.load(tmp_path / "checkpoint_final.pth", weights_only=False)
    assert checkpoint["inference_allowed_mirroring_axes"] == ((0, 1) if allowed else None)


def test_intensity_is_shared_by_no_two_views_but_masked_voxels_stay_zero(tiny_2d):
    trainer, loader = streams(tiny_2d)
    trainer.configuration_manager.configuration["use_mask_for_norm"] = [True]
    trainer.was_initialized = False
    trainer.initialize()
    patch = torch.rand(2, 1, 32, 32) + 1
    patch[:, :, :9] = 0
    view = trainer.strong_view(patch)
    assert (view[:, :, :9] == 0).all()
    assert (view[:, :, 9:] != 0).all()


def test_anisotropic_3d_keeps_the_first_axis_sharp(tiny):
    plans_file = tiny(("3d_fullres",), dimension=3, shape=(8, 48, 48), spacing=(6.0, 1.0, 1.0))
    trainer, loader = streams(plans_file, "3d_fullres", perturbation=IntensityPerturbation.strong)
    assert trainer.perturb.blur_axes == (1, 2)
    assert next(loader)["unlabeled"].ndim == 5
