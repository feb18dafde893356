"""Verbs that make datasets and prepare them for training."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace

from nnunet_semi import conversion
from nnunet_semi.arguments import add_configuration, add_dataset, add_plans, add_processes, at_least
from nnunet_semi.log import log_of
from nnunet_semi.verbs.verb import Verb


def _preprocess_arguments(parser: ArgumentParser) -> None:
    add_dataset(parser, several=True)
    parser.add_argument(
        "-c", dest="configurations", metavar="CONFIG", nargs="+", help="default: those nnU-Net preprocessed"
    )
    add_plans(parser)
    add_processes(parser)
    parser.add_argument(
        "--skip-bad", action="store_true", help="train without the bad cases; otherwise training refuses"
    )


def _preprocess(args: Namespace) -> int:
    from nnunet_semi.unlabeled.preprocessing import BadCases, preprocess_unlabeled

    refused: list[str] = []
    for dataset in args.dataset:  # bad cases in one do not keep the others waiting
        try:
            chosen = (args.configurations, args.plans, args.processes, args.skip_bad)
            print(preprocess_unlabeled(dataset, *chosen, progress=not args.quiet, log=log_of(args.quiet)), flush=True)
        except BadCases as problem:
            print(problem.summary, flush=True)
            refused.append(str(problem))
    if refused:
        raise BadCases("\n".join(refused))
    return 0


def _narrow_arguments(parser: ArgumentParser) -> None:
    add_dataset(parser)
    add_configuration(parser, "the one to inherit from")
    parser.add_argument("--width", metavar="N", type=at_least(1), default=8, help="features of the first stage")
    add_plans(parser)
    parser.add_argument("--name", help="name of the new one; default: CONFIG_wN")


def _narrow(args: Namespace) -> int:
    from nnunet_semi.narrow import narrow

    name = narrow(args.dataset, args.configuration, args.width, args.plans, args.name)
    print(name)
    if not args.quiet:
        print(f"train it with: nnUNetv2_train {args.dataset} {name} FOLD -p {args.plans}", file=sys.stderr)
    return 0


def _whole_image_arguments(parser: ArgumentParser) -> None:
    add_dataset(parser)
    add_configuration(parser, "the one to inherit from")
    parser.add_argument(
        "--longest", metavar="N", type=at_least(32), help="voxels along the longest side; default: what memory allows"
    )
    add_plans(parser)
    parser.add_argument("--name", help="name of the new one; default: CONFIG_whole or CONFIG_wholeN")


def _whole_image(args: Namespace) -> int:
    from nnunet_semi.whole_image import add_whole_image_configuration

    made = add_whole_image_configuration(args.dataset, args.configuration, args.longest, args.plans, args.name)
    print(made.name)
    if not args.quiet:
        spacing = " x ".join(f"{s:.3g}" for s in made.spacing)
        print(f"patches of {made.patch_size} voxels of {spacing} mm hold the largest image", file=sys.stderr)
        print(f"next: nnUNetv2_preprocess -d {args.dataset} -c {made.name} -plans_name {args.plans}", file=sys.stderr)
    return 0


VERBS = {
    "convert": Verb(
        "Makes a dataset in nnUNet_raw from the files of a challenge, or from a folder of images and masks.",
        "nnunet_semi convert fugc2025 FUGC2025 --id 25",
        conversion.add_convert_arguments,
        conversion.run_convert,
    ),
    "restore": Verb(
        "Makes predictions on the grid of the original images from those for a converted dataset.",
        "nnunet_semi restore predictions -d 22 -o submission",
        conversion.add_restore_arguments,
        conversion.run_restore,
    ),
    "preprocess": Verb(
        "Makes preprocessed cases of the images in imagesUn, with the plans of the labeled cases.",
        "nnunet_semi preprocess -d 7 -c 2d",
        _preprocess_arguments,
        _preprocess,
    ),
    "narrow": Verb(
        "Adds a configuration with a narrower network to the plans, for training on a CPU.",
        "nnunet_semi narrow -d 7 -c 2d --width 8",
        _narrow_arguments,
        _narrow,
    ),
    "whole_image": Verb(
        "Adds a configuration whose patch holds the whole image to the plans, for landmarks.",
        "nnunet_semi whole_image -d 7 -c 2d --longest 512",
        _whole_image_arguments,
        _whole_image,
    ),
}
