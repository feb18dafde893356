"""nnUNetTrainerHeatmap on real nnU-Net datasets of dots: what its loaders give, trains on, keeps and writes."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.base.basic_transform import ImageOnlyTransform

from landmark_dataset import DOT, OFFSETS, SHAPES, SPACING, make_landmark_dataset
from nnunet_semi.errors import EnvironmentNotReady, UserError
from nnunet_semi.landmark_files import read, write
from nnunet_semi.landmarks.calibration import SAMPLES
from nnunet_semi.landmarks.decoding import decode
from nnunet_semi.landmarks.heatmaps import BLOB_LEVEL, render
from nnunet_semi.trainers.nnUNetTrainerHeatmap import (
    nnUNetTrainerHeatmap,
    nnUNetTrainerHeatmapFocal,
    nnUNetTrainerHeatmapL1,
)
from nnunet_semi.trainers.nnUNetTrainerHeatmapMeanTeacher import nnUNetTrainerHeatmapMeanTeacher
from nnunet_semi.whole_image import add_whole_image_configuration
from short_training import differences, stop_workers, train
from small_dataset import environment, plan
from test_resume import Stopped, stop_after_epoch
from tiny_trainer import make_trainer

CONFIGURATION = {2: "2d", 3: "3d_fullres"}
HALF, RIM = 2.5, 0.03  # what is looked at around a dot, in widths, and the mean of its outermost voxels, 1 on top
SHIFT = 0.05  # voxels that a point may be off its dot, whatever the augmentation
GEOMETRY = ("MovePoints", "MirrorPoints", "Convert2DTo3DTransform", "Convert3DTo2DTransform")
INTENSITY = {
    "GaussianNoiseTransform",
    "GaussianBlurTransform",
    "MultiplicativeBrightnessTransform",
    "ContrastTransform",
    "LowResolutionInPlace",
    "GammaTransform",
}
PAIRS = {"left_right": [["dot 1", "dot 2"]]}

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")


@pytest.fixture(scope="session")
def _made(tmp_path_factory: pytest.TempPathFactory) -> dict[Any, Path]:
    return {"": tmp_path_factory.mktemp("dots")}


@pytest.fixture
def dots(_made: dict[Any, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Path]:
    """Makes a dataset of dots without noise once per session and gives its plans file."""

    def make(dimension: int, **options: Any) -> Path:
        key = repr((dimension, SPACING[dimension], sorted(options.items())))
        root = _made[""] / str(abs(hash(key)))
        for name, value in {**environment(root), "nnUNet_results": str(tmp_path / "nnUNet_results")}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("nnUNet_n_proc_DA", "0")
        if key not in _made:
            make_landmark_dataset(root, dimension, **{"noise": 0.0, **options})
            _made[key] = plan(1, (CONFIGURATION[dimension],))
        return _made[key]

    return make


@pytest.fixture
def fine_volumes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets the dots of volumes be 3 to 4 voxels wide, as interpolation moves narrower ones, and fade inside of them."""
    monkeypatch.setitem(SPACING, 3, tuple(spacing / 2 for spacing in SPACING[3]))
    monkeypatch.setitem(SHAPES, 3, (48, 72, 64))


def heatmap_trainer(plans_file: Path, cls: type = nnUNetTrainerHeatmap, dimension: int = 2, **attributes: Any) -> Any:
    return make_trainer(cls, plans_file, CONFIGURATION[dimension], **attributes)


def started_loader(trainer: Any) -> Any:
    """The loader of labeled patches of a trainer, which this starts."""
    trainer.on_train_start()
    return trainer.dataloader_train.data_loader.loader


def only_geometry(pipeline: Any) -> Any:
    """nnU-Net's augmentation with every rotation, scaling and mirroring, and untouched intensities."""
    pipeline.transforms = [t for t in pipeline.transforms if type(t).__name__ in GEOMETRY]
    for transform in pipeline.transforms:
        if type(transform).__name__ == "MovePoints":
            transform.transform.p_rotation = transform.transform.p_scaling = 1
    return pipeline


