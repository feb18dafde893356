"""Verbs that begin: the demo, nnU-Net's folders, what is in place, what there is."""

from __future__ import annotations

import json
import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path

from nnunet_semi.arguments import add_json, at_least
from nnunet_semi.errors import EnvironmentNotReady
from nnunet_semi.shells import SHELLS, set_line
from nnunet_semi.verbs.verb import Verb


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


VERBS = {
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
}
