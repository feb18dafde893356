"""The flags of `nnunet_semi evaluate`, and the call behind it; imports what it needs only when run."""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from nnunet_semi.arguments import above_zero, add_json, add_output, add_processes, at_least, some_of
from nnunet_semi.errors import WrongUse
from nnunet_semi.evaluation import CHALLENGE_NAMES, METRICS

if TYPE_CHECKING:
    from nnunet_semi.evaluation.comparison import Comparison
    from nnunet_semi.evaluation.landmarks import LandmarkEvaluation
    from nnunet_semi.evaluation.result import Evaluation


def label(text: str) -> int | tuple[int, ...]:
    """An argparse type: a label such as 2, or a region such as 1,2."""
    numbers = tuple(at_least(1)(number) for number in text.split(","))
    return numbers if len(numbers) > 1 else numbers[0]


def add_arguments(parser: ArgumentParser) -> None:
    """The flags of the verb."""
    parser.add_argument("reference", metavar="REFERENCE", type=Path, help="folder, such as labelsTs or landmarksTs")
    parser.add_argument("prediction", metavar="PREDICTION", type=Path, help="folder of predictions of the same names")
    parser.add_argument("--landmarks", action="store_true", help="both hold CASE.json with landmarks, not label maps")
    parser.add_argument(
        "--metrics",
        metavar="LIST",
        type=some_of(tuple(METRICS)),
        help=f"of {','.join(METRICS)}; default: dice",
    )
    parser.add_argument(
        "--tolerance", metavar="MM", type=above_zero, help="of nsd, in pixels where a format knows no mm; default: 2"
    )
    parser.add_argument(
        "-l", dest="labels", metavar="LABEL", nargs="+", type=label, help="such as 1 2 1,2; default: by dataset.json"
    )
    parser.add_argument("--challenge", choices=CHALLENGE_NAMES, help="score by the rules of a challenge instead")
    parser.add_argument("--runtime", metavar="MS", type=above_zero, help="per image, for the score of fugc2025")
    parser.add_argument(
        "--compare", metavar="PRED", nargs="+", type=Path, help="more predictions, each compared with PREDICTION"
    )
    parser.add_argument("--pictures", metavar="FOLDER", type=Path, help="draw the landmarks of every case")
    parser.add_argument(
        "--images", metavar="FOLDER", type=Path, help="for --pictures; default: imagesTs beside landmarksTs, and so on"
    )
    add_output(parser, "OUT", "folder for the summary (JSON, CSV), or its FILE.json; default: print only")
    parser.add_argument("--chill", action="store_true", help="leave out references without prediction")
    add_processes(parser)
    add_json(parser)


def run(args: Namespace) -> int:
    """Evaluates or compares, and prints the result."""
    from nnunet_semi.evaluation.landmarks import CL_DETECTION

    if args.landmarks or args.challenge == CL_DETECTION:
        return _run_landmarks(args)
    if args.pictures or args.images:
        raise WrongUse("got --pictures or --images without --landmarks; `nnunet_semi report` draws label maps")
    return _run_label_maps(args)


def _run_landmarks(args: Namespace) -> int:
    from nnunet_semi.evaluation.landmarks import evaluate_landmarks

    asked = "--landmarks" if args.landmarks else f"--challenge {args.challenge}"
    own = {"--compare": args.compare, "-l": args.labels, "--runtime": args.runtime}
    _refuse(asked, own | {"--metrics": args.metrics, "--tolerance": args.tolerance})
    _refuse_output(args)
    found = evaluate_landmarks(
        args.reference,
        args.prediction,
        challenge=args.challenge,
        overwrite=args.overwrite,
        chill=args.chill,
        pictures=args.pictures,
        images=args.images,
        progress=not args.quiet,
    )
    return _finish(found, args)


def _run_label_maps(args: Namespace) -> int:
    from nnunet_semi.evaluation.comparison import evaluate_and_compare
    from nnunet_semi.evaluation.run import evaluate

    if args.challenge:
        _refuse(f"--challenge {args.challenge}", {"--metrics": args.metrics, "--tolerance": args.tolerance})
    _refuse_output(args)
    metrics = args.metrics or ("dice",)
    options = {
        "challenge": args.challenge,
        "labels": args.labels,
        "tolerance": args.tolerance or 2.0,
        "milliseconds": args.runtime,
        "chill": args.chill,
        "num_processes": args.processes,
        "progress": not args.quiet,
    }
    found: Comparison | Evaluation
    if args.compare:
        found = evaluate_and_compare(args.reference, [args.prediction, *args.compare], metrics, **options)
    else:
        found = evaluate(args.reference, args.prediction, metrics, **options)
    return _finish(found, args)


def _refuse_output(args: Namespace) -> None:
    """Raises `UserError` before the work where its results could not be written."""
    from nnunet_semi.evaluation.comparison import COMPARISON
    from nnunet_semi.evaluation.result import SUMMARY, output_files

    if args.output is not None:
        output_files(args.output, COMPARISON if args.compare else SUMMARY, args.overwrite)


def _finish(found: Comparison | Evaluation | LandmarkEvaluation, args: Namespace) -> int:
    """Prints the result, and then writes it, so that it is not lost where it cannot be written."""
    from nnunet_semi.evaluation.result import without_nan

    print(json.dumps(without_nan(found.as_tree()), indent=2) if args.json else found.as_text(), flush=True)
    if args.output is not None:
        found.write(args.output, args.overwrite)
    return 0


def _refuse(beside: str, flags: Mapping[str, object]) -> None:
    """Raises `WrongUse` for flags that were given though they mean nothing beside something else."""
    given = [flag for flag, value in flags.items() if value is not None]
    if given:
        raise WrongUse(f"got {', '.join(given)} together with {beside}, where it means nothing; leave it out")
