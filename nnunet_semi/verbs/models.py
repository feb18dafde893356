"""Verbs that use trained models."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path

from nnunet_semi.arguments import add_checkpoint, add_device, add_model, add_output, probability
from nnunet_semi.verbs.verb import Verb


def _export_arguments(parser: ArgumentParser) -> None:
    add_model(parser, "nnUNetTrainerCPS")
    add_checkpoint(parser)
    parser.add_argument("-o", dest="output", metavar="ZIP", type=Path, required=True, help="the file to write")
    parser.add_argument("--overwrite", action="store_true", help="replace ZIP if it is there")


def _export(args: Namespace) -> int:
    from nnunet_semi.export import export
    from nnunet_semi.filtering.model import quiet
    from nnunet_semi.stock import find_trainer_class

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
    with quiet():
        finds_landmarks = hasattr(find_trainer_class(args.trainer), "map_loss")
    if finds_landmarks:
        print(
            "note: without nnunet_semi the model draws a blob at each landmark; for points and their uncertainty, "
            "export with nnUNetv2_export_model_to_zip and install nnunet_semi there, too",
            file=sys.stderr,
        )
    return 0


def _predict_landmarks_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("-i", dest="source", metavar="IN", type=Path, required=True, help="folder of images")
    add_output(parser, "OUT", "the folder to write into", required=True)
    add_model(parser, "nnUNetTrainerHeatmap", "folds, several as an ensemble")
    add_checkpoint(parser)
    add_device(parser)
    parser.add_argument(
        "--disable_tta", action="store_true", help="no mirrored images, where left and right are paired"
    )
    parser.add_argument(
        "--threshold",
        metavar="P",
        type=probability,
        help="presence below which a landmark is written as missing; default: .5, or 0 if no validation case lacks one",
    )
    parser.add_argument(
        "--continue_prediction", action="store_true", help="leave out cases whose file is there and whole"
    )
    parser.add_argument(
        "--challenge", choices=["cl-detection2023"], help="IN is its stack, OUT gets orthodontic-landmarks.json"
    )


def _predict_landmarks(args: Namespace) -> int:
    from nnunet_semi.landmarks.predicting import predict_landmarks

    written, uncalibrated = predict_landmarks(
        args.source,
        args.output,
        args.dataset,
        args.configuration,
        tuple(args.folds),
        trainer=args.trainer,
        plans=args.plans,
        checkpoint=args.checkpoint,
        device=args.device,
        mirroring=not args.disable_tta,
        threshold=args.threshold,
        challenge=args.challenge,
        overwrite=args.overwrite,
        resume=args.continue_prediction,
        progress=not args.quiet,
    )
    print(written)
    if uncalibrated and not args.quiet:
        print(f"note: uncertainties are not calibrated: {uncalibrated}", file=sys.stderr)
    return 0


VERBS = {
    "export": Verb(
        "Makes a zip file of a trained model that plain nnU-Net installs and predicts with.",
        "nnunet_semi export -d 7 -c 2d -tr nnUNetTrainerCPS -f 0 -o model.zip",
        _export_arguments,
        _export,
    ),
    "predict_landmarks": Verb(
        "Makes sub-pixel landmarks of images, with a probability and an uncertainty in mm each, as JSON and CSV.",
        "nnunet_semi predict_landmarks -i imagesTs -o landmarks -d 23 -c 2d -f 0 1 2 3 4",
        _predict_landmarks_arguments,
        _predict_landmarks,
    ),
}
