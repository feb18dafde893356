"""Intensity views: each transform against a plain reference, then what holds for views as a whole."""

from __future__ import annotations

import pickle
from dataclasses import fields, replace

import numpy as np
import pytest
import scipy.ndimage
import scipy.stats
import torch
from batchgeneratorsv2.transforms.intensity.contrast import BGContrast, ContrastTransform
from batchgeneratorsv2.transforms.intensity.gamma import GammaTransform
from batchgeneratorsv2.transforms.spatial.low_resolution import SimulateLowResolutionTransform
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.nn.functional import interpolate

from nnunet_semi.perturbation import intensity, operators
from nnunet_semi.perturbation.intensity import IntensityPerturbation

PROBABILITIES = [field.name for field in fields(IntensityPerturbation) if field.name.endswith("_p")]
OFF = IntensityPerturbation(**dict.fromkeys(PROBABILITIES, 0.0))
ALWAYS = {
    "noise": replace(OFF, noise_p=1.0, noise_std=(0.1, 0.2)),
    "blur": replace(OFF, blur_p=1.0, blur_p_channel=1.0),
    "brightness": replace(OFF, brightness_p=1.0),
    "contrast": replace(OFF, contrast_p=1.0),
    "low_resolution": replace(OFF, low_resolution_p=1.0, low_resolution_p_channel=1.0, low_resolution_zoom=(0.5, 0.9)),
    "gamma_inverted": replace(OFF, gamma_inverted_p=1.0),
    "gamma": replace(OFF, gamma_p=1.0),
}
EVERYTHING = replace(
    IntensityPerturbation.strong(),
    **dict.fromkeys([*PROBABILITIES, "blur_p_channel", "low_resolution_p_channel"], 1.0),
)
SHAPES = pytest.mark.parametrize("spatial_shape", [(24, 20), (9, 16, 12)], ids=["2d", "3d"])
EACH = pytest.mark.parametrize("name", ALWAYS)


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.manual_seed(0)


def make_images(*shape: int) -> torch.Tensor:
    """Like nnU-Net's patches: z-scored, smooth and noisy at once."""
    noise = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    smooth = scipy.ndimage.gaussian_filter(noise, [0, 0] + [2] * (len(shape) - 2))
    return torch.from_numpy(smooth / smooth.std() + 0.1 * noise)


def per_plane(value: float, planes: torch.Tensor) -> torch.Tensor:
    return torch.full((len(planes),), value)


@SHAPES
def test_blur_is_scipys_gaussian_filter_with_a_sigma_per_plane_and_axis(spatial_shape):
    planes = make_images(1, 3, *spatial_shape)[0]
    sigmas = torch.tensor([[0.5, 1.0, 1.5], [1.2, 0.6, 2.0], [2.0, 2.0, 0.7]])[:, : len(spatial_shape)]
    blurred = operators.blur(planes, sigmas, tuple(range(len(spatial_shape))), radius=8)
    for plane, sigma, result in zip(planes.numpy(), sigmas.numpy(), blurred.numpy(), strict=True):
        reference = scipy.ndimage.gaussian_filter(plane.astype(np.float64), sigma, mode="mirror", radius=8)
        np.testing.assert_allclose(result, reference, atol=1e-5)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_blur_reflects_at_axes_shorter_than_its_kernel(size):
    planes = make_images(1, 1, size, 16, 16)[0]
    blurred = operators.blur(planes, torch.full((1, 3), 1.5), (0, 1, 2), radius=6)
    reference = scipy.ndimage.gaussian_filter(planes[0].double().numpy(), 1.5, mode="mirror", radius=6)
    np.testing.assert_allclose(blurred[0].numpy(), reference, atol=1e-5)


@SHAPES
def test_contrast_is_nnunets(spatial_shape):
    planes = make_images(1, 1, *spatial_shape)[0]
    stretched = operators.change_contrast(planes, per_plane(1.7, planes))
    plane = planes.double().numpy()
    reference = np.clip((plane - plane.mean()) * 1.7 + plane.mean(), plane.min(), plane.max())
    np.testing.assert_allclose(stretched.numpy(), reference, atol=1e-5)
    theirs = ContrastTransform(lambda **_: 1.7, preserve_range=True, synchronize_channels=False)
    torch.testing.assert_close(stretched, theirs(image=planes.clone())["image"], atol=1e-5, rtol=0)


