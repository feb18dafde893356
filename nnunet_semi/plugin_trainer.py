"""What every trainer of this project, and every trainer asked for by a name such as X_100epochs_seed3, does more.

Length and seed by class attribute, random numbers that survive a restart, checkpoints that appear whole or not at
all, threads and workers that share the cores, and a sign of life after the first iterations.
"""

from __future__ import annotations

import io
import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from os.path import basename, isfile, join
from time import time
from typing import Any

import torch
from batchgenerators.dataloading.nondet_multi_threaded_augmenter import NonDetMultiThreadedAugmenter
from batchgenerators.dataloading.single_threaded_augmenter import SingleThreadedAugmenter
from batchgenerators.utilities.file_and_folder_operations import load_json
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA
from torch import distributed as dist
from torch import nn
from torch._dynamo import OptimizedModule
from torch.nn.parallel import DistributedDataParallel

from nnunet_semi import __version__
from nnunet_semi.compilation import compile_problem
from nnunet_semi.cores import usable_cores
from nnunet_semi.errors import UserError
from nnunet_semi.kept_checkpoints import for_prediction, kept_after
from nnunet_semi.pipelines import transforms_in
from nnunet_semi.randomness import NumberedBatches, derive_seed, seed_everything
from nnunet_semi.storage import atomic_path, remove_unfinished
from nnunet_semi.versions import version_of

CHECKPOINT_KEY = "nnunet_semi"
GRAPHS = 32  # of one compiled function, at least
INITIALISATION, EPOCH, TRAINING, VALIDATION = range(4)


def unwrap(network: nn.Module) -> nn.Module:
    """The bare network below DistributedDataParallel and torch.compile, whose parameter names nnU-Net knows."""
    if isinstance(network, DistributedDataParallel):
        network = network.module
    return network._orig_mod if isinstance(network, OptimizedModule) else network