@pytest.mark.parametrize(
    ("dimension", "options"),
    [(2, {}), (3, {}), (2, {"landmarks": PAIRS}), (3, {"landmarks": {**PAIRS, "axis": "y"}})],
    ids=["2D", "3D", "2D with pairs", "3D with pairs"],
)
@pytest.mark.usefixtures("fine_volumes")
def test_points_lie_on_the_dots_through_everything(dots: Callable[..., Path], dimension: int, options: dict) -> None:
    """Crop to nonzero, resampling, patches, augmentation: the dots of a batch are where its points say.

    The second dot is twice as bright as the first, by which a mirrored image is known.
    """
    trainer = heatmap_trainer(dots(dimension, **options), dimension=dimension)
    loader = started_loader(trainer)
    loader.transforms = only_geometry(loader.transforms)
    spacing = np.array(trainer.configuration_manager.spacing)
    seen, mirrored = [], set()
    np.random.seed(0)
    torch.manual_seed(0)
    for _ in range(8):
        batch = next(loader)
        for image, points in zip(batch["data"], batch["target"], strict=True):
            for point in points:
                found = nearby_dot(image[0], point, DOT / spacing)
                if found is not None:
                    seen.append(float((found - point).norm()))
            mirrored |= first_is_brighter(image[0], points)
    assert len(seen) > 10
    assert max(seen) < SHIFT
    assert mirrored == ({False, True} if options else {False})  # dots 1 and 2 change places in the mirrored image only
    stop_workers(trainer)


def first_is_brighter(image: torch.Tensor, points: torch.Tensor) -> set[bool]:
    """Whether the dot at point 1 is brighter than the one at point 2; nothing where one is not in the patch."""
    places = points[:2].round()
    if not ((places >= 0) & (places < torch.tensor(image.shape))).all():
        return set()
    first, second = (image[tuple(place.long())] for place in places)
    return {bool(first > second)}


def nearby_dot(image: torch.Tensor, point: torch.Tensor, width: np.ndarray) -> torch.Tensor | None:
    """The centre of the dot about a point; None where the patch or the image ends before the dot has faded away."""
    half = round(HALF * max(width))
    first = torch.floor(point) - half if not point.isnan().any() else torch.tensor(-1.0)
    if (first < 0).any() or (first + 2 * half + 2 > torch.tensor(image.shape)).any():
        return None
    values = image[tuple(slice(int(a), int(a) + 2 * half + 2) for a in first)] - image.min()
    values = values / values.max()
    inner = (slice(1, -1),) * values.ndim
    if values.sum() - values[inner].sum() > RIM * (values.numel() - values[inner].numel()):
        return None
    return decode(values[None, None], list(width), 2).points[0, 0] + first


