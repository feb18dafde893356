"""The demonstration: what unlabeled images are worth, on a small made dataset, by the real commands."""

from nnunet_semi.demo.run import DemoResult, demo

__all__ = ["DemoResult", "demo"]
