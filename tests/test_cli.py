"""The command line: what it offers, how flags reach the functions, and how it says what went wrong."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest

import nnunet_semi
from nnunet_semi import discovery, shells
from nnunet_semi.cli import main
from nnunet_semi.errors import EnvironmentNotReady, UserError, WrongUse
from nnunet_semi.init import init, instructions
from nnunet_semi.log import silent, to_stderr
from nnunet_semi.raw import FOLDERS
from nnunet_semi.registry import DATASETS, TRAINERS
from nnunet_semi.verbs import VERBS

HEAVY = "('torch', 'numpy', 'nnunetv2', 'matplotlib')"


# --- help ---


@pytest.mark.parametrize("verb", VERBS)
def test_help_says_first_what_the_verb_makes_and_ends_with_an_example(
    verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main([verb, "--help"])
    lines = capsys.readouterr().out.splitlines()
    assert stop.value.code == 0
    assert lines[0] == VERBS[verb].makes
    assert lines[-1] == f"example: {VERBS[verb].example}"
    assert any(line.startswith(f"usage: nnunet_semi {verb}") for line in lines)


@pytest.mark.parametrize("verb", VERBS)
def test_examples_in_the_help_can_be_parsed(verb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    called = []
    monkeypatch.setitem(
        VERBS, verb, types.SimpleNamespace(**{**vars(VERBS[verb]), "run": lambda args: called.append(args) or 0})
    )
    words = re.search(r"nnunet_semi ([^)\"]*)", VERBS[verb].example)
    assert words and main(words.group(1).split()) == 0
    assert called[0].verb == verb


def test_help_shows_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["export", "--help"])
    said = capsys.readouterr().out
    for default in ("nnUNetTrainerCPS", "nnUNetPlans", "checkpoint_final.pth", "default: 0"):
        assert default in said
    assert "None" not in said and "False" not in said


@pytest.mark.parametrize("arguments", [["--help"], ["list"], ["env"], ["init", "made"], *([v, "-h"] for v in VERBS)])
def test_help_and_small_verbs_answer_without_heavy_imports(arguments: list[str], tmp_path: Path) -> None:
    code = (
        "import sys\nfrom nnunet_semi.cli import main\n"
        f"try:\n    assert main({arguments!r}) == 0\n"
        "except SystemExit as stop:\n    assert stop.code == 0\n"
        f"print('HEAVY', [name for name in {HEAVY} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "HEAVY []"


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_output_that_cannot_take_an_arrow_is_no_error(encoding: str) -> None:
    command = "import sys; from nnunet_semi.cli import main; sys.exit(main(['convert', '--help']))"
    variables = {**os.environ, "PYTHONIOENCODING": encoding}
    done = subprocess.run([sys.executable, "-c", command], env=variables, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert r"\u2192" in done.stdout


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"nnunet_semi {nnunet_semi.__version__}\n"


# --- wrong use and errors ---


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["frobnicate"], "frobnicate"),
        (["preprocess"], "-d"),
        (["preprocess", "-d", "1", "-np", "0"], "got '0'; expected a whole number of 1 or more"),
        (["narrow", "-d", "1", "-c", "2d", "--width", "8.5"], "got '8.5'"),
        (["export", "-d", "1", "-c", "2d", "-f", "some", "-o", "m.zip"], "got 'some'"),
        (["env", "--shell", "tcsh"], "tcsh"),
        (["doctor", "--js"], "--js"),
    ],
)
def test_wrong_use_is_one_line_and_exit_code_2(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    (line,) = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2
    assert said in line and "--help` shows the usage" in line


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (["doctor", "--jsom"], "nnunet_semi doctor --help"),
        (["ensemble", "a", "b", "-o", "c", "--over"], "nnunet_semi ensemble --help"),
        (["--jsom"], "nnunet_semi --help"),
    ],
)
def test_unknown_flags_point_to_the_help_that_has_the_known_ones(
    arguments: list[str], shown: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    said = capsys.readouterr().err
    assert stop.value.code == 2
    assert f"unrecognized arguments: {arguments[-1]}; `{shown}` shows the usage" in said


def test_no_verb_shows_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert (
        "Exit codes: 0 done, 1 the work failed, 2 wrong use, 3 the environment is not ready" in capsys.readouterr().err
    )


def failing(monkeypatch: pytest.MonkeyPatch, problem: BaseException) -> None:
    """Lets the verb `list` fail."""

    def run(args: object) -> int:
        raise problem

    monkeypatch.setitem(VERBS, "list", types.SimpleNamespace(**{**vars(VERBS["list"]), "run": run}))


@pytest.mark.parametrize(
    ("problem", "code"),
    [(UserError("a; b"), 1), (WrongUse("a; b"), 2), (EnvironmentNotReady("a; b"), 3)],
    ids=lambda value: type(value).__name__,
)
def test_user_errors_are_a_sentence_and_their_exit_code(
    problem: UserError, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failing(monkeypatch, problem)
    assert main(["list"]) == code
    assert capsys.readouterr().err == "nnunet_semi list: a; b\n"


def test_unexpected_errors_name_the_log_with_the_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    failing(monkeypatch, ZeroDivisionError("by zero\nand more"))
    assert main(["list"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    (log,) = tmp_path.iterdir()
    assert line == f"nnunet_semi list: unexpected ZeroDivisionError: by zero; the traceback is in {log}"
    assert "raise problem" in log.read_text()


def test_debug_shows_the_traceback_instead(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    failing(monkeypatch, ZeroDivisionError("by zero"))
    assert main(["list", "--debug"]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("Traceback") and lines[-1] == "nnunet_semi list: unexpected ZeroDivisionError: by zero"
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_says_stopped(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    failing(monkeypatch, KeyboardInterrupt())
    assert main(["list"]) == 130
    assert capsys.readouterr().err == "nnunet_semi list: stopped\n"


def test_a_reader_that_goes_away_is_no_error() -> None:
    command = "import sys; from nnunet_semi.cli import main; sys.exit(main(['list']))"
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([sys.executable, "-c", command], stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "")


def test_verbose_says_what_a_bug_report_needs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("nnUNet_raw", "/somewhere")
    assert main(["list", "-v"]) == 0
    said = capsys.readouterr().err
    assert nnunet_semi.__version__ in said and "nnUNet_raw=/somewhere" in said and "'verb': 'list'" in said


# --- flags reach the functions ---


def recorder(result: Any, calls: list[Any]) -> Any:
    """A function that notes its arguments, by position and by name."""

    def record(*args: Any, **kwargs: Any) -> Any:
        calls.append((args, kwargs))
        return result

    return record


def test_preprocess_passes_its_flags(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    calls: list[Any] = []
    function = "nnunet_semi.unlabeled.preprocessing.preprocess_unlabeled"
    monkeypatch.setattr(function, recorder("the summary", calls))
    assert main(["preprocess", "-d", "1", "Dataset002_B", "-c", "2d", "3d_fullres", "-p", "P", "-np", "3"]) == 0
    assert main(["preprocess", "-d", "1", "--skip-bad", "-q"]) == 0
    assert calls == [
        (("1", ["2d", "3d_fullres"], "P", 3, False), {"progress": True, "log": to_stderr}),
        (("Dataset002_B", ["2d", "3d_fullres"], "P", 3, False), {"progress": True, "log": to_stderr}),
        (("1", None, "nnUNetPlans", None, True), {"progress": False, "log": silent}),
    ]
    assert capsys.readouterr().out == "the summary\n" * 3


def test_bad_cases_of_one_dataset_do_not_keep_the_others_waiting(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from nnunet_semi.unlabeled.preprocessing import BadCases, PreprocessingSummary

    def preprocess(dataset: str, *_: object, **__: object) -> PreprocessingSummary:
        summary = PreprocessingSummary(dataset, [])
        if dataset == "1":
            raise BadCases("case x is bad; do this", summary)
        return summary

    monkeypatch.setattr("nnunet_semi.unlabeled.preprocessing.preprocess_unlabeled", preprocess)
    assert main(["preprocess", "-d", "1", "2"]) == 1
    assert capsys.readouterr().err == "nnunet_semi preprocess: case x is bad; do this\n"


def test_narrow_prints_the_name(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    calls: list[Any] = []
    monkeypatch.setattr("nnunet_semi.narrow.narrow", recorder("2d_w8", calls))
    assert main(["narrow", "-d", "1", "-c", "2d"]) == 0
    assert main(["narrow", "-d", "1", "-c", "2d", "--width", "16", "-p", "P", "--name", "small", "-q"]) == 0
    assert [args for args, _ in calls] == [("1", "2d", 8, "nnUNetPlans", None), ("1", "2d", 16, "P", "small")]
    said = capsys.readouterr()
    assert said.out == "2d_w8\n2d_w8\n"
    assert said.err == "train it with: nnUNetv2_train 1 2d_w8 FOLD -p nnUNetPlans\n"


def test_export_passes_its_flags(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    calls: list[Any] = []
    monkeypatch.setattr("nnunet_semi.export.export", recorder(Path("m.zip"), calls))
    short = ["export", "-d", "1", "-c", "2d", "-o", "m.zip"]
    assert main(short) == 0
    assert (
        main(
            [
                *short,
                "-tr",
                "nnUNetTrainer",
                "-p",
                "P",
                "-f",
                "0",
                "3",
                "all",
                "-chk",
                "checkpoint_best.pth",
                "--overwrite",
            ]
        )
        == 0
    )
    assert [args for args, _ in calls] == [("1", "2d", Path("m.zip"))] * 2
    names = ("trainer", "plans", "folds", "checkpoint", "overwrite")
    assert [tuple(kwargs[name] for name in names) for _, kwargs in calls] == [
        ("nnUNetTrainerCPS", "nnUNetPlans", (0,), "checkpoint_final.pth", False),
        ("nnUNetTrainer", "P", (0, 3, "all"), "checkpoint_best.pth", True),
    ]
    assert capsys.readouterr().out == "m.zip\nm.zip\n"


def test_demo_passes_its_flags(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    calls: list[Any] = []
    result = types.SimpleNamespace(dice={"T": {"disc": [0.5, 0.7]}}, pictures=Path("p.png"))
    monkeypatch.setattr("nnunet_semi.demo.demo", recorder(result, calls))
    assert main(["demo"]) == 0
    assert capsys.readouterr().out == ""  # the function has said it all
    assert main(["demo", "-o", "here", "-device", "cpu", "--seed", "3", "--overwrite", "-q"]) == 0
    assert [args for args, _ in calls] == [(None, None, 0, False), (Path("here"), "cpu", 3, True)]
    said = capsys.readouterr().out
    assert "0.600" in said and said.endswith("pictures: p.png\n")


# --- list, env, init ---


def test_list_shows_every_trainer_with_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name, (_, line) in TRAINERS.items():
        assert any(re.fullmatch(rf"  {name} +{re.escape(line)}", shown) for shown in lines)
    assert any("_100epochs" in line for line in lines)


def test_list_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "--json"]) == 0
    tree = json.loads(capsys.readouterr().out)
    assert tree["trainers"] == {name: line for name, (_, line) in TRAINERS.items()}
    assert tree["datasets"] == {name: line for name, (_, line) in DATASETS.items()}


AWKWARD = '/my folder/it\'s $HOME `x` "y"'


@pytest.mark.parametrize("shell", ["bash", "sh"])
def test_shells_read_back_what_was_set(shell: str) -> None:
    line = f'{shells.set_line("VALUE", AWKWARD)}; printf %s "$VALUE"'
    assert subprocess.run([shell, "-c", line], capture_output=True, text=True, check=True).stdout == AWKWARD


@pytest.mark.parametrize(
    ("shell", "line"),
    [
        ("powershell", "$env:VALUE = '/it''s here'"),
        ("cmd", 'set "VALUE=/it\'s here"'),
        ("fish", r"set -gx VALUE '/it\'s here'"),
    ],
)
def test_other_shells_get_their_own_quoting(shell: str, line: str) -> None:
    assert shells.set_line("VALUE", "/it's here", shell) == line


def test_env_keeps_the_users_folders_in_front(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(discovery.VARIABLE, "/my trainers")
    assert main(["env"]) == 0
    expected = f"/my trainers{os.pathsep}{discovery.hook_folder()}"
    assert capsys.readouterr().out == f"export {discovery.VARIABLE}='{expected}'\n"
    monkeypatch.setenv(discovery.VARIABLE, expected)
    assert main(["env", "--shell", "cmd"]) == 0
    assert capsys.readouterr().out == f'set "{discovery.VARIABLE}={expected}"\n'


def test_init_makes_three_folders_and_leaves_what_is_in_them(tmp_path: Path) -> None:
    paths = init(tmp_path / "a b")
    assert list(paths) == list(FOLDERS)
    (paths["nnUNet_raw"] / "kept").touch()
    assert init(tmp_path / "a b") == paths
    assert (paths["nnUNet_raw"] / "kept").is_file()
    assert all(path.is_dir() and path.is_absolute() for path in paths.values())


def test_the_lines_that_init_prints_for_bash_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", str(tmp_path / "it's")]) == 0
    said = capsys.readouterr().out
    lines = [line for line in said.splitlines() if line.startswith("  export ")]
    script = "\n".join([*lines, *(f'echo "${name}"' for name in FOLDERS)])
    shown = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True).stdout.splitlines()
    assert shown == [str(tmp_path / "it's" / name) for name in FOLDERS]
    assert "PowerShell:" in said and "cmd:" in said and "~/.bashrc" in said


def test_init_takes_a_relative_folder_and_prints_it_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert f"export nnUNet_raw={tmp_path}/here/nnUNet_raw" in instructions(init("here"))


def test_init_says_which_variable_points_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("nnUNet_raw", "/elsewhere")
    assert main(["init", str(tmp_path)]) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("nnUNet_raw is /elsewhere in this shell")


def test_init_into_a_file_is_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert main(["init", str(tmp_path / "file")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert str(tmp_path / "file" / "nnUNet_raw") in line and "give a folder you may write to" in line