def bright_dots(dimension: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (N, *shape) of one dot each, 3 voxels wide and far above any noise, and its centre (N, dim)."""
    shape, count = {2: ((61, 54), 60), 3: ((40, 44, 42), 20)}[dimension]
    generator = torch.Generator().manual_seed(0)
    points = torch.tensor(shape) / 2 + torch.rand(count, dimension, generator=generator) * 6 - 3
    return 1000 * render(points[:, None], shape, [3.0] * dimension)[:, 0], points


def centres_of_mass(images: torch.Tensor) -> torch.Tensor:
    """Of what differs from the background in images (N, *shape)."""
    grid = torch.stack(torch.meshgrid(*map(torch.arange, images.shape[1:]), indexing="ij"), -1)
    flat = images.flatten(1).double()
    mass = flat - flat.median(1, keepdim=True).values
    return (mass @ grid.flatten(0, -2).double() / mass.sum(1, keepdim=True)).float()


def always(pipeline: Any) -> list[ImageOnlyTransform]:
    """What a pipeline does to intensities, each of it as a transform that changes every channel of every sample."""
    bare = [getattr(transform, "transform", transform) for transform in pipeline.transforms]
    found = [transform for transform in bare if isinstance(transform, ImageOnlyTransform)]
    for transform in found:
        if hasattr(transform, "p_per_channel"):
            transform.p_per_channel = 1
    return found


@pytest.mark.parametrize("dimension", [2, 3])
def test_no_change_of_intensity_moves_a_dot(dots: Callable[..., Path], dimension: int) -> None:
    trainer = heatmap_trainer(dots(dimension), dimension=dimension)
    transforms = always(started_loader(trainer).transforms)
    assert {type(transform).__name__ for transform in transforms} == INTENSITY
    images, points = bright_dots(dimension)
    np.random.seed(0)
    torch.manual_seed(0)
    for transform in transforms:
        changed = torch.cat([transform(image=image[None].clone())["image"] for image in images])
        assert not torch.equal(changed, images)
        assert (centres_of_mass(changed) - points).norm(dim=1).max() < SHIFT, transform
    stop_workers(trainer)


@pytest.mark.parametrize("dimension", [2, 3])
def test_the_students_view_moves_no_dot(dots: Callable[..., Path], dimension: int) -> None:
    trainer = heatmap_trainer(dots(dimension, unlabeled=4), nnUNetTrainerHeatmapMeanTeacher, dimension)
    trainer.initialize()
    perturb, images, points = trainer.perturb, *bright_dots(dimension)
    names = [field.name for field in fields(perturb) if field.name.endswith("_p")]
    assert len(names) == 7
    torch.manual_seed(0)
    for name in names:
        trainer.perturb = replace(perturb, **{other: float(other == name) for other in names})
        view = trainer.strong_view(images[:, None])[:, 0]
        assert not torch.equal(view, images)
        assert (centres_of_mass(view) - points).norm(dim=1).max() < SHIFT, name


@pytest.mark.parametrize("dimension", [2, 3])
def test_patches_are_rotated_by_15_degrees_at_most(dots: Callable[..., Path], dimension: int) -> None:
    trainer = heatmap_trainer(dots(dimension), dimension=dimension)
    (move,) = [t for t in started_loader(trainer).transforms.transforms if type(t).__name__ == "MovePoints"]
    assert move.transform.rotation == pytest.approx((-0.2618, 0.2618), abs=1e-4)
    assert move.transform.p_rotation > 0
    stop_workers(trainer)


@pytest.mark.parametrize("allowed", [True, False])
def test_pairs_mirror_unless_the_trainer_forbids_it(dots: Callable[..., Path], allowed: bool) -> None:
    trainer = heatmap_trainer(dots(2, landmarks=PAIRS), allow_mirroring=allowed)
    trainer.initialize()
    *_, axes = trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
    assert axes == ((1,) if allowed else None)
    assert (trainer.mirroring is not None) == allowed


def test_a_batch_is_images_and_points_and_does_not_grow_with_landmarks(dots: Callable[..., Path]) -> None:
    trainer = heatmap_trainer(dots(2))
    trainer.on_train_start()
    batch = next(trainer.dataloader_train)
    assert batch["target"].shape == (2, len(OFFSETS[2]), 2) and batch["target"].dtype == torch.float32
    assert {name for name in batch if torch.is_tensor(batch[name])} == {"data", "target"}


@pytest.mark.parametrize("cls", [nnUNetTrainerHeatmap, nnUNetTrainerHeatmapL1, nnUNetTrainerHeatmapFocal])
def test_training_lowers_the_loss(dots: Callable[..., Path], cls: type) -> None:
    trainer = heatmap_trainer(dots(2, noise=0.2), cls, num_epochs=3, num_iterations_per_epoch=8)
    losses = train(trainer)["logging"]["train_losses"]
    assert losses[-1] < losses[0]


def test_volumes_are_trained_on(dots: Callable[..., Path]) -> None:
    trainer = heatmap_trainer(dots(3), dimension=3, num_epochs=1)
    checkpoint = train(trainer)
    assert np.isfinite(checkpoint["logging"]["landmark_mre"]).all()
    assert checkpoint["inference_allowed_mirroring_axes"] is None
    trainer.perform_actual_validation()
    found = read(Path(trainer.output_folder, "validation", "case_002.json"))
    assert found.voxel.shape == (2, 3) and np.isfinite(found.voxel).all()


def test_validation_writes_landmarks_and_their_errors(dots: Callable[..., Path]) -> None:
    plans_file = dots(2, labeled=8)
    trainer = heatmap_trainer(plans_file, fold=0)
    train(trainer)
    trainer.perform_actual_validation()
    folder = Path(trainer.output_folder, "validation")
    cases = json.loads((plans_file.parent / "splits_final.json").read_text())[0]["val"]
    assert {path.stem for path in folder.glob("case_*.json")} == set(cases)
    summary = json.loads((folder / "summary.json").read_text())
    raw = plans_file.parents[2] / "nnUNet_raw" / plans_file.parent.name / "landmarksTr"
    for entry in summary["metric_per_case"]:
        case = entry["case"]
        errors = np.linalg.norm(read(folder / f"{case}.json").world - read(raw / f"{case}.json").world, axis=1)
        for label, error in enumerate(errors, 1):
            assert entry["metrics"][str(label)]["MRE"] == pytest.approx(error, nan_ok=True)
    calibration = summary["nnunet_semi"][SAMPLES]  # by which predictions are calibrated
    assert calibration["epoch"] == trainer.current_epoch
    for row, entry in enumerate(summary["metric_per_case"]):
        details = read(folder / f"{entry['case']}.json").details
        for name in ("peak", "width"):
            assert calibration[name][row] == pytest.approx(details[name], abs=1e-4)
        errors = [math.nan if error is None else error for error in calibration["error_mm"][row]]
        assert errors == pytest.approx([of["MRE"] for of in entry["metrics"].values()], nan_ok=True)


def test_a_continued_training_is_the_unbroken_one(dots: Callable[..., Path], monkeypatch, tmp_path: Path) -> None:
    plans_file = dots(2, noise=0.2)
    options = {"num_epochs": 3, "save_every": 1}
    unbroken = train(heatmap_trainer(plans_file, **options))
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "again"))
    first = heatmap_trainer(plans_file, **options)
    stop_after_epoch(first, 1)
    with pytest.raises(Stopped):
        train(first)
    second = heatmap_trainer(plans_file, **options)
    second.load_checkpoint(str(Path(first.output_folder, "checkpoint_latest.pth")))
    assert differences(unbroken, train(second)) == []


def test_the_best_checkpoint_has_the_smallest_moving_average_of_the_error(dots: Callable[..., Path]) -> None:
    trainer = heatmap_trainer(dots(2), num_epochs=4)
    trainer.print_to_log_file("Yayy! New best EMA pseudo Dice: -3.2", also_print_to_console=False)
    errors = [5.0, 1.0, 12.0, 0.5]  # their moving average is smallest in the second epoch, they themselves in the last
    trainer.validation_step = lambda batch: {"loss": 0.0, "errors": np.full((2, 3), errors[trainer.current_epoch])}
    logging = train(trainer)["logging"]
    assert logging["landmark_mre"] == errors
    assert logging["mean_fg_dice"] == [-mre for mre in errors]
    assert trainer._best_ema == max(logging["ema_fg_dice"]) == logging["ema_fg_dice"][1]
    best = torch.load(Path(trainer.output_folder, "checkpoint_best.pth"), weights_only=False)
    assert best["current_epoch"] == 2  # epochs that are done
    log = Path(trainer.log_file).read_text()
    assert (
        "moving average of -MRE [mm]: -3.2" in log
        and "MRE per landmark [mm]" in log
        and "Dice" not in log.split("Epoch 0")[1]
    )


def test_progress_is_drawn_in_mm(dots: Callable[..., Path]) -> None:
    trainer = heatmap_trainer(dots(2), num_epochs=2)
    draw = trainer.logger.local_logger.plot_progress_png
    train(trainer)
    draw(trainer.output_folder)
    assert Path(trainer.output_folder, "progress.png").stat().st_size > 10_000
    lines = Path(trainer.output_folder, "progress_landmarks.csv").read_text().splitlines()
    assert lines[0] == "epoch,train_loss,val_loss,mre_mm,sdr_2mm" and len(lines) == 3


# --- few labels ---


def test_a_continued_training_with_unlabeled_images_is_the_unbroken_one(
    dots: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    plans_file = dots(2, noise=0.2, unlabeled=4)
    options = {"num_epochs": 3, "save_every": 1, "smallest_peak": 0.0}
    unbroken = train(heatmap_trainer(plans_file, nnUNetTrainerHeatmapMeanTeacher, **options))
    assert min(unbroken["logging"]["semi_loss_unlabeled"]) > 0
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "again"))
    first = heatmap_trainer(plans_file, nnUNetTrainerHeatmapMeanTeacher, **options)
    stop_after_epoch(first, 1)
    with pytest.raises(Stopped):
        train(first)
    second = heatmap_trainer(plans_file, nnUNetTrainerHeatmapMeanTeacher, **options)
    second.load_checkpoint(str(Path(first.output_folder, "checkpoint_latest.pth")))
    assert differences(unbroken, train(second)) == []
    second.perform_actual_validation()
    second.logger.local_logger.__class__.plot_progress_png(second.logger.local_logger, second.output_folder)
    lines = Path(second.output_folder, "progress_landmarks.csv").read_text().splitlines()
    assert "semi_loss_unlabeled" in lines[0] and len(lines) == 4


def test_pseudo_landmarks_count_by_their_peak(dots: Callable[..., Path]) -> None:
    """A teacher that shows one landmark, another not quite so high, and a third one that is too low to count."""
    trainer = heatmap_trainer(dots(2, noise=0.2, unlabeled=4), nnUNetTrainerHeatmapMeanTeacher)
    trainer.initialize()
    shape = trainer.configuration_manager.patch_size
    points = torch.tensor([[[10.0, 12.5], [20.25, 15.0], [12.0, 22.0]]]).repeat(2, 1, 1)
    heatmaps = render(points, shape, trainer.voxel_sigma) * torch.tensor([1.0, 0.8, 0.3])[:, None, None]
    logits = torch.logit(heatmaps, 1e-5) - math.log(BLOB_LEVEL / (1 - BLOB_LEVEL))
    trainer.teach = lambda images: torch.cat([torch.zeros(2, 1, *shape), logits], 1)
    found, peak = trainer.pseudo_landmarks(torch.zeros(2, 1, *shape))
    assert (found - points).abs().max() < 0.05
    torch.testing.assert_close(peak, torch.tensor([[1.0, 0.8, 0.3]]).repeat(2, 1), atol=0.05, rtol=0)
    learned, loss = [], trainer.loss
    trainer.loss = lambda *arguments: (learned.append(arguments[1:]), loss(*arguments))[1]
    images = torch.randn(2, 1, *shape, generator=torch.Generator().manual_seed(0))
    step = trainer.losses(images, points, images)
    (labeled,), (marked, weights) = learned
    assert labeled is points and torch.equal(marked, found)
    assert torch.equal(weights, peak * torch.tensor([1.0, 1.0, 0.0]))
    assert step.curves["semi_kept"] == pytest.approx(2 / 3) and step.shares.tolist() == pytest.approx([1 / 3, 1, 1, 0])
    assert step.unsupervised > 0


# --- what is refused ---


@pytest.fixture
def copied(dots: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the dataset that a test may damage; its plans file."""
    original = dots(2).parents[2]
    root = tmp_path / "copy"
    shutil.copytree(original, root)
    for name in ("nnUNet_raw", "nnUNet_preprocessed"):
        monkeypatch.setenv(name, str(root / name))
    return root / "nnUNet_preprocessed" / "Dataset001_Dots" / "nnUNetPlans.json"


def sidecar_folder(plans_file: Path) -> Path:
    return plans_file.parents[2] / "nnUNet_raw" / "Dataset001_Dots" / "landmarksTr"


def test_a_missing_file_is_told_before_training(copied: Path) -> None:
    (sidecar_folder(copied) / "case_003.json").unlink()
    with pytest.raises(UserError, match="case_003.json does not exist"):
        heatmap_trainer(copied).on_train_start()


def test_landmarks_of_another_image_are_told(copied: Path) -> None:
    path = sidecar_folder(copied) / "case_003.json"
    content = json.loads(path.read_text())
    content["size"][0] += 1
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="case_003.json has the size"):
        heatmap_trainer(copied).on_train_start()


