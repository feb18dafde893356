"""Verbs that say which unlabeled cases to trust."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

from nnunet_semi.arguments import (
    add_dataset,
    add_device,
    add_model,
    add_output,
    add_plans,
    add_processes,
    at_least,
    probability,
)
from nnunet_semi.log import log_of
from nnunet_semi.verbs.verb import Verb

ESTIMATORS = ("checkpoints", "networks", "entropy", "folds", "mirrors")


def _score_arguments(parser: ArgumentParser) -> None:
    add_model(parser, "nnUNetTrainerCPS")
    parser.add_argument(
        "--by",
        choices=ESTIMATORS,
        required=True,
        help="agreement of kept checkpoints with the final one, of the two CPS networks, of folds, or of mirrored "
        "predictions; or 1 - mean entropy over the predicted foreground",
    )
    add_output(parser, "TABLE.csv", "the table; default: in the folder of the model")
    parser.add_argument("-num_parts", metavar="N", type=at_least(1), help="split the cases; default: as torchrun says")
    parser.add_argument("-part_id", metavar="I", type=at_least(0), help="which part this is, from 0")
    add_processes(parser)
    add_device(parser)
    parser.add_argument("--disable_tta", action="store_true", help="predict without mirroring: faster, less exact")


def _score(args: Namespace) -> int:
    from nnunet_semi.filtering.score import score_unlabeled

    print(
        score_unlabeled(
            args.dataset,
            args.configuration,
            args.by,
            args.trainer,
            args.plans,
            args.folds,
            args.output,
            num_parts=args.num_parts,
            part_id=args.part_id,
            num_processes=args.processes,
            device=args.device,
            mirroring=not args.disable_tta,
            overwrite=args.overwrite,
            progress=not args.quiet,
            log=log_of(args.quiet),
        )
    )
    return 0


def _select_arguments(parser: ArgumentParser) -> None:
    add_dataset(parser)
    _add_table(parser)
    parser.add_argument("--top", metavar="SHARE", type=probability, help="the best share of all cases, such as .5")
    parser.add_argument("--threshold", metavar="SCORE", type=probability, help="scores above this one, such as .9")
    parser.add_argument("--complete", action="store_true", help="cases in which every class is predicted")
    parser.add_argument("--max", metavar="N", type=at_least(1), help="the N best of those that pass all other rules")
    parser.add_argument(
        "--components", metavar="N", type=at_least(1), help="cases with at most N connected components in every class"
    )
    parser.add_argument("--exclude", metavar="FILE", type=Path, help="not the cases in this list, one a line")
    parser.add_argument("--include", metavar="FILE", type=Path, help="no cases but those in this list")
    parser.add_argument("--overwrite", action="store_true", help="replace another selection")
    add_plans(parser)


def _add_table(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--table",
        metavar="CSV",
        type=Path,
        help="of `nnunet_semi score`; default: the newest of the dataset, if any",
    )


def _select(args: Namespace) -> int:
    from nnunet_semi.filtering.rules import Rules
    from nnunet_semi.filtering.select import select_unlabeled

    names = ("top", "threshold", "complete", "components", "exclude", "include", "max")
    rules = Rules(**{name: getattr(args, name) for name in names})
    print(select_unlabeled(args.dataset, rules, args.table, args.overwrite, args.plans, log_of(args.quiet)))
    return 0


def _screen_arguments(parser: ArgumentParser) -> None:
    add_dataset(parser)
    _add_table(parser)
    add_output(parser, "FILE.html", "the page; default: DATASET_screen.html here")
    add_plans(parser)
    add_processes(parser)


def _screen(args: Namespace) -> int:
    from nnunet_semi.filtering.screen import screen_unlabeled

    print(
        screen_unlabeled(
            args.dataset,
            args.table,
            args.output,
            args.processes,
            overwrite=args.overwrite,
            progress=not args.quiet,
            plans=args.plans,
            log=log_of(args.quiet),
        )
    )
    return 0


VERBS = {
    "score": Verb(
        "Makes a table that says of every unlabeled case how far a model's prediction of it can be trusted, 0 to 1.",
        "nnunet_semi score -d 7 -c 2d -tr nnUNetTrainerKeepCheckpoints -f 0 --by checkpoints",
        _score_arguments,
        _score,
    ),
    "select": Verb(
        "Makes unlabeled_final.json, the unlabeled cases on which all semi-supervised trainers train, and its picture.",
        "nnunet_semi select -d 7 --threshold .9 --complete --max 1000",
        _select_arguments,
        _select,
    ),
    "screen": Verb(
        "Makes a page of thumbnails on which a person ticks unlabeled cases, for select --exclude or --include.",
        "nnunet_semi screen -d 7 -o screen.html",
        _screen_arguments,
        _screen,
    ),
}
