"""Feature dropout: its masks, whom it disturbs, and that wrappers and compilers keep it."""

from __future__ import annotations

import copy

import pytest
import torch
from dynamic_network_architectures.architectures.primus import PrimusS
from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
from torch import nn
from torch.optim.swa_utils import AveragedModel

from nnunet_semi.errors import WrongUse
from nnunet_semi.perturbation.dropout import FeatureDropout

CHANNELS = [4, 8, 8]


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.manual_seed(0)


def unet(cls: type = PlainConvUNet, dimension: int = 2, deep_supervision: bool = True) -> nn.Module:
    conv = {2: nn.Conv2d, 3: nn.Conv3d}[dimension]
    norm = {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}[dimension]
    per_stage = {PlainConvUNet: "n_conv_per_stage", ResidualEncoderUNet: "n_blocks_per_stage"}[cls]
    depth = {"n_stages": 3, "features_per_stage": CHANNELS, "kernel_sizes": 3, "strides": [1, 2, 2], per_stage: 1}
    layers = {"conv_op": conv, "norm_op": norm, "norm_op_kwargs": {"affine": True}, "nonlin": nn.LeakyReLU}
    return cls(
        1,
        **depth,
        **layers,
        num_classes=2,
        n_conv_per_stage_decoder=1,
        conv_bias=True,
        deep_supervision=deep_supervision,
    )


def by_hand(network: nn.Module, images: torch.Tensor, masks: list[torch.Tensor]) -> list[torch.Tensor]:
    """Encoder and decoder in a row, the features of each stage multiplied in between."""
    features = network.encoder(images)
    shape = (*masks[0].shape[:1], -1, *[1] * (images.ndim - 2))
    return network.decoder([feature * mask.view(shape) for feature, mask in zip(features, masks, strict=True)])


@pytest.mark.parametrize("cls", [PlainConvUNet, ResidualEncoderUNet])
@pytest.mark.parametrize("dimension", [2, 3])
def test_masked_parts_equal_encoder_and_decoder_by_hand(cls, dimension):
    network, images = unet(cls, dimension), torch.rand(3, 1, *[16] * dimension)
    with torch.no_grad():
        plain = network(images)
        dropout = FeatureDropout(network)
        ones, masks = dropout.undisturbed(2), dropout.independent(1)
        with dropout.applied(ones, masks):
            found = network(images)
        expected = by_hand(network, images[2:], masks)
        after = network(images)
    for before, output, one, end in zip(plain, found, expected, after, strict=True):
        torch.testing.assert_close(output[:2], before[:2])
        torch.testing.assert_close(output[2:], one, rtol=1e-4, atol=1e-5)  # convolutions of batches of 3 and of 1
        assert not torch.allclose(output[2:], before[2:], atol=1e-3)
        assert torch.equal(before, end)


def test_independent_masks_are_0_or_2_half_of_the_time_at_every_stage():
    masks = FeatureDropout(unet()).independent(2000)
    assert [mask.shape for mask in masks] == [(2000, channels) for channels in CHANNELS]
    for mask in masks:
        assert set(mask.unique().tolist()) == {0.0, 2.0}
        assert abs(mask.mean().item() - 1) < 4 / mask.numel() ** 0.5  # 4 standard deviations
        assert mask.std(dim=0).min() > 0 and mask.std(dim=1).max() > 0


def test_probability_of_dropping_is_p():
    mask = FeatureDropout(unet()).independent(5000, p=0.2)[1]
    assert set(mask.unique().tolist()) == {0.0, 1.25}
    assert (mask == 0).float().mean().item() == pytest.approx(0.2, abs=4 * 0.4 / mask.numel() ** 0.5)