def test_no_landmarks_at_all_are_told_and_a_copy_beside_the_preprocessed_data_is_enough(copied: Path) -> None:
    moved = copied.parent / "landmarksTr"
    shutil.move(sidecar_folder(copied), moved)
    trainer = heatmap_trainer(copied)
    trainer.on_train_start()
    shutil.rmtree(moved)
    with pytest.raises(EnvironmentNotReady, match="landmarksTr does not exist"):
        heatmap_trainer(copied).on_train_start()


def test_volumes_need_a_3d_configuration(dots: Callable[..., Path]) -> None:
    plans_file = dots(3)
    plan(1, ("2d",))
    with pytest.raises(UserError, match="need a 3d configuration"):
        make_trainer(nnUNetTrainerHeatmap, plans_file, "2d").on_train_start()


def test_a_segmentation_dataset_is_refused(tiny_2d: Path) -> None:
    with pytest.raises(EnvironmentNotReady, match="landmarks are trained from"):
        make_trainer(nnUNetTrainerHeatmap, tiny_2d).on_train_start()


def test_landmarks_far_outside_and_coinciding_ones_are_trained_on(copied: Path) -> None:
    for path in sidecar_folder(copied).glob("*.json"):
        landmarks = read(path)
        landmarks.voxel[0] = -500.0
        landmarks.voxel[1] = landmarks.voxel[2]
        write(path, landmarks)
    checkpoint = train(heatmap_trainer(copied, num_epochs=1))
    assert np.isfinite(checkpoint["logging"]["train_losses"]).all()
    assert np.isnan(checkpoint["logging"]["dice_per_class_or_region"][0][0])


# --- the whole image ---


def test_the_whole_image_fits_into_the_patch(copied: Path) -> None:
    made = add_whole_image_configuration(1, "2d", 32)
    assert made.name == "2d_whole32" and max(made.patch_size) <= 48
    plan_again = add_whole_image_configuration(1, "2d", 32)
    assert plan_again == made
    fingerprint = json.loads((copied.parent / "dataset_fingerprint.json").read_text())
    largest = np.max(fingerprint["shapes_after_crop"], 0)[1:] * SPACING[2]
    assert (largest / made.spacing <= np.array(made.patch_size) + 1e-3).all()
    assert made.spacing[0] == made.spacing[1] == pytest.approx(largest.max() / 32)


def test_a_whole_image_configuration_is_no_finer_than_its_original(copied: Path) -> None:
    made = add_whole_image_configuration(1, "2d", 4000)
    assert made.spacing == pytest.approx(SPACING[2])