@SHAPES
@pytest.mark.parametrize("exponent", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("inverted", [False, True])
def test_gamma_is_nnunets(spatial_shape, exponent, inverted):
    planes = make_images(1, 1, *spatial_shape)[0]
    change = operators.change_gamma_inverted if inverted else operators.change_gamma
    curved = change(planes, per_plane(exponent, planes))

    sign = -1 if inverted else 1
    plane = sign * planes.double().numpy()
    power = ((plane - plane.min()) / np.ptp(plane)) ** exponent
    reference = sign * ((power - power.mean()) / power.std() * plane.std() + plane.mean())
    np.testing.assert_allclose(curved.numpy(), reference, atol=1e-5)
    theirs = GammaTransform(exponent, float(inverted), synchronize_channels=False, p_per_channel=1, p_retain_stats=1)
    torch.testing.assert_close(curved, theirs(image=planes.clone())["image"], atol=1e-5, rtol=0)


@SHAPES
@pytest.mark.parametrize("zoom", [0.26, 0.5, 0.75, 1.0])
def test_low_resolution_is_nnunets(spatial_shape, zoom):
    planes = make_images(1, 1, *spatial_shape)[0]
    axes = tuple(range(len(spatial_shape)))
    result = operators.lower_resolution(planes, per_plane(zoom, planes), axes)
    theirs = SimulateLowResolutionTransform(zoom, False, True, ignore_axes=None)
    torch.testing.assert_close(result, theirs(image=planes.clone())["image"], atol=1e-5, rtol=0)


@SHAPES
@pytest.mark.parametrize("zoom", [0.02, 0.26, 0.35, 0.5, 0.77, 1.0])
def test_linear_low_resolution_is_torchs_linear_interpolation_down_and_up(spatial_shape, zoom):
    planes = make_images(1, 1, *spatial_shape)[0]
    axes, mode = tuple(range(len(spatial_shape))), {2: "bilinear", 3: "trilinear"}[len(spatial_shape)]
    coarse = interpolate(planes[None], [max(1, round(zoom * size)) for size in spatial_shape], mode=mode)
    expected = interpolate(coarse, spatial_shape, mode=mode)[0]
    result = operators.lower_resolution(planes, per_plane(zoom, planes), axes, linear=True)
    torch.testing.assert_close(result, expected, atol=1e-5, rtol=0)


def test_low_resolution_has_a_zoom_per_plane():
    planes = make_images(1, 3, 16, 16)[0]
    zooms = torch.tensor([0.3, 0.6, 0.9])
    together = operators.lower_resolution(planes, zooms, (0, 1))
    for i in range(3):
        alone = operators.lower_resolution(planes[i : i + 1], zooms[i : i + 1], (0, 1))
        torch.testing.assert_close(together[i : i + 1], alone)


@SHAPES
def test_noise_has_the_drawn_standard_deviation_in_every_channel_of_a_sample(spatial_shape):
    images = torch.zeros(40, 2, *[4 * size for size in spatial_shape])
    noise = replace(OFF, noise_p=1.0, noise_std=(0.0, 0.2))(images)
    deviations = noise.flatten(2).std(dim=2)
    # at least 7680 values: the standard error of a standard deviation is 1/sqrt(2 * 7680) = .8 %; 6 of them are 5 %
    torch.testing.assert_close(deviations[:, 0], deviations[:, 1], rtol=0.07, atol=1e-4)
    assert deviations.max() < 0.2 * 1.05
    assert deviations[:, 0].std() > 0.02, "every sample draws its own"
    assert not torch.equal(noise[:, 0], noise[:, 1]), "channels share the deviation, not the noise"


def test_brightness_multiplies_by_a_factor_below_1_in_half_of_the_cases():
    ones = torch.ones(10_000, 1, 1, 1)
    factors = ALWAYS["brightness"](ones).flatten().numpy()
    np.random.seed(0)
    theirs = BGContrast((0.75, 1.25))
    expected = [theirs() for _ in range(10_000)]
    assert scipy.stats.ks_2samp(factors, expected).pvalue > 1e-3, "one wrong alarm in 1000 seeds; the seed is fixed"
    skewed = replace(OFF, brightness_p=1.0, brightness_factor=(0.9, 3.0))(ones)
    # standard error of a share of one half over 10 000 is .005; 4 of them
    assert abs((skewed < 1).float().mean() - 0.5) < 0.02
    assert (replace(OFF, brightness_p=1.0, brightness_factor=(0.2, 0.4))(ones) <= 0.4).all()


def test_probabilities_hold_per_sample_and_per_channel():
    images = make_images(1, 2, 4, 4).expand(10_000, -1, -1, -1)
    changed = (replace(OFF, brightness_p=0.3)(images) != images).flatten(2).any(dim=2)
    assert torch.equal(changed[:, 0], changed[:, 1]), "one decision for all channels of a sample"
    assert abs(changed[:, 0].float().mean() - 0.3) < 0.02  # 4 standard errors of .0046
    changed = (replace(OFF, blur_p=0.5, blur_p_channel=0.5)(images) != images).flatten(2).any(dim=2).float()
    assert abs(changed.mean() - 0.25) < 0.02
    # Both channels: .5 * .5², as the channels of a chosen sample are independent; 4 standard errors of .0033.
    assert abs(changed.prod(dim=1).mean() - 0.125) < 0.014


def test_nnunet_preset_holds_the_numbers_of_nnunets_trainer():
    pipeline = nnUNetTrainer.get_training_transforms((32, 32), (0.0, 0.0), None, (0, 1), False)
    found = [step for step in pipeline.transforms if type(step).__name__ == "RandomTransform"]
    noise, blur, brightness, contrast, low_resolution, gamma_inverted, gamma = found
    preset = IntensityPerturbation.nnunet()
    assert [step.apply_probability for step in found] == [
        preset.noise_p,
        preset.blur_p,
        preset.brightness_p,
        preset.contrast_p,
        preset.low_resolution_p,
        preset.gamma_inverted_p,
        preset.gamma_p,
    ]
    assert preset.noise_std == noise.transform.noise_variance
    assert preset.blur_sigma == blur.transform.blur_sigma
    assert preset.blur_p_channel == blur.transform.p_per_channel
    assert preset.brightness_factor == brightness.transform.multiplier_range.contrast_range
    assert preset.contrast_factor == contrast.transform.contrast_range.contrast_range
    assert preset.low_resolution_zoom == low_resolution.transform.scale
    assert preset.low_resolution_p_channel == low_resolution.transform.p_per_channel
    assert preset.gamma_exponent == gamma.transform.gamma.contrast_range
    assert (gamma_inverted.transform.p_invert_image, gamma.transform.p_invert_image) == (1, 0)


def test_strong_is_at_least_as_strong_as_nnunet_in_every_parameter():
    nnunet, strong = IntensityPerturbation.nnunet(), IntensityPerturbation.strong()
    for field in fields(IntensityPerturbation):
        usual, stronger = getattr(nnunet, field.name), getattr(strong, field.name)
        if "_p" in field.name:
            assert stronger > usual, field.name
        elif not field.name.endswith(("axes", "channels", "linear")):
            assert stronger[0] <= usual[0] and usual[1] <= stronger[1] and stronger != usual, field.name


@SHAPES
def test_probability_zero_is_identity_in_new_memory(spatial_shape):
    images = make_images(2, 2, *spatial_shape)
    view = OFF(images)
    assert torch.equal(view, images)
    assert view.data_ptr() != images.data_ptr()


@EACH
@SHAPES
def test_equal_samples_get_different_views(name, spatial_shape):
    images = make_images(1, 1, *spatial_shape).expand(8, -1, *spatial_shape)
    view = ALWAYS[name](images)
    # Coarse grids are whole numbers, so that a few of the eight may coincide there.
    assert len(view.flatten(1).unique(dim=0)) >= (4 if name == "low_resolution" else 8)
    assert (view - images).flatten(1).abs().amax(dim=1).min() > 1e-4


@EACH
@SHAPES
def test_seed_fixes_the_view(name, spatial_shape):
    images = make_images(3, 2, *spatial_shape)
    torch.manual_seed(1)
    first, second = ALWAYS[name](images), ALWAYS[name](images)
    torch.manual_seed(1)
    assert torch.equal(ALWAYS[name](images), first)
    assert not torch.equal(second, first)


@SHAPES
def test_images_stay_unchanged_and_no_gradient_is_kept(spatial_shape):
    images = make_images(2, 1, *spatial_shape).requires_grad_()
    before = images.detach().clone()
    view = EVERYTHING(images)
    assert torch.equal(images, before)
    assert not view.requires_grad
    assert view.dtype == torch.float32 and view.shape == images.shape and view.is_contiguous()


@SHAPES
def test_channels_after_the_images_stay_untouched(spatial_shape):
    images = make_images(2, 4, *spatial_shape)
    images[:, 2:] = (images[:, 2:] > 0).float()
    view = EVERYTHING(images, num_image_channels=2)
    assert torch.equal(view[:, 2:], images[:, 2:])
    assert (view[:, :2] != images[:, :2]).flatten(2).any(dim=2).all()


@SHAPES
@pytest.mark.parametrize("name", [name for name in ALWAYS if name != "low_resolution"])
def test_a_bright_dot_stays_at_its_place(name, spatial_shape):
    dot = tuple(size // 2 + 1 for size in spatial_shape)
    images = torch.zeros(8, 1, *spatial_shape)
    images[(..., *dot)] = 10.0
    for view in replace(ALWAYS[name], blur_sigma=(0.5, 2.0))(images)[:, 0]:
        assert np.unravel_index(int(view.argmax()), spatial_shape) == dot


def test_low_resolution_keeps_a_ramp_in_place():
    ramp = torch.arange(32.0).expand(64, 1, 32, 32)
    shift = (ALWAYS["low_resolution"](ramp) - ramp)[..., 4:-4]
    # A coarse voxel of 1/zoom <= 2 fine ones takes the value of one of them: at most one voxel off, none on average.
    assert shift.abs().max() <= 1.0
    assert shift.mean().abs() < 0.25
    linear = replace(ALWAYS["low_resolution"], low_resolution_zoom=(0.35, 1.0), low_resolution_linear=True)
    assert (linear(ramp) - ramp)[..., 4:-4].abs().max() < 1e-4


@pytest.mark.parametrize("preset", [IntensityPerturbation.nnunet, IntensityPerturbation.strong])
def test_anisotropic_images_keep_the_resolution_of_their_first_axis(preset):
    only = {"low_resolution_p": 1.0, "low_resolution_p_channel": 1.0, "low_resolution_zoom": (0.5, 0.6)}
    perturb = replace(OFF, **only, low_resolution_axes=preset(anisotropic=True).low_resolution_axes)
    along_first_axis = make_images(1, 1, 12, 1, 1).expand(2, 1, 12, 16, 16)
    torch.testing.assert_close(perturb(along_first_axis), along_first_axis)
    along_last_axis = along_first_axis.movedim(2, 4)
    assert (perturb(along_last_axis) - along_last_axis).abs().max() > 0.1


def test_strong_anisotropic_views_keep_the_sharpness_of_the_first_axis():
    axes = IntensityPerturbation.strong(anisotropic=True).blur_axes
    perturb = replace(ALWAYS["blur"], blur_axes=axes)
    along_first_axis = make_images(1, 1, 12, 1, 1).expand(2, 1, 12, 16, 16)
    torch.testing.assert_close(perturb(along_first_axis), along_first_axis)


@SHAPES
def test_voxels_outside_the_mask_stay_zero_in_masked_channels_only(spatial_shape):
    images = make_images(4, 2, *spatial_shape)
    images[:, 0, ..., :7] = 0.0
    images[:, 1, ..., :5] = 0.0
    view = replace(EVERYTHING, masked_channels=(1,))(images)
    assert (view[:, 1, ..., :5] == 0).all()
    assert (view[:, 1, ..., 5:] != 0).all()
    assert (view[:, 0, ..., :5] != 0).any()


@SHAPES
@pytest.mark.parametrize("value", [0.0, -3.0, 1e4])
def test_constant_images_stay_finite_and_constant_without_noise(spatial_shape, value):
    images = torch.full((4, 2, *spatial_shape), value)
    assert EVERYTHING(images).isfinite().all()
    without_noise = replace(EVERYTHING, noise_p=0.0, brightness_p=0.0)
    torch.testing.assert_close(without_noise(images), images, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(2, 1, 1, 1), (1, 1, 1, 5, 1), (0, 1, 8, 8), (2, 0, 8, 8)])
def test_smallest_and_empty_batches_work(shape):
    view = EVERYTHING(torch.ones(shape))
    assert view.shape == shape and view.isfinite().all()


def test_autocast_does_not_reach_the_views():
    images = make_images(2, 1, 24, 20)
    torch.manual_seed(0)
    expected = EVERYTHING(images)
    torch.manual_seed(0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(EVERYTHING(images), expected)


@SHAPES
def test_computing_all_planes_as_on_a_gpu_gives_the_same_views(spatial_shape, monkeypatch):
    images = make_images(6, 2, *spatial_shape)
    perturb = replace(IntensityPerturbation.strong(), noise_p=1.0)  # only noise draws a number per voxel
    torch.manual_seed(0)
    expected = perturb(images)
    monkeypatch.setattr(intensity, "_reading_is_free", lambda device: False)
    torch.manual_seed(0)
    torch.testing.assert_close(perturb(images), expected, rtol=1e-5, atol=1e-5)


@SHAPES
@pytest.mark.parametrize("linear", [False, True])
def test_nothing_is_read_back_from_an_accelerator(spatial_shape, linear):
    """Fake tensors hold shapes but no values: whatever would wait for a GPU raises."""
    with FakeTensorMode():
        images = torch.empty(2, 3, *spatial_shape, device="cuda")
        with pytest.raises(DataDependentOutputException):
            images.sum().item()
        perturb = replace(IntensityPerturbation.strong(), masked_channels=(0,), low_resolution_linear=linear)
        view = perturb(images, num_image_channels=2)
        assert view.shape == images.shape and view.device.type == "cuda"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@SHAPES
def test_views_on_a_gpu_never_wait_for_it(spatial_shape):
    images = make_images(4, 2, *spatial_shape).cuda()
    EVERYTHING(images)
    torch.cuda.set_sync_debug_mode("error")
    try:
        view = EVERYTHING(images)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert view.isfinite().all()


def test_perturbation_can_be_pickled_and_compared():
    assert pickle.loads(pickle.dumps(EVERYTHING)) == EVERYTHING


@pytest.mark.parametrize(
    "wrong",
    [
        {"noise_p": 1.5},
        {"blur_p_channel": -0.1},
        {"blur_sigma": (0.0, 1.0)},
        {"low_resolution_zoom": (0.5, 2.0)},
        {"gamma_exponent": (2.0, 0.5)},
    ],
)
def test_wrong_parameters_are_named(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        IntensityPerturbation(**wrong)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int16])
def test_other_types_than_float32_are_refused(dtype):
    with pytest.raises(ValueError, match="expected float32"):
        OFF(torch.zeros(1, 1, 8, 8, dtype=dtype))


def test_wrong_shapes_axes_and_channels_are_refused():
    with pytest.raises(ValueError, match=r"\(B, C, H, W\)"):
        OFF(torch.zeros(1, 8, 8))
    with pytest.raises(ValueError, match="num_image_channels is 3"):
        OFF(torch.zeros(1, 2, 8, 8), num_image_channels=3)
    with pytest.raises(ValueError, match="masked_channels"):
        replace(OFF, masked_channels=(1,))(torch.zeros(1, 2, 8, 8), num_image_channels=1)
    with pytest.raises(ValueError, match="2D images; expected 0 to 1"):
        IntensityPerturbation.strong(anisotropic=True)(torch.zeros(1, 1, 8, 8))