def share_cores(device: torch.device) -> tuple[int, int]:
    """Torch threads and augmentation workers that together need no more than the cores of this machine.

    On a GPU the network needs one thread and nnU-Net's own number of workers stays. On the CPU the network is the
    bottleneck: one worker for every four cores, unless nnUNet_n_proc_DA says otherwise, and the rest are threads.
    """
    cores = usable_cores()
    workers = get_allowed_n_proc_DA()
    if device.type != "cpu":
        return torch.get_num_threads(), workers
    if "nnUNet_n_proc_DA" not in os.environ:
        workers = max(1, cores // 4)
    return max(1, cores - workers), workers


@contextmanager
def environment_variable(name: str, value: str) -> Iterator[None]:
    """Set an environment variable for a while."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def apply_class_attributes(trainer: nnUNetTrainer) -> None:
    """Let class attributes win over the defaults that nnUNetTrainer.__init__ writes into the instance."""
    for name in list(vars(trainer)):
        if hasattr(type(trainer), name):
            setattr(trainer, name, getattr(type(trainer), name))


class PluginTrainer(nnUNetTrainer):
    """nnUNetTrainer with hyperparameters as class attributes and training that continues bit for bit.

    Attributes:
        seed: seeds every random source; None draws one, which the checkpoint keeps.
        keep_checkpoints: fractions of training after which the network is kept, as checkpoint_036.pth for .36, for
            `nnunet_semi score`; () keeps none. The files may be deleted at any time.
        allow_mirroring: along the axes that nnU-Net chooses, in training and in prediction.
        versions: of this package and nnU-Net; nnU-Net writes them into debug.json with everything else.
    """

    seed: int | None = None
    keep_checkpoints: Sequence[float] = (0.36, 0.66)
    allow_mirroring: bool = True
    versions: str = f"nnunet_semi {__version__}, nnunetv2 {version_of('nnunetv2')}"

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008  (nnU-Net's own signature)
    ) -> None:
        super().__init__(plans, configuration, fold, dataset_json, device)
        apply_class_attributes(self)
        if self.seed is None:
            self.seed = self._drawn_seed()
        self._kept()  # says now what is wrong with keep_checkpoints
        self.logger.local_logger = self.curve_logger()
        self.iteration = 0  # of the current epoch

    def curve_logger(self) -> Any:
        """The logger that holds and draws the curves: nnU-Net's. A hook for trainers with further ones."""
        return self.logger.local_logger

    # --- random numbers ---

    def _drawn_seed(self) -> int:
        """A seed that all processes share, since a checkpoint holds one."""
        seeds = [secrets.randbits(32)]
        if self.is_ddp:
            dist.broadcast_object_list(seeds, src=0)
        return seeds[0]

    def _derived_seed(self, *where: int) -> int:
        assert self.seed is not None
        return derive_seed(self.seed, self.local_rank, *where)

    def initialize(self) -> None:
        """Build networks, optimizers and losses from the seed."""
        seed_everything(self._derived_seed(INITIALISATION))
        super().initialize()

    def _do_i_compile(self) -> bool:
        """Whether nnU-Net would compile, and it works on this machine; a line in the log says so where it does not."""
        if not super()._do_i_compile():
            return False
        problem = compile_problem(self.device)
        if problem and not self._told_not_compiled:
            self._told_not_compiled = True
            self.print_to_log_file(
                f"torch.compile does not work here ({problem}); training goes on without it, only slower; "
                "`nnunet_semi doctor` says what is missing, `export nnUNet_compile=f` silences this line"
            )
        # A few batch sizes take turns. From the second one on torch would make graphs for any size, which its compiler
        # optimises less: convolutions keep their slow memory layout. nnU-Net's loss then needs a graph for each
        # resolution of deep supervision, with gradient and without, which can be more than the 8 that torch allows.
        torch._dynamo.config.automatic_dynamic_shapes = False
        torch._dynamo.config.cache_size_limit = max(GRAPHS, torch._dynamo.config.cache_size_limit)
        return problem is None

    _told_not_compiled = False

    def on_train_start(self) -> None:
        """Start as nnU-Net does, without the halves of checkpoints and curves that a killed training left behind."""
        if self.local_rank == 0:
            remove_unfinished(self.output_folder, "checkpoint_*.pth", "progress*")
        super().on_train_start()

    def on_train_epoch_start(self) -> None:
        """Start the epoch from its own seed."""
        super().on_train_epoch_start()
        seed_everything(self._derived_seed(EPOCH, self.current_epoch))
        self.iteration = 0
        self._epoch_started = time()

    def train_step(self, batch: dict) -> dict:
        """One training step of the trainer below, counted."""
        outputs = super().train_step(batch)
        self.count_iteration()
        return outputs

    def count_iteration(self) -> None:
        """Advance the iteration, and tell the pace while a user may still think that epoch 0 hangs."""
        self.iteration += 1
        if self.iteration not in (1, 11) or self._pace_told >= self.iteration:
            return
        self._pace_told = self.iteration
        seconds = time() - self._epoch_started
        if self.iteration == 1:
            self.print_to_log_file(f"first iteration {seconds:.1f} s")
            self._first_iteration = seconds
            return
        pace = (seconds - self._first_iteration) / 10
        minutes = pace * self.num_iterations_per_epoch / 60
        self.print_to_log_file(f"{pace:.2f} s per iteration, an epoch takes about {minutes:.1f} min")

    _pace_told = 0

    @property
    def training_progress(self) -> float:
        """The fraction of training done, in [0, 1)."""
        done = self.current_epoch * self.num_iterations_per_epoch + self.iteration
        return done / (self.num_epochs * self.num_iterations_per_epoch)

    # --- data ---

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self) -> tuple:
        """nnU-Net's choice, without mirroring where the trainer does not allow it."""
        *others, axes = super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        if self.allow_mirroring:
            return (*others, axes)
        self.inference_allowed_mirroring_axes = None
        return (*others, None)

    def get_dataloaders(self) -> tuple[Any, Any]:
        """nnU-Net's loaders, in seeded workers that leave the network its cores."""
        with environment_variable("nnUNet_n_proc_DA", "0"):
            augmenters = super().get_dataloaders()
        if not all(isinstance(augmenter, SingleThreadedAugmenter) for augmenter in augmenters):
            return augmenters  # a trainer with loading of its own
        training, validation = (augmenter.data_loader for augmenter in augmenters)
        threads, workers = share_cores(self.device)
        if self.device.type == "cpu":
            torch.set_num_threads(threads)
            self.print_to_log_file(f"{threads} torch threads, {workers} augmentation workers")
        training = self.training_stream(training)
        first = self.current_epoch
        return (
            self._augmenter(training, TRAINING, first * self.num_iterations_per_epoch, workers),
            self._augmenter(validation, VALIDATION, first * self.num_val_iterations_per_epoch, (workers + 1) // 2),
        )

    def training_stream(self, labeled: Any) -> Any:
        """The iterator of training batches; `labeled` is nnU-Net's loader. A hook."""
        return labeled

    def _augmenter(self, loader: Any, stream: int, first: int, workers: int) -> Any:
        for transform in transforms_in(loader):
            if isinstance(transform, GaussianBlurTransform):
                transform.benchmark = False  # it chooses by a stopwatch between two convolutions that round differently
        batches = NumberedBatches(loader, self._derived_seed(stream), first)
        if workers == 0:
            return SingleThreadedAugmenter(batches, None)
        augmenter = NonDetMultiThreadedAugmenter(
            batches,
            None,
            num_processes=workers,
            num_cached=max(6, workers // 2) if stream == TRAINING else max(3, workers // 2),
            pin_memory=self.device.type == "cuda",
            wait_time=0.002,
        )
        next(augmenter)  # as nnU-Net does: workers start now, and their errors show now
        return augmenter

    def do_split(self) -> tuple[list[str], list[str]]:
        """nnU-Net's split, with a warning where a fold was asked for that the split file does not have.

        Raises:
            UserError: there are too few cases for folds, and no split file.
        """
        splits_file = join(self.preprocessed_dataset_folder_base, "splits_final.json")
        if self.fold != "all" and not isfile(splits_file):
            cases = infer_dataset_class(self.preprocessed_dataset_folder).get_identifiers(
                self.preprocessed_dataset_folder
            )
            if len(cases) < 5:
                raise UserError(
                    f"fold {self.fold} of {len(cases)} labeled case(s) cannot be made, since nnU-Net splits five and "
                    f"more; train on fold all, or write your own folds into {splits_file}: "
                    '[{"train": ["case_1"], "val": ["case_2"]}]'
                )
        keys = super().do_split()
        if self.fold != "all" and isfile(splits_file) and self.fold >= len(load_json(splits_file)):
            self.print_to_log_file(
                f"\n!!! WARNING: fold {self.fold} is not one of the {len(load_json(splits_file))} folds (from 0) in "
                f"{splits_file}; nnU-Net trains on a random 80:20 split instead. Stop and choose another fold if this "
                "is not what you want. !!!\n"
            )
        return keys

    def plot_network_architecture(self) -> None:
        """Nothing: nnU-Net's picture needs a package that no longer works, and can hang."""

    # --- checkpoints ---

    def extra_state(self) -> dict[str, Any]:
        """What the checkpoint holds beside nnU-Net's own keys. A hook: extend the dictionary."""
        return {"seed": self.seed}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Restore what `extra_state` returned; `state` is empty for a checkpoint of stock nnU-Net. A hook."""
        self.seed = state.get("seed", self.seed)

    def save_checkpoint(self, filename: str) -> None:
        """Write nnU-Net's checkpoint and the extra state into one file, which replaces an older one at once."""
        buffer = io.BytesIO()
        super().save_checkpoint(buffer)
        if buffer.tell() == 0:  # not rank 0, or checkpoints are disabled
            return
        buffer.seek(0)
        checkpoint = torch.load(buffer, map_location="cpu", weights_only=False)
        checkpoint[CHECKPOINT_KEY] = self.extra_state()
        if basename(filename) in self._kept():
            checkpoint = {**for_prediction(checkpoint), CHECKPOINT_KEY: {"seed": self.seed}}
        with atomic_path(filename) as temporary:
            torch.save(checkpoint, temporary)

    def _kept(self) -> dict[str, int]:
        """Names of the checkpoints that stay, with the number of epochs after which each is written."""
        return kept_after(self.keep_checkpoints, self.num_epochs)

    def on_epoch_end(self) -> None:
        """Keep the network where a fraction of training is reached, before nnU-Net writes where to go on from."""
        for name, num_epochs in self._kept().items():
            if self.current_epoch + 1 == num_epochs:
                self.save_checkpoint(join(self.output_folder, name))
        super().on_epoch_end()

    def load_checkpoint(self, filename_or_checkpoint: str) -> None:
        """Restore everything and say so in one line of the log."""
        super().load_checkpoint(filename_or_checkpoint)
        checkpoint = torch.load(filename_or_checkpoint, map_location="cpu", weights_only=False)
        self.load_extra_state(checkpoint.get(CHECKPOINT_KEY, {}))
        # nnU-Net loads onto the device, where Adam would ask for its step counters at every step
        self.optimizer.load_state_dict(checkpoint["optimizer_state"])
        # nnU-Net writes checkpoint_latest before it notes that its epoch was the best one so far
        self._best_ema = max(self.logger.get_value("ema_fg_dice", step=None), default=None)
        self.print_to_log_file(f"restored {filename_or_checkpoint}: epoch {self.current_epoch}, seed {self.seed}")
