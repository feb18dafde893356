"""Verbs of self-training: the rounds, and the steps of a round for those who want to do them one by one."""

from __future__ import annotations

import argparse
from argparse import ArgumentParser, Namespace
from pathlib import Path

from nnunet_semi.arguments import (
    add_checkpoint,
    add_configuration,
    add_dataset,
    add_device,
    add_plans,
    add_processes,
    add_trainer,
    at_least,
    fold,
)
from nnunet_semi.log import silent
from nnunet_semi.verbs.verb import Verb

ESTIMATORS = ("checkpoints", "networks", "entropy", "mirrors")  # those that one model of one fold has


def _lengths(text: str) -> tuple[int, ...]:
    """An argparse type: whole numbers above 0 with commas between them."""
    try:
        return tuple(at_least(1)(number) for number in text.split(","))
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"got {text!r}; expected whole numbers such as 1000,100") from None


def _selftrain_arguments(parser: ArgumentParser) -> None:
    add_dataset(parser)
    add_configuration(parser)
    parser.add_argument("-f", dest="fold", metavar="FOLD", type=fold, default=0, help="fold, or all; default: 0")
    parser.add_argument("--rounds", metavar="N", type=at_least(1), default=4, help="after the first training")
    parser.add_argument("--first", metavar="RULES", default="top:.5", help="which cases to trust before round 1")
    parser.add_argument(
        "--later",
        metavar="RULES",
        default="threshold:.9,complete",
        help="and before the others: some of top:N threshold:N max:N components:N complete, joined by commas",
    )
    add_trainer(parser, "nnUNetTrainerKeepCheckpoints")
    parser.add_argument(
        "--epochs",
        metavar="N,N",
        type=_lengths,
        help="of the first training and of each round; default: 1000,100, or what the trainer's name says",
    )
    parser.add_argument("--by", choices=ESTIMATORS, default="checkpoints", help="what `nnunet_semi score` goes by")
    parser.add_argument("--exclude", metavar="FILE", type=Path, help="no round uses the cases in this list, one a line")
    parser.add_argument("--include", metavar="FILE", type=Path, help="no round uses others than those in this list")
    parser.add_argument("--warm-start", action="store_true", help="begin each round with the weights of the last one")
    parser.add_argument("--stop-early", action="store_true", help="end when a round does not improve validation")
    parser.add_argument("--dry-run", action="store_true", help="print the commands that would run, and run none")
    parser.add_argument("-o", dest="output", metavar="FOLDER", type=Path, help="default: in nnUNet_results/DATASET")
    parser.add_argument(
        "--id", dest="number", metavar="N", type=at_least(1), help="of round 1's dataset; default: free"
    )
    add_plans(parser)
    add_checkpoint(parser, "that makes the pseudo labels")
    parser.add_argument("--skip-bad", action="store_true", help="go without unlabeled images that cannot be used")
    add_device(parser)


def _selftrain(args: Namespace) -> int:
    from nnunet_semi.selftraining.run import selftrain, show

    result = selftrain(
        args.dataset,
        args.configuration,
        args.fold,
        args.rounds,
        args.first,
        args.later,
        args.trainer,
        args.epochs,
        args.by,
        plans=args.plans,
        checkpoint=args.checkpoint,
        number=args.number,
        warm_start=args.warm_start,
        stop_early=args.stop_early,
        skip_bad=args.skip_bad,
        exclude=args.exclude,
        include=args.include,
        device=args.device,
        folder=args.output,
        dry_run=args.dry_run,
        report=silent if args.quiet and not args.dry_run else show,
    )
    if result is not None:
        print(result)
    return 0


def _branch_arguments(parser: ArgumentParser) -> None:
    add_dataset(parser)
    parser.add_argument("--id", dest="number", metavar="N", type=at_least(1), required=True, help="id of the new one")
    parser.add_argument("--name", help="name of the new one; default: that of the other with _branch at its end")
    add_plans(parser)


def _branch(args: Namespace) -> int:
    from nnunet_semi.selftraining.branch import branch

    print(branch(args.dataset, args.number, args.name, args.plans))
    return 0


def _images(args: Namespace) -> int:
    from nnunet_semi.selftraining.pseudo import pseudo_images

    print(pseudo_images(args.dataset))
    return 0


def _cases_arguments(parser: ArgumentParser) -> None:
    add_dataset(parser)
    add_configuration(parser)
    add_plans(parser)
    add_processes(parser)


def _cases(args: Namespace) -> int:
    from nnunet_semi.selftraining.pseudo import pseudo_cases

    chosen = (args.dataset, args.configuration, args.plans, args.processes)
    print(pseudo_cases(*chosen, progress=not args.quiet))
    return 0


VERBS = {
    "selftrain": Verb(
        "Makes rounds of training on labeled cases and on unlabeled ones with pseudo labels; goes on where it was.",
        "nnunet_semi selftrain -d 7 -c 2d -f 0 --rounds 4 --dry-run",
        _selftrain_arguments,
        _selftrain,
    ),
    "branch": Verb(
        "Makes a dataset that shares images, labels, plans and preprocessed cases with another one, by links.",
        "nnunet_semi branch -d 7 --id 107",
        _branch_arguments,
        _branch,
    ),
    "pseudo_images": Verb(
        "Makes imagesPs in a branch, links to the unlabeled images that were selected, as input of nnUNetv2_predict.",
        "nnunet_semi pseudo_images -d 107",
        add_dataset,
        _images,
    ),
    "pseudo_cases": Verb(
        "Makes training cases of imagesPs and labelsPs in a branch; no fold validates on them.",
        "nnunet_semi pseudo_cases -d 107 -c 2d",
        _cases_arguments,
        _cases,
    ),
}
