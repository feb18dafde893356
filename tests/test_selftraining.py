"""Self-training: its settings, and the plan with the commands that `--dry-run` prints."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from begun_selftraining import BASE, SETTINGS, TRAINER, begun
from begun_selftraining import own as own
from nnunet_semi.cli import build_parser, main
from nnunet_semi.errors import EnvironmentNotReady, UserError, WrongUse
from nnunet_semi.narrow import narrow
from nnunet_semi.selftraining.branch import branch, reserve
from nnunet_semi.selftraining.folder import RunFolder
from nnunet_semi.selftraining.plan import all_steps
from nnunet_semi.selftraining.run import selftrain
from nnunet_semi.selftraining.settings import parse_rules, select_options, trainer_names

# --- settings ---


@pytest.mark.parametrize(
    "trainer, epochs, rounds, expected",
    [
        ("T", None, 2, ["T_1000epochs", "T_100epochs", "T_100epochs"]),
        ("T", (3, 2), 3, ["T_3epochs", "T_2epochs", "T_2epochs", "T_2epochs"]),
        ("T", (5,), 1, ["T_5epochs", "T_5epochs"]),
        ("T", (5, 4, 3), 2, ["T_5epochs", "T_4epochs", "T_3epochs"]),
        ("T_2iters_seed0", (3, 2), 1, ["T_3epochs_2iters_seed0", "T_2epochs_2iters_seed0"]),
        ("T_7epochs_seed0", None, 1, ["T_7epochs_seed0"] * 2),
    ],
)
def test_every_round_has_a_trainer_whose_name_says_its_length(
    trainer: str, epochs: Any, rounds: int, expected: list[str]
) -> None:
    assert trainer_names(trainer, epochs, rounds) == expected


@pytest.mark.parametrize("trainer, epochs", [("T_7epochs", (3,)), ("T", (0,)), ("T", (1, 2, 3)), ("T", ())])
def test_lengths_that_cannot_be_are_refused(trainer: str, epochs: tuple[int, ...]) -> None:
    with pytest.raises(WrongUse, match="--epochs"):
        trainer_names(trainer, epochs, 1)


def test_rules_become_options_of_select() -> None:
    rules = parse_rules("threshold:.9, complete,max:1000")
    assert select_options(rules) == ["--threshold", ".9", "--complete", "--max", "1000"]


@pytest.mark.parametrize("text", ["", "top", "top:", "top:x", "complete:1", "bottom:.5", "top:.5,", "top:1,top:1"])
def test_rules_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(WrongUse, match="got "):
        parse_rules(text)


@pytest.mark.parametrize("text", ["top:50", "top:0", "threshold:1", "max:.5", "max:0", "complete,components:0"])
def test_values_that_select_would_refuse_after_the_training_are_refused_before_it(text: str) -> None:
    with pytest.raises(WrongUse, match="expected"):
        parse_rules(text)


def test_a_score_above_zero_can_be_asked_for() -> None:
    assert parse_rules("threshold:0") == ["threshold:0"]


# --- the plan ---


def plan_of(root: Path, capsys: pytest.CaptureFixture[str], *options: str) -> list[str]:
    """What --dry-run prints."""
    capsys.readouterr()
    assert main(["selftrain", "-d", "1", "-c", "2d", "-device", "cpu", "--dry-run", *options]) == 0
    return capsys.readouterr().out.splitlines()


def test_a_dry_run_prints_the_commands_and_writes_nothing(
    own: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    root = own()
    before = sorted(path for path in root.rglob("*"))
    options = ["--rounds", "2", "-tr", f"{TRAINER}_2iters_seed0", "--epochs", "3,2", "--later", "threshold:.9,complete"]
    found = plan_of(root, capsys, *options, "-o", str(root / "run"))
    tables = [f"{root}/run/round_{n}/scores.csv" for n in (1, 2)]
    one, two = (f"{root}/nnUNet_raw/Dataset00{n + 1}_Tiny_2d_fold0_round{n}" for n in (1, 2))
    long, short = (f"{TRAINER}_{epochs}epochs_2iters_seed0" for epochs in (3, 2))
    assert found == [
        f"self-training in {root}/run: 2 round(s) after the first training",
        "# round 0: Dataset001_Tiny",
        "nnunet_semi preprocess -d 1 -c 2d",
        f"nnUNetv2_train 1 2d 0 -tr {long} -device cpu",
        "# round 1: Dataset002_Tiny_2d_fold0_round1",
        f"nnunet_semi score -d 1 -c 2d -f 0 -tr {long} --by checkpoints -o {tables[0]} -device cpu",
        "nnunet_semi branch -d 1 --id 2 --name Tiny_2d_fold0_round1",
        f"nnunet_semi select -d 2 --table {tables[0]} --top .5",
        "nnunet_semi pseudo_images -d 2",
        f"nnUNetv2_predict -i {one}/imagesPs -o {one}/labelsPs -d 1 -c 2d -f 0 -tr {long} -device cpu",
        "nnunet_semi pseudo_cases -d 2 -c 2d",
        f"nnUNetv2_train 2 2d 0 -tr {short} -device cpu",
        "# round 2: Dataset003_Tiny_2d_fold0_round2",
        f"nnunet_semi score -d 2 -c 2d -f 0 -tr {short} --by checkpoints -o {tables[1]} -device cpu",
        "nnunet_semi branch -d 1 --id 3 --name Tiny_2d_fold0_round2",
        f"nnunet_semi select -d 3 --table {tables[1]} --threshold .9 --complete",
        "nnunet_semi pseudo_images -d 3",
        f"nnUNetv2_predict -i {two}/imagesPs -o {two}/labelsPs -d 2 -c 2d -f 0 -tr {short} -device cpu",
        "nnunet_semi pseudo_cases -d 3 -c 2d",
        f"nnUNetv2_train 3 2d 0 -tr {short} -device cpu",
    ]
    assert sorted(path for path in root.rglob("*")) == before


def test_every_verb_of_the_plan_can_be_typed(own: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    root = own()
    options = ["--later", "threshold:.9,complete,max:1000,components:2", "--skip-bad", "-chk", "checkpoint_best.pth"]
    lines = plan_of(root, capsys, *options, "--by", "mirrors")
    verbs = [shlex.split(line)[1:] for line in lines if line.startswith("nnunet_semi ")]
    assert len(verbs) == 1 + 5 * 4
    for words in verbs:
        build_parser().parse_args(words)  # exits where it cannot be
    assert [line for line in lines if "-chk checkpoint_best.pth" in line] == [
        line for line in lines if line.startswith("nnUNetv2_predict")
    ]


def test_a_branch_has_a_fold_for_what_fold_all_is_in_the_original(
    own: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    lines = plan_of(own(labeled=2), capsys, "-f", "all", "--rounds", "1")
    trainings = [shlex.split(line)[1:4] for line in lines if line.startswith("nnUNetv2_train")]
    assert trainings == [["1", "2d", "all"], ["2", "2d", "0"]]
    assert any(" -d 1 -c 2d -f all " in line for line in lines if line.startswith("nnUNetv2_predict"))


def test_a_warm_start_takes_the_weights_of_the_round_before_unless_it_goes_on(
    own: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    root = own()
    lines = plan_of(root, capsys, "--warm-start", "--rounds", "2")
    weights = [line.partition(" -pretrained_weights ")[2] for line in lines if line.startswith("nnUNetv2_train")]
    model = "{}/fold_0/checkpoint_final.pth".format("nnUNetTrainerKeepCheckpoints_{}epochs__nnUNetPlans__2d")
    results = root / "nnUNet_results"
    assert weights[0] == ""
    assert weights[1] == str(results / BASE / model.format(1000))
    assert weights[2] == str(results / "Dataset002_Tiny_2d_fold0_round1" / model.format(100))
    run = begun(root / "run", replace(SETTINGS, warm_start=True))
    step = next(step for step in all_steps(run, "cpu") if step.name == "round_1/train")
    assert "-pretrained_weights" in step.command_now()
    folder = results / "Dataset002_Tiny_2d_fold0_round1" / "T_2epochs__nnUNetPlans__2d" / "fold_0"
    folder.mkdir(parents=True)
    (folder / "checkpoint_best.pth").touch()
    assert step.command_now()[-1] == "--c" and "-pretrained_weights" not in step.command_now()


def test_ids_are_the_first_that_are_free_or_those_asked_for(
    own: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    root = own()
    (root / "nnUNet_results" / "Dataset003_Trained").mkdir()
    numbers = [line.split("Dataset")[1][:3] for line in plan_of(root, capsys, "--rounds", "2") if line.startswith("#")]
    assert numbers == ["001", "004", "005"]
    chosen = plan_of(root, capsys, "--rounds", "2", "--id", "700")
    assert [line.split("Dataset")[1][:3] for line in chosen if line.startswith("#")] == ["001", "700", "701"]


def test_other_plans_and_configurations_are_named_in_every_command(
    own: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    root = own()
    folder = root / "nnUNet_preprocessed" / BASE
    plans = json.loads((folder / "nnUNetPlans.json").read_text())
    (folder / "Mine.json").write_text(json.dumps({**plans, "plans_name": "Mine"}))
    lines = plan_of(root, capsys, "-p", "Mine", "--rounds", "1")
    without = [line for line in lines if not line.startswith(("#", "self")) and " -p Mine" not in line]
    assert [line.split()[1] for line in without] == ["select", "pseudo_images"]


@pytest.mark.parametrize(
    "options, code, said",
    [
        (["--first", "best"], 2, "got the rule 'best'"),
        (["-f", "9"], 2, "got fold 9; expected one of the 5 folds of Dataset001_Tiny, from 0, or all"),
        (["-tr", "T_3epochs", "--epochs", "3"], 2, "leave one of them out"),
        (["--stop-early", "-f", "all"], 2, "-f all, which has no validation cases of its own"),
        (["-c", "3d_fullres"], 2, "has no configuration '3d_fullres'"),
        (["--first", "top:50"], 2, "got --top 50.0; expected a share"),
        (["-tr", "nnUNetTrainer", "--epochs", "5,1"], 2, "nnUNetTrainer_5epochs keeps none of mid-training"),
        (["--by", "networks"], 2, "nnUNetTrainerKeepCheckpoints_1000epochs has one network"),
        (["--by", "mirrors", "-tr", "nnUNetTrainer_nomirror"], 2, "nnUNetTrainer_nomirror_1000epochs does not mirror"),
        (["-tr", "nnUNetTrainerHeatmap"], 2, "which finds landmarks; self-training is for label maps"),
        (["-tr", "nnUNetTrainerFoo"], 3, "the trainer nnUNetTrainerFoo_1000epochs is not found"),
        (["-tr", "nnUNetTrainerCSP"], 3, "nnUNetTrainerCSP_1000epochs is not found; did you mean nnUNetTrainerCPS"),
        (["-chk", "best"], 2, "got -chk best; expected a name such as checkpoint_final.pth"),
    ],
)
def test_what_cannot_work_is_refused_in_a_sentence(
    own: Callable[..., Path], capsys: pytest.CaptureFixture[str], options: list[str], code: int, said: str
) -> None:
    own()
    capsys.readouterr()
    assert main(["selftrain", "-d", "1", "-c", "2d", "-device", "cpu", "--dry-run", *options]) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


def test_few_labeled_cases_have_no_folds(own: Callable[..., Path]) -> None:
    own(labeled=3)
    with pytest.raises(WrongUse, match="got fold 0, but Dataset001_Tiny has 3 labeled cases, .*; pass -f all"):
        selftrain(1, "2d", device="cpu", dry_run=True)


def test_a_persons_lists_reach_every_selection(own: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    root = own()
    selection = root / "nnUNet_preprocessed" / BASE / "unlabeled_final.json"
    selection.write_text(json.dumps({"selected": ["un_001"]}))
    (line,) = (line for line in plan_of(root, capsys) if line.startswith("note: "))
    assert line.startswith(f"note: {selection} is not used here") and "--exclude" in line
    (root / "bad.txt").write_text("un_001\nun_999\n")
    (root / "good.txt").write_text("un_001\nun_002\n")
    lists = {"--exclude": str(root / "bad.txt"), "--include": str(root / "good.txt")}
    lines = plan_of(root, capsys, *(word for option in lists.items() for word in option), "--rounds", "2")
    assert [line for line in lines if line.startswith("note: ")] == [
        f"note: {root / 'bad.txt'} names 1 unknown case(s) (un_999)"
    ]
    selects = [shlex.split(line) for line in lines if line.startswith("nnunet_semi select")]
    assert len(selects) == 2
    for words in selects:
        assert {flag: words[words.index(flag) + 1] for flag in lists} == lists
        build_parser().parse_args(words[1:])
    with pytest.raises(UserError, match="bad.txt names 1 unknown case.s. .un_999.; expected"):
        selftrain(1, "2d", device="cpu", dry_run=True, include=root / "bad.txt")


def test_lists_that_a_first_training_on_unlabeled_images_would_not_obey_are_refused(
    own: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    root = own()
    selection = root / "nnUNet_preprocessed" / BASE / "unlabeled_final.json"
    bad, good = root / "bad.txt", root / "good.txt"
    bad.write_text("un_001\n")
    good.write_text("un_000\nun_002\nun_003\n")
    trainer = ["-tr", "nnUNetTrainerCPS", "--by", "networks"]
    for option in (["--exclude", str(bad)], ["--include", str(good)]):
        assert main(["selftrain", "-d", "1", "-c", "2d", "-device", "cpu", "--dry-run", *trainer, *option]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert f"also on 1 that {shlex.join(option)} leaves out (un_001); run `nnunet_semi select -d 1" in line
        assert plan_of(root, capsys, *option)  # a supervised training sees labeled cases alone
    assert main(line.split("`")[1].split()[1:]) == 0
    capsys.readouterr()
    notes = [line for line in plan_of(root, capsys, *trainer, "--exclude", str(bad)) if line.startswith("note: ")]
    assert notes == [f"note: round 0 trains on the cases of {selection}, later rounds select anew"]


def test_without_unlabeled_images_nothing_begins(own: Callable[..., Path]) -> None:
    root = own()
    shutil.rmtree(root / "nnUNet_raw" / BASE / "imagesUn")
    with pytest.raises(EnvironmentNotReady, match="put the unlabeled images there"):
        selftrain(1, "2d", device="cpu")
    assert not any((root / "nnUNet_results").iterdir())


def test_a_device_that_is_not_there_is_refused_before_anything_begins(
    own: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = own()
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    with pytest.raises(EnvironmentNotReady, match="got -device mps, but PyTorch sees no GPU of that kind"):
        selftrain(1, "2d", device="mps", folder=root / "run")
    assert not (root / "run").exists()
    assert selftrain(1, "2d", device="mps", folder=root / "run", dry_run=True) is None  # the plan for another machine


def test_ids_of_other_datasets_are_refused_before_anything_is_trained(own: Callable[..., Path]) -> None:
    root = own()
    (root / "nnUNet_raw" / "Dataset008_Other").mkdir()
    with pytest.raises(WrongUse, match="the dataset id 8 belongs to Dataset008_Other; choose another with --id"):
        selftrain(1, "2d", rounds=2, number=7, device="cpu", folder=root / "run")
    assert sorted(path.name for path in (root / "nnUNet_raw").iterdir()) == [BASE, "Dataset008_Other"]


def test_what_another_self_training_left_is_not_taken_for_done(own: Callable[..., Path]) -> None:
    """Its selection, pseudo labels and models would be, under the same id."""
    root = own()
    branch(1, 7, "Tiny_2d_fold0_round1")
    with pytest.raises(WrongUse, match="Dataset007_Tiny_2d_fold0_round1 is of another self-training.* with --id"):
        selftrain(1, "2d", rounds=1, number=7, device="cpu", folder=root / "run", dry_run=True)
    run = RunFolder(
        root / "run", replace(SETTINGS, rounds=1, trainers=[f"{TRAINER}_3epochs", f"{TRAINER}_2epochs"]), [7], 0
    )
    (root / "run").mkdir()
    run.write()
    rules = {"first": "top:.5", "later": "threshold:.9,complete"}
    begun_before = {"rounds": 1, "trainer": TRAINER, "epochs": (3, 2), "folder": root / "run", "dry_run": True, **rules}
    assert selftrain(1, "2d", device="cpu", **begun_before) is None  # its own: it goes on


def test_an_id_that_was_reserved_before_a_kill_can_be_taken(own: Callable[..., Path]) -> None:
    root = own()
    reserve(BASE, "Dataset007_Tiny_2d_fold0_round1")
    options: dict[str, Any] = {"rounds": 1, "number": 7, "device": "cpu", "dry_run": True}
    assert selftrain(1, "2d", folder=root / "run", **options) is None


def test_a_narrow_configuration_keeps_its_name_in_the_rounds(
    own: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    root = own()
    narrow(1, "2d", width=4)
    lines = plan_of(root, capsys, "-c", "2d_w4", "--rounds", "1")
    assert "# round 1: Dataset002_Tiny_2d_w4_fold0_round1" in lines
