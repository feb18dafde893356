"""Verbs that take predictions."""

from __future__ import annotations

import argparse
from argparse import ArgumentParser, Namespace
from pathlib import Path

from nnunet_semi.arguments import add_output, add_processes
from nnunet_semi.evaluation import command as evaluate
from nnunet_semi.log import log_of
from nnunet_semi.verbs.verb import Verb


def _ensemble_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "predictions", metavar="PRED", nargs="+", type=Path, help="folders of label maps of the same names, two or more"
    )
    add_output(parser, "OUT", "the folder to write into", required=True)
    parser.add_argument(
        "--binary",
        action=argparse.BooleanOptionalAction,
        help="masks are what is above 0, written as 0 and 255; default: if most of that is white or coloured",
    )
    add_processes(parser)


def _ensemble(args: Namespace) -> int:
    from nnunet_semi.voting import ensemble

    print(
        ensemble(
            args.predictions,
            args.output,
            binary=args.binary,
            overwrite=args.overwrite,
            num_processes=args.processes,
            progress=not args.quiet,
            log=log_of(args.quiet),
        )
    )
    return 0


def _report_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "results",
        metavar="RESULT_FOLDER",
        nargs="+",
        type=Path,
        help="fold folder of nnUNet_results, a trainer's folder with folds, or an output of evaluate -o",
    )
    add_output(parser, "FILE.html", "the file to write", required=True)


def _report(args: Namespace) -> int:
    from nnunet_semi.report.page import report

    print(report(args.results, args.output, overwrite=args.overwrite))
    return 0


VERBS = {
    "evaluate": Verb(
        "Prints how well predictions match references, per class, with a confidence interval; -o writes summary.json.",
        "nnunet_semi evaluate labelsTs predictions --metrics dice,nsd,hd95 -o scores",
        evaluate.add_arguments,
        evaluate.run,
    ),
    "ensemble": Verb(
        "Makes the majority vote of several folders of label maps; where labels tie, that of the first of them wins.",
        "nnunet_semi ensemble predictions_1 predictions_2 predictions_3 -o voted",
        _ensemble_arguments,
        _ensemble,
    ),
    "report": Verb(
        "Makes one HTML file about results: what was trained on what, curves, scores, and pictures of cases.",
        "nnunet_semi report nnUNet_results/Dataset007_Heart/nnUNetTrainerCPS__nnUNetPlans__2d/fold_0 -o report.html",
        _report_arguments,
        _report,
    ),
}
