"""The command line: parses, calls the function behind a verb, and turns errors into a sentence and an exit code."""

from __future__ import annotations

import argparse
import io
import os
import platform
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Sequence

from nnunet_semi import __version__
from nnunet_semi.errors import UserError
from nnunet_semi.verbs import VERBS, Verb

_EPILOG = """\
Training and prediction stay nnU-Net's own: nnUNetv2_train ... -tr nnUNetTrainerCPS, and nnUNetv2_predict.
Exit codes: 0 done, 1 the work failed, 2 wrong use, 3 the environment is not ready."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one verb and returns the exit code; `arguments` are those of the process if not given."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # a pipe on Windows cannot take every sign, such as →
        sys.stdout.reconfigure(errors="backslashreplace")
    parser = build_parser()
    args, unknown = parser.parse_known_args(arguments)
    if unknown:
        parser.prog = f"{parser.prog} {args.verb or ''}".strip()  # whose help has what was meant
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    if args.verb is None:
        parser.print_help(sys.stderr)
        return 2
    # Dependencies of nnU-Net use what torch will drop; a user cannot do anything about it.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.")
    started = time.monotonic()
    if args.verbose:
        print(_circumstances(args), file=sys.stderr)
    try:
        code = VERBS[args.verb].run(args)
        sys.stdout.flush()  # a reader that has gone is noticed here, not at exit
        if args.verbose:
            print(f"nnunet_semi {args.verb}: {time.monotonic() - started:.1f} s", file=sys.stderr)
        return code
    except (Exception, KeyboardInterrupt) as problem:
        if args.debug:
            traceback.print_exc()
        return _report(args.verb, problem, write_log=not args.debug)


def _circumstances(args: argparse.Namespace) -> str:
    """What a bug report should hold: versions, arguments and nnU-Net's environment variables."""
    versions = f"nnunet_semi {__version__}, Python {platform.python_version()}, {platform.platform()}"
    variables = [f"{name}={value}" for name, value in sorted(os.environ.items()) if name.lower().startswith("nnunet")]
    return "\n".join([versions, f"arguments: {vars(args)}", *variables])


def _report(verb: str, problem: BaseException, write_log: bool) -> int:
    """Says in one line on stderr what went wrong and returns the exit code."""
    if isinstance(problem, BrokenPipeError):  # the reader has gone, as in `nnunet_semi list | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    if isinstance(problem, KeyboardInterrupt):
        sentence, code = "stopped", 130
    elif isinstance(problem, UserError):
        sentence, code = str(problem), problem.exit_code
    else:
        first = next(iter(str(problem).strip().splitlines()), "")
        where = f"; the traceback is in {_log(verb, problem)}" if write_log else ""
        sentence, code = f"unexpected {type(problem).__name__}: {first}{where}", 1
    print(f"nnunet_semi {verb}: {sentence}", file=sys.stderr)
    return code


def _log(verb: str, problem: BaseException) -> str:
    """Writes the traceback to a new file among the temporary ones and returns its path."""
    handle, path = tempfile.mkstemp(prefix=f"nnunet_semi_{verb}_", suffix=".log")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write("".join(traceback.format_exception(problem)))
    return path


class _Parser(argparse.ArgumentParser):
    """Puts what a verb makes into the first line of its help, and a wrong use into one line."""

    def format_help(self) -> str:
        usage, body = super().format_usage(), super().format_help()
        description = (self.description or "").strip()
        rest = body.replace(usage, "", 1).strip().removeprefix(description)
        return f"{description}\n\n{usage}\n{rest.strip()}\n"

    def error(self, message: str) -> None:  # type: ignore[override]
        self.exit(2, f"{self.prog}: {message}; `{self.prog} --help` shows the usage\n")


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Shows defaults, where there is one to show."""

    def _get_help_string(self, action: argparse.Action) -> str:
        hidden = action.default in (None, False, argparse.SUPPRESS) or "default" in (action.help or "")
        return (action.help or "") + ("" if hidden else " (default: %(default)s)")


def build_parser() -> argparse.ArgumentParser:
    """The parser of all verbs; imports nothing that a verb will need."""
    parser = _Parser(
        prog="nnunet_semi",
        description="Semi-supervised training for nnU-Net: what its own commands do not do.",
        epilog=_EPILOG,
        formatter_class=_Formatter,
    )
    parser.add_argument("--version", action="version", version=f"nnunet_semi {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", title="verbs", parser_class=_Parser)
    for name, verb in VERBS.items():
        _add_verb(verbs, name, verb)
    return parser


def _add_verb(verbs: argparse._SubParsersAction[_Parser], name: str, verb: Verb) -> None:
    epilog = f"example: {verb.example}"
    parser = verbs.add_parser(
        name, help=verb.makes, description=verb.makes, epilog=epilog, formatter_class=_Formatter, allow_abbrev=False
    )
    verb.add_arguments(parser)
    parser.add_argument("-q", dest="quiet", action="store_true", help="results and errors only")
    parser.add_argument(
        "-v", dest="verbose", action="store_true", help="say on stderr what runs where, and how long it took"
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
