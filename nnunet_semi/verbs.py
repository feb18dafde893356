"""The verbs of the command line: what each makes, its flags (nnU-Net's own), and the call of the function behind it."""

from __future__ import annotations

import argparse
import json
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from nnunet_semi import conversion
from nnunet_semi.arguments import add_json, add_output, add_processes, at_least
from nnunet_semi.errors import EnvironmentNotReady
from nnunet_semi.evaluation import command as evaluate
from nnunet_semi.shells import SHELLS, set_line


@dataclass(frozen=True)
class Verb:
    """One verb; `run` returns the exit code and imports what it needs only when called."""

    makes: str
    example: str
    add_arguments: Callable[[ArgumentParser], None]
    run: Callable[[Namespace], int]


def _fold(text: str) -> int | str:
    """An argparse type: a fold as nnU-Net names it."""
    return "all" if text == "all" else at_least(0)(text)


def _add_dataset(parser: ArgumentParser, several: bool = False) -> None:
    parser.add_argument(
        "-d", dest="dataset", metavar="ID", required=True, nargs="+" if several else None, help="dataset id or name"
    )


def _add_plans(parser: ArgumentParser) -> None:
    parser.add_argument("-p", dest="plans", metavar="PLANS", default="nnUNetPlans", help="plans identifier")


# --- demo ---


def _demo_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "-o", dest="output", metavar="FOLDER", type=Path, help="where to work; default: a temporary folder"
    )
    parser.add_argument("-device", choices=["cpu", "cuda"], help="default: cuda if there is one")
    parser.add_argument("--seed", metavar="N", type=at_least(0), default=0, help="of the images and both trainings")
    parser.add_argument("--overwrite", action="store_true", help="begin anew in a folder that holds a demo")


def _demo(args: Namespace) -> int:
    from nnunet_semi.demo import demo
    from nnunet_semi.demo.comparison import table

    if not args.quiet:
        demo(args.output, args.device, args.seed, args.overwrite)
        return 0
    result = demo(args.output, args.device, args.seed, args.overwrite, report=lambda line: None)
    print(*table(result.dice, dict.fromkeys(result.dice, "")), f"pictures: {result.pictures}", sep="\n")
    return 0


# --- init, env ---


def _init_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("folder", metavar="DIR", type=Path, help="the folder in which the three are made")


def _init(args: Namespace) -> int:
    from nnunet_semi.init import differing, init, instructions

    paths = init(args.folder)
    print(instructions(paths))
    for sentence in differing(paths):
        print(sentence, file=sys.stderr)
    return 0


def _env_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--shell", choices=list(SHELLS), default="bash", help="whose syntax; bash serves zsh and sh")


def _env(args: Namespace) -> int:
    from nnunet_semi.discovery import VARIABLE, extended_search_path

    print(set_line(VARIABLE, extended_search_path(), args.shell))
    return 0


# --- doctor, list ---


def _doctor(args: Namespace) -> int:
    from nnunet_semi.doctor import as_json, as_line, examine, summary

    facts = []
    for fact in examine():  # a line at a time: some take seconds
        facts.append(fact)
        if not args.json and (fact.status != "ok" or not args.quiet):
            print(as_line(fact), flush=True)
    print(as_json(facts) if args.json else summary(facts))
    return EnvironmentNotReady.exit_code if any(fact.status == "FAIL" for fact in facts) else 0


def _list(args: Namespace) -> int:
    from nnunet_semi.registry import as_table, as_tree

    print(json.dumps(as_tree(), indent=2) if args.json else as_table())
    return 0


# --- preprocess, narrow, export ---


def _preprocess_arguments(parser: ArgumentParser) -> None:
    _add_dataset(parser, several=True)
    parser.add_argument(
        "-c", dest="configurations", metavar="CONFIG", nargs="+", help="default: those nnU-Net preprocessed"
    )
    _add_plans(parser)
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
            print(preprocess_unlabeled(dataset, *chosen, progress=not args.quiet), flush=True)
        except BadCases as problem:
            print(problem.summary, flush=True)
            refused.append(str(problem))
    if refused:
        raise BadCases("\n".join(refused))
    return 0


def _narrow_arguments(parser: ArgumentParser) -> None:
    _add_dataset(parser)
    parser.add_argument("-c", dest="configuration", metavar="CONFIG", required=True, help="the one to inherit from")
    parser.add_argument("--width", metavar="N", type=at_least(1), default=8, help="features of the first stage")
    _add_plans(parser)
    parser.add_argument("--name", help="name of the new one; default: CONFIG_wN")


def _narrow(args: Namespace) -> int:
    from nnunet_semi.narrow import narrow

    name = narrow(args.dataset, args.configuration, args.width, args.plans, args.name)
    print(name)
    if not args.quiet:
        print(f"train it with: nnUNetv2_train {args.dataset} {name} FOLD -p {args.plans}", file=sys.stderr)
    return 0


def _export_arguments(parser: ArgumentParser) -> None:
    _add_dataset(parser)
    parser.add_argument("-c", dest="configuration", metavar="CONFIG", required=True, help="configuration")
    parser.add_argument("-tr", dest="trainer", metavar="TRAINER", default="nnUNetTrainerCPS", help="trainer class name")
    _add_plans(parser)
    parser.add_argument(
        "-f", dest="folds", metavar="FOLD", nargs="+", type=_fold, default=[0], help="folds, or all; default: 0"
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


# --- ensemble ---


def _ensemble_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "predictions", metavar="PRED", nargs="+", type=Path, help="folders of label maps of the same names, two or more"
    )
    add_output(parser, "OUT", "the folder to write into", required=True)
    parser.add_argument(
        "--binary",
        action=argparse.BooleanOptionalAction,
        help="masks are what is above 0, written as 0 and 255; default: if a picture has colours or full white",
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
        )
    )
    return 0


VERBS: dict[str, Verb] = {
    "demo": Verb(
        "Makes a small dataset, trains nnUNetTrainer and nnUNetTrainerCPS on it, and prints both results.",
        "nnunet_semi demo -o demo_folder",
        _demo_arguments,
        _demo,
    ),
    "init": Verb(
        "Makes nnU-Net's three folders, and prints the lines that tell nnU-Net where they are.",
        "nnunet_semi init ~/nnunet",
        _init_arguments,
        _init,
    ),
    "doctor": Verb(
        "Prints what is in place and what is not, a line per fact with its remedy; changes nothing.",
        "nnunet_semi doctor",
        add_json,
        _doctor,
    ),
    "list": Verb("Prints the trainers, with a line on each.", "nnunet_semi list", add_json, _list),
    "env": Verb(
        "Prints the line by which nnU-Net finds the trainers where the start-up line is not wanted.",
        'eval "$(nnunet_semi env)"',
        _env_arguments,
        _env,
    ),
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
    "export": Verb(
        "Makes a zip file of a trained model that plain nnU-Net installs and predicts with.",
        "nnunet_semi export -d 7 -c 2d -tr nnUNetTrainerCPS -f 0 -o model.zip",
        _export_arguments,
        _export,
    ),
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
}