@pytest.mark.parametrize("count", [1, 2, 5, 400])
def test_complementary_masks_add_up_to_two_and_half_of_the_samples_keep_all(count):
    first, second = FeatureDropout(unet()).complementary(count)
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one + other, torch.full_like(one, 2))
        assert set(one.unique().tolist()) <= {0.0, 1.0, 2.0}
    undisturbed = torch.stack([(mask == 1).all(dim=1) for mask in first])
    assert (undisturbed == undisturbed[0]).all()  # the same samples at all stages
    assert undisturbed[0].sum() in (count // 2, (count + 1) // 2)
    assert not any((mask[~undisturbed[0]] == 1).any() for mask in first)


def test_a_single_sample_keeps_all_every_other_time():
    dropout = FeatureDropout(unet())
    kept = sum(bool((dropout.complementary(1)[0][0] == 1).all()) for _ in range(400))
    assert abs(kept - 200) < 4 * 400**0.5 / 2  # 4 standard deviations


def test_which_samples_keep_all_is_random():
    dropout = FeatureDropout(unet())
    kept = {tuple((dropout.complementary(6)[0][0] == 1).all(dim=1).tolist()) for _ in range(30)}
    assert len(kept) > 5


def test_dropped_channels_get_no_gradient_and_the_others_twice_the_gradient():
    network = unet()
    dropout = FeatureDropout(network)
    seen = []
    network.encoder.stages[0].register_forward_hook(lambda _, inputs, output: seen.append(output))
    network.decoder = nn.Identity()  # what it gets is what comes out
    masks = dropout.independent(2)
    with dropout.applied(masks):
        disturbed = network(torch.rand(2, 1, 16, 16))
    [gradient] = torch.autograd.grad(disturbed[0].sum(), seen)
    assert torch.equal(gradient, masks[0][:, :, None, None].expand_as(gradient))


def test_half_precision_stays_half_precision():
    network = unet()
    dropout = FeatureDropout(network)
    types = []
    network.decoder.register_forward_pre_hook(lambda _, inputs: types.extend(f.dtype for f in inputs[0]))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features = [feature.dtype for feature in network.encoder(torch.rand(1, 1, 16, 16))]
        with dropout.applied(dropout.independent(1)):
            network(torch.rand(1, 1, 16, 16))
    assert types == features


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_network_is_disturbed_by_every_new_mask(backend):
    network, images = unet(), torch.rand(2, 1, 16, 16)
    dropout = FeatureDropout(network)
    compiled = torch.compile(network, backend=backend)
    with torch.no_grad():
        compiled(images)
    for _ in range(3):
        masks = dropout.independent(2)
        with dropout.applied(masks):
            found = compiled(images)
        torch.testing.assert_close(found, by_hand(copy.deepcopy(network), images, masks), rtol=1e-4, atol=1e-5)
        found[0].sum().backward()
        torch.testing.assert_close(compiled(images), network(images), rtol=1e-4, atol=1e-5)


def test_new_masks_do_not_compile_anew():
    torch._dynamo.reset()  # what other tests compiled counts towards its limit
    network, images = unet(), torch.rand(2, 1, 16, 16)
    dropout = FeatureDropout(network)
    graphs = []
    compiled = torch.compile(network, backend=lambda graph, inputs: graphs.append(graph) or graph.forward)
    for _ in range(3):
        compiled(images)
        with dropout.applied(dropout.independent(2)):
            compiled(images)
    assert len(graphs) == 2  # disturbed and undisturbed


def test_a_copy_of_the_network_is_not_disturbed():
    network, images = unet(), torch.rand(2, 1, 16, 16)
    dropout = FeatureDropout(network)
    teacher = AveragedModel(network)
    expected = teacher(images)
    with dropout.applied(dropout.independent(2)):
        assert all(map(torch.equal, teacher(images), expected))


def test_weights_keep_their_names_and_an_error_in_a_pass_ends_the_disturbance():
    network = unet()
    names = list(network.state_dict())
    dropout = FeatureDropout(network)
    assert list(network.state_dict()) == names
    with pytest.raises(RuntimeError), dropout.applied(dropout.independent(3)):
        network(torch.rand(2, 1, 16, 16))
    assert dropout.masks is None


def test_a_network_without_skips_is_refused_in_one_sentence():
    primus = PrimusS(1, 2, (8, 8, 8), (32, 32, 32))
    with pytest.raises(WrongUse, match=r"^PrimusS has no encoder .*choose plans with a U-Net.*FixMatch") as refused:
        FeatureDropout(primus)
    assert "\n" not in str(refused.value) and ". " not in str(refused.value)
