"""Times what a strong view costs: milliseconds per batch for each perturbation, beside the forward of a small U-Net.

Example:
    python benchmarks/perturbation.py --device cpu
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import fields, replace
from functools import partial

import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from torch import Tensor, nn

from nnunet_semi.perturbation.cutmix import draw_cutmix
from nnunet_semi.perturbation.intensity import IntensityPerturbation

CPU_SHAPES = [(8, 1, 256, 256), (2, 1, 64, 128, 128)]
GPU_SHAPES = [(8, 1, 256, 256), (2, 1, 128, 128, 128)]
ONE_BY_ONE = {
    "noise": ("noise_p",),
    "blur": ("blur_p", "blur_p_channel"),
    "brightness": ("brightness_p",),
    "contrast": ("contrast_p",),
    "low resolution": ("low_resolution_p", "low_resolution_p_channel"),
    "gamma": ("gamma_p",),
}


def only(*probabilities: str) -> IntensityPerturbation:
    """A perturbation in which the named probabilities are 1 and all others 0: the cost where every sample is chosen."""
    names = [field.name for field in fields(IntensityPerturbation) if "_p" in field.name]
    return replace(IntensityPerturbation.strong(), **{name: float(name in probabilities) for name in names})  # type: ignore[arg-type]


def small_unet(dim: int, width: int) -> nn.Module:
    """Four stages from `width` features up: narrow, as one trains on a CPU, or as wide as nnU-Net's own (32)."""
    convolution, norm = (nn.Conv2d, nn.InstanceNorm2d) if dim == 2 else (nn.Conv3d, nn.InstanceNorm3d)
    features, strides = [width * 2**stage for stage in range(4)], [1, 2, 2, 2]
    return PlainConvUNet(1, 4, features, convolution, 3, strides, 2, 2, 2, conv_bias=True, norm_op=norm, nonlin=nn.ReLU)


def milliseconds(work: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Median over single runs after two that warm up; on the CPU the time of this process, whatever else runs there."""
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    times = []
    for _ in range(repeats + 2):
        start = clock()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(1000 * (clock() - start))
    return sorted(times[2:])[repeats // 2]


def measure(images: Tensor, width: int, repeats: int) -> dict[str, float]:
    """Milliseconds by name."""
    device = images.device
    nnunet, strong = IntensityPerturbation.nnunet(), IntensityPerturbation.strong()
    work: dict[str, Callable[[], object]] = {
        f"{name}, every sample": partial(only(*names), images) for name, names in ONE_BY_ONE.items()
    }
    work["CutMix (image, label, confidence)"] = lambda: list(map(draw_cutmix(images), [images] * 3))
    work["nnunet() view"] = partial(nnunet, images)
    work["strong() view"] = partial(strong, images)
    network = small_unet(images.ndim - 2, width).to(device)
    work[f"U-Net of width {width}, forward"] = lambda: network(images)
    work[f"U-Net of width {width}, forward and backward"] = lambda: network(images).sum().backward()
    return {name: milliseconds(run, device, repeats) for name, run in work.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeats", type=int, default=9, help="runs of which the median is shown (default: 9)")
    parser.add_argument("--width", type=int, help="features of the first stage (default: 8 on the CPU, else 32)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # so that the time of the process is the time it takes
    device = torch.device(arguments.device)
    on_cpu = device.type == "cpu"
    for shape in CPU_SHAPES if on_cpu else GPU_SHAPES:
        torch.manual_seed(0)
        print(f"\n{shape} on {device}, torch {torch.__version__}, one CPU thread")
        images = torch.randn(shape, device=device)
        for name, cost in measure(images, arguments.width or (8 if on_cpu else 32), arguments.repeats).items():
            print(f"{name:44s}{cost:9.1f} ms")


if __name__ == "__main__":
    main()
