"""Verbs that use trained models."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

from nnunet_semi.arguments import add_dataset, add_plans, fold
from nnunet_semi.verbs.verb import Verb


def _export_arguments(parser: ArgumentParser) -> None:
    add_dataset(parser)
    parser.add_argument("-c", dest="configuration", metavar="CONFIG", required=True, help="configuration")
    parser.add_argument("-tr", dest="trainer", metavar="TRAINER", default="nnUNetTrainerCPS", help="trainer class name")
    add_plans(parser)
    parser.add_argument(
        "-f", dest="folds", metavar="FOLD", nargs="+", type=fold, default=[0], help="folds, or all; default: 0"
    )
    parser.add_argument(
        "-chk", dest="checkpoint", metavar="NAME", default="checkpoint_final.pth", help="checkpoint file"
    )
    parser.add_argument("-o", dest="output", metavar="ZIP", type=Path, required=True, help="the file to write")
    parser.add_argument("--overwrite", action="store_true", help="replace ZIP if it is there")


def _export(args: Namespace) -> int:
    from nnunet_semi.export import export

    written = export(
        args.dataset,
        args.configuration,
        args.output,
        trainer=args.trainer,
        plans=args.plans,
        folds=tuple(args.folds),
        checkpoint=args.checkpoint,
        overwrite=args.overwrite,
    )
    print(written)
    return 0


VERBS = {
    "export": Verb(
        "Makes a zip file of a trained model that plain nnU-Net installs and predicts with.",
        "nnunet_semi export -d 7 -c 2d -tr nnUNetTrainerCPS -f 0 -o model.zip",
        _export_arguments,
        _export,
    ),
}
