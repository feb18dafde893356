"""`nnunet_semi convert` and `restore`: from arguments to the converter that the registry names."""

from __future__ import annotations

import inspect
import sys
from argparse import ArgumentParser, Namespace
from importlib import import_module
from pathlib import Path
from typing import Any

from nnunet_semi.arguments import add_output, add_processes, at_least
from nnunet_semi.errors import WrongUse
from nnunet_semi.log import log_of
from nnunet_semi.raw import dataset_id
from nnunet_semi.registry import DATASETS

ROOM = "nnunet_semi.dataset_conversion"
WRITING = ("link", "overwrite", "dry_run", "verify", "num_processes", "progress", "log")


def convert(challenge: str, source: str | Path, number: int | None = None, name: str = "", **options: Any) -> Any:
    """Makes a dataset in nnUNet_raw from the files of a challenge, or from a folder of your own.

    Args:
        challenge: a name in `registry.DATASETS`.
        source: the folder with the files.
        number: its id; None stands for that of a dataset with this name, or else the first free one.
        name: of the dataset after its id; "" stands for the converter's own.
        options: those of `dataset_conversion.writing.Writing`, and of the converter.

    Returns:
        A `dataset_conversion.writing.Conversion`.

    Raises:
        WrongUse: no such converter, or it has no such option.
        UserError: see the converter.
    """
    if challenge not in DATASETS:
        raise WrongUse(f"got {challenge!r}; expected one of {', '.join(DATASETS)}")
    run = import_module(DATASETS[challenge][0]).convert
    how = {option: options.pop(option) for option in WRITING if option in options}
    foreign = [option for option in options if option not in inspect.signature(run).parameters]
    if foreign:
        raise WrongUse(f"{challenge} has no option --{foreign[0].replace('_', '-')}; leave it out")
    named = {"name": name} if name else {}
    return run(source, number, **named, **options, writing=import_module(f"{ROOM}.writing").Writing(**how))


def add_convert_arguments(parser: ArgumentParser) -> None:
    """The arguments of `convert`."""
    parser.add_argument("challenge", metavar="CHALLENGE", choices=list(DATASETS), help=f"one of {', '.join(DATASETS)}")
    parser.add_argument("source", metavar="SOURCE", type=Path, help="the folder with the files")
    parser.add_argument("--id", dest="number", metavar="N", type=at_least(1), help="default: the first free one")
    parser.add_argument("--name", default="", help="name of the dataset; default: that of the challenge")
    parser.add_argument("--link", action="store_true", help="links instead of copies where no byte changes")
    parser.add_argument("--overwrite", action="store_true", help="replace a dataset of this name")
    parser.add_argument("--dry-run", action="store_true", help="print source → target and write nothing")
    parser.add_argument("--no-verify", action="store_true", help="leave out nnU-Net's integrity check at the end")
    flare = parser.add_argument_group("flare22 only")
    flare.add_argument("--crop-body", action="store_true", help="cut away the air around the body")
    own = parser.add_argument_group("folder only", "Folders are relative to SOURCE.")
    own.add_argument("--images", metavar="DIR", help="labeled images; default: images")
    own.add_argument("--labels", metavar="DIR", help="masks, or LabelMe's JSON; default: labels, masks, or images")
    own.add_argument(
        "--unlabeled", metavar="DIR", help="default: unlabeled; the folder of the images if those without labels are it"
    )
    own.add_argument("--test", metavar="DIR", help="test images; default: test")
    own.add_argument("--classes", metavar="NAME", nargs="+", help="without the background, by ascending value")
    own.add_argument("--channels", metavar="NAME", nargs="+", help="such as CT, which tells nnU-Net how to normalise")
    own.add_argument("--ignore", metavar="VALUE", type=int, help="value of pixels in masks that nobody has labeled")
    add_processes(parser)


def run_convert(args: Namespace) -> int:
    """Calls `convert` with what was typed, and prints what it made."""
    own = ("crop_body", "images", "labels", "unlabeled", "test", "classes", "channels", "ignore")
    typed = {option: getattr(args, option) for option in own}
    result = convert(
        args.challenge,
        args.source,
        args.number,
        args.name,
        link=args.link,
        overwrite=args.overwrite,
        dry_run=args.dry_run,
        verify=not args.no_verify,
        num_processes=args.processes,
        progress=not args.quiet,
        log=log_of(args.quiet),
        **{option: value for option, value in typed.items() if value is not None and value is not False},
    )
    print(result)
    if result.counts["labeled"] and not (args.dry_run or args.quiet):
        print(f"next: nnUNetv2_plan_and_preprocess -d {dataset_id(result.folder.name)}", file=sys.stderr)
    return 0


def add_restore_arguments(parser: ArgumentParser) -> None:
    """The arguments of `restore`."""
    parser.add_argument("predictions", metavar="PRED_FOLDER", type=Path, help="what nnUNetv2_predict wrote")
    parser.add_argument("-d", dest="dataset", metavar="ID", required=True, help="dataset id or name")
    add_output(parser, "FOLDER", "where the results go", required=True)
    add_processes(parser)


def run_restore(args: Namespace) -> int:
    """Calls `restore` with what was typed, and prints what it made."""
    result = import_module(f"{ROOM}.restore").restore(
        args.predictions,
        args.dataset,
        args.output,
        overwrite=args.overwrite,
        num_processes=args.processes,
        progress=not args.quiet,
        log=log_of(args.quiet),
    )
    print(result)
    return 0
