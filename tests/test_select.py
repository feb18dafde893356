"""`nnunet_semi select`: which cases stay, why the others go, and that all semi-supervised trainers obey."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from nnunet_semi.errors import EnvironmentNotReady, UserError, WrongUse
from nnunet_semi.filtering.images import ImageSource
from nnunet_semi.filtering.picture import draw_selection
from nnunet_semi.filtering.rules import Rules, Selected, read_list
from nnunet_semi.filtering.score import score_unlabeled
from nnunet_semi.filtering.screen import screen_unlabeled
from nnunet_semi.filtering.select import select_unlabeled
from nnunet_semi.filtering.table import Row, newest_table, read_table, write_table
from nnunet_semi.plugin_trainer import CHECKPOINT_KEY
from nnunet_semi.report.training import UNLABELED
from nnunet_semi.trainers.nnUNetTrainerCPS import nnUNetTrainerCPS, nnUNetTrainerCPSCutMix
from scored_model import make_model
from short_training import saved, train
from tiny_trainer import make_trainer

SHORT = {"num_epochs": 2, "num_iterations_per_epoch": 1, "num_val_iterations_per_epoch": 1, "save_every": 1}


def row(case: str, score: float, liver: int = 1, spleen: int = 1) -> Row:
    """A case whose classes have so many components."""
    counts = {"liver": liver, "spleen": spleen}
    return Row(
        case,
        score,
        all(counts.values()),
        {name: score if count else None for name, count in counts.items()},
        {name: 10.0 * count for name, count in counts.items()},
        counts,
    )


ROWS = [row("a", 0.5), row("b", 0.95, spleen=0), row("c", 0.91, liver=3), row("d", 0.9), row("e", 0.99), row("f", 0.0)]


# --- rules ---


@pytest.mark.parametrize(
    ("rules", "selected"),
    [
        ({"top": 0.5}, "bce"),
        ({"top": 0.34}, "bce"),  # rounded up
        ({"top": 1 / 3}, "be"),
        ({"threshold": 0.9}, "bce"),  # above, not from
        ({"threshold": 0.0}, "abcde"),
        ({"complete": True}, "acdef"),
        ({"components": 2}, "abdef"),
        ({"components": 3, "complete": True}, "acdef"),
        ({"max": 2}, "be"),
        ({"threshold": 0.9, "complete": True}, "ce"),
        ({"top": 0.5, "complete": True}, "ce"),  # of all cases, not of the complete ones
        ({"complete": True, "max": 2}, "ce"),  # of the complete ones
        ({"threshold": 0.4, "complete": True, "components": 2, "max": 2}, "de"),
    ],
)
def test_rules_combine_with_and(rules: dict[str, Any], selected: str) -> None:
    assert "".join(Rules(**rules)(ROWS).cases) == selected


def test_every_case_is_selected_or_left_out_with_a_reason() -> None:
    found = Rules(top=0.5, threshold=0.92, complete=True, components=2, max=1)(ROWS)
    assert found.cases == ["e"]
    assert found.left_out == {
        "a": "score 0.500 is not above 0.92; not among the 3 best of 6 cases",
        "b": "without spleen",
        "c": "score 0.910 is not above 0.92; liver in 3 components",
        "d": "score 0.900 is not above 0.92; not among the 3 best of 6 cases",
        "f": "score 0.000 is not above 0.92; not among the 3 best of 6 cases",
    }


def test_the_order_of_the_rows_does_not_matter_even_where_scores_tie() -> None:
    rows = [row(case, 0.5) for case in "dbcae"]
    expected = Selected(["a", "b"], {case: "not among the 2 best of 5 cases" for case in "cde"})
    for order in (rows, rows[::-1], sorted(rows, key=lambda one: one.case)):
        assert Rules(top=0.4)(order) == expected


def test_a_persons_lists_are_rules_too(tmp_path: Path) -> None:
    bad, good = tmp_path / "bad.txt", tmp_path / "good.txt"
    bad.write_text("\ufeff# seen on Monday\r\n#\r\ne\r\n\r\n c \r\n", encoding="utf-8")
    good.write_text("a\nb\ne\n")
    assert read_list(bad) == ["e", "c"]
    assert Rules(exclude=bad)(ROWS).cases == ["a", "b", "d", "f"]
    assert Rules(exclude=bad)(ROWS).left_out["e"] == f"excluded by {bad}"
    assert Rules(include=good, threshold=0.6)(ROWS).cases == ["b", "e"]
    assert Rules(include=good, exclude=bad)(ROWS).left_out["c"] == f"excluded by {bad}; not in {good}"


def test_a_case_whose_name_begins_as_a_comment_can_be_listed(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_text("#12\n")
    assert Rules(exclude=path)([row("#12", 0.9), row("a", 0.8)]).cases == ["a"]


def test_a_list_with_unknown_names_is_refused_or_noted(tmp_path: Path) -> None:
    """A person who screens may delete the images too, and leave the list as it is."""
    path = tmp_path / "list.txt"
    path.write_text("a\nz\n")
    said = "names 1 unknown case.s. .z."
    with pytest.raises(UserError, match=f"{said}; expected"):
        Rules(include=path)(ROWS)
    notes: list[str] = []
    assert "a" not in Rules(exclude=path)(ROWS, notes.append).cases
    assert len(notes) == 1 and re.search(f"^note: .*list.txt {said}$", notes[0])
    path.write_text("z\n")
    with pytest.raises(UserError, match=f"{said}; expected"):
        Rules(exclude=path)(ROWS)
    with pytest.raises(UserError, match="cannot be read as a list of cases .No such file or directory.;"):
        Rules(exclude=tmp_path / "none.txt")(ROWS)


def test_nothing_left_is_an_error() -> None:
    with pytest.raises(UserError, match="no case of 6 passes the rules .threshold 0.99.; choose milder ones"):
        Rules(threshold=0.99)(ROWS)


@pytest.mark.parametrize("rules", [{}, {"top": 0.0}, {"top": 1.1}, {"threshold": 1.0}, {"threshold": -0.1}])
def test_rules_that_cannot_be_meant_are_refused(rules: dict[str, Any]) -> None:
    with pytest.raises(WrongUse, match="expected"):
        Rules(**rules)


# --- tables ---


def test_a_table_reads_back_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    rows = [row("b", 0.25), row('a, "quoted"', 1.0, spleen=0)]
    write_table(path, rows)
    assert read_table(path) == sorted(rows, key=lambda one: one.case)
    before = path.read_bytes()
    write_table(path, rows[::-1])
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "holds no case"),
        ("case,score\na,0.5\n", "is no table of scores"),
        ("case,score,complete\na,much,yes\n", "is no table of scores"),
        ("case,score,complete\na,1.5,yes\n", "is no table of scores"),
        ("case,score,complete\na,nan,yes\n", "is no table of scores"),
        ("case,score,complete\na,0.5,maybe\n", "is no table of scores"),
        ("case,score,complete\na,0.5,yes\na,0.6,yes\n", "holds a case twice"),
        ("case,score,complete\na,0.5,yes,a note\n", r"table.csv .*got the row a,0.5,yes,a note\);"),
        ("case,score,complete,components_b\na,0,5,yes,1\n", r"got the row a,0,5,yes,1\); .* with decimal points"),
        ("case;score;complete\na;0.5;yes\n", r"got the row a;0.5;yes\); .* separated by commas"),
        ("case,score,complete\na,0.5\n", r"got the row a,0.5\)"),
    ],
)
def test_damaged_tables_are_told(tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "table.csv"
    path.write_text(content)
    with pytest.raises(UserError, match=said):
        read_table(path)


def test_a_table_that_a_spreadsheet_saved_can_be_read(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    write_table(path, ROWS)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    assert read_table(path) == ROWS


# --- the file and the picture ---


@pytest.fixture
def scored(tiny_2d: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The preprocessed folder of a dataset with a table of scores; what is selected there is gone after the test."""
    make_model(tiny_2d)
    score_unlabeled(1, "2d", "checkpoints", mirroring=False, device="cpu", progress=False)
    yield tiny_2d.parent
    for path in tiny_2d.parent.glob("unlabeled_final.*"):
        path.unlink()


def selection(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "unlabeled_final.json").read_text())


def test_the_selection_says_what_and_why(scored: Path) -> None:
    summary = select_unlabeled(1, Rules(top=0.5))
    content = selection(scored)
    ranked = sorted(read_table(summary.table), key=lambda one: -one.score)
    assert content["selected"] == sorted(one.case for one in ranked[:2])
    assert content["left_out"] == {one.case: "not among the 2 best of 4 cases" for one in ranked[2:]}
    assert content["rules"] == {"top": 0.5}
    assert content["table"] == str(newest_table("Dataset001_Tiny"))
    assert content["scores"]["by"] == "checkpoints"
    assert set(content["scores"]["checkpoints"]) == {f"fold_0/checkpoint_{n}.pth" for n in ("036", "066", "final")}
    assert str(summary).startswith(f"{scored / 'unlabeled_final.json'}: 2 of 4 unlabeled cases")


def test_labeled_cases_are_never_left_out(scored: Path) -> None:
    trainer = make_trainer(nnUNetTrainerCPS, scored / "nnUNetPlans.json", fold=0)
    split = trainer.do_split()
    files = {path: path.read_bytes() for path in scored.rglob("*") if path.is_file()}
    select_unlabeled(1, Rules(top=0.25))
    content = selection(scored)
    labeled = {case for keys in split for case in keys}
    assert labeled and not labeled & {*content["selected"], *content["left_out"]}
    assert trainer.do_split() == split
    assert {path: path.read_bytes() for path in files} == files


def test_the_picture_shows_scores_and_cases(scored: Path) -> None:
    summary = select_unlabeled(1, Rules(top=0.5, threshold=0.1))
    with Image.open(summary.picture) as image:
        pixels = np.asarray(image.convert("RGB"))
    assert pixels.shape == (950, 1600, 3)
    colours = {tuple(colour) for colour in pixels.reshape(-1, 3)}
    assert (0, 114, 178) in colours and (213, 94, 0) in colours  # selected and left out


def test_another_selection_is_kept_unless_told_otherwise(scored: Path) -> None:
    select_unlabeled(1, Rules(top=0.5))
    before = selection(scored)
    select_unlabeled(1, Rules(top=0.5))  # the same again: nothing is lost
    with pytest.raises(UserError, match="holds another selection; pass --overwrite"):
        select_unlabeled(1, Rules(top=0.25))
    assert selection(scored) == before
    select_unlabeled(1, Rules(top=0.25), overwrite=True)
    assert len(selection(scored)["selected"]) == 1


def test_a_table_without_its_folder_will_do(scored: Path, tmp_path: Path) -> None:
    """On another machine, or made by hand."""
    table = tmp_path / "mine.csv"
    write_table(table, [row(f"un_{number:03d}", number / 4) for number in range(4)])
    select_unlabeled(1, Rules(threshold=0.3), table)
    assert selection(scored)["selected"] == ["un_002", "un_003"]
    assert selection(scored)["scores"] == {}


def test_cases_that_the_table_does_not_have_are_left_out_with_that_reason(scored: Path, tmp_path: Path) -> None:
    table = tmp_path / "mine.csv"
    write_table(table, [row("un_003", 0.9), row("un_001", 0.1)])
    summary = select_unlabeled(1, Rules(threshold=0.0), table)
    assert selection(scored)["selected"] == ["un_001", "un_003"]
    assert selection(scored)["left_out"] == dict.fromkeys(["un_000", "un_002"], "not in the table of scores")
    assert "2 of 4 unlabeled cases" in str(summary)


@pytest.fixture
def deleted(tiny_2d: Path) -> Any:
    """Takes images out of imagesUn for the time of a test."""
    images = tiny_2d.parents[2] / "nnUNet_raw" / "Dataset001_Tiny" / "imagesUn"
    kept = images.with_name("kept")
    kept.mkdir()

    def delete(*cases: str) -> None:
        for case in cases:
            (path,) = images.glob(f"{case}_0000.*")
            path.rename(kept / path.name)

    yield delete
    for path in kept.iterdir():
        path.rename(images / path.name)
    kept.rmdir()


def test_a_case_that_was_deleted_after_it_was_scored_is_left_out(scored: Path, deleted: Callable[..., None]) -> None:
    """Its preprocessed image may still be there, as on a machine that holds no others."""
    select_unlabeled(1, Rules(top=1.0))
    deleted("un_002")
    select_unlabeled(1, Rules(top=1.0), overwrite=True)
    assert selection(scored)["selected"] == ["un_000", "un_001", "un_003"]
    assert selection(scored)["left_out"] == {"un_002": "no longer in imagesUn"}
    assert (scored / "nnUNetPlans_2d_unlabeled" / "un_002.b2nd").is_file()
    assert unlabeled_cases(scored) == ["un_000", "un_001", "un_003"]


def test_images_that_came_or_broke_after_the_scores_are_left_out_and_told(
    scored: Path, deleted: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    images = scored.parents[1] / "nnUNet_raw" / "Dataset001_Tiny" / "imagesUn"
    deleted("un_000")
    added = [images / f"un_{name}_0000.png" for name in ("new", "bad")]
    index = scored / "nnUNetPlans_2d_unlabeled.jsonl"
    before = index.read_text()
    try:
        for path in added:
            shutil.copy(images / "un_001_0000.png", path)
        line = {"case": "un_bad", "sources": [], "settings": "", "shape": None, "error": "holds NaN"}
        index.write_text(f"{before}{json.dumps(line)}\n")
        capsys.readouterr()
        summary = select_unlabeled(1, Rules(top=1.0))
        screen_unlabeled(1, output=scored / "screen.html", num_processes=1, progress=False)
    finally:
        index.write_text(before)
        for path in [*added, scored / "screen.html"]:
            path.unlink(missing_ok=True)
    assert selection(scored)["left_out"] == {
        "un_000": "no longer in imagesUn",
        "un_bad": "holds NaN",
        "un_new": "not in the table of scores",
    }
    assert "3 of 5 unlabeled cases" in str(summary)
    note = "note: 1 unlabeled case(s) (un_new) have no score; run `nnunet_semi score` again"
    assert capsys.readouterr().err.splitlines() == [note] * 2


def test_lists_alone_need_no_scores(tiny_2d: Path, tmp_path: Path) -> None:
    bad, good = tmp_path / "bad.txt", tmp_path / "good.txt"
    bad.write_text("un_001\n")
    good.write_text("un_000\nun_001\nun_002\n")
    picture = tiny_2d.with_name("unlabeled_final.png")
    picture.write_bytes(b"of another selection")
    try:
        summary = select_unlabeled(1, Rules(exclude=bad, include=good))
        assert selection(tiny_2d.parent)["selected"] == ["un_000", "un_002"]
        reasons = {"un_001": f"excluded by {bad}", "un_003": f"not in {good}"}
        assert selection(tiny_2d.parent)["left_out"] == reasons
        assert str(summary).endswith("unlabeled_final.json: 2 of 4 unlabeled cases") and not picture.exists()
        with pytest.raises(UserError, match="holds another selection"):
            select_unlabeled(1, Rules(exclude=bad))
        with pytest.raises(EnvironmentNotReady, match="no table of scores"):
            select_unlabeled(1, Rules(exclude=bad, max=1))
    finally:
        tiny_2d.with_name("unlabeled_final.json").unlink(missing_ok=True)


def test_a_name_is_not_taken_for_a_formula(tmp_path: Path) -> None:
    rows = [row("a$^$", 0.5), row("b", 0.4)]
    source = ImageSource(tmp_path, None)
    draw_selection(tmp_path / "picture.png", rows, Rules(top=0.5)(rows), Rules(top=0.5), source)
    assert (tmp_path / "picture.png").is_file()


def test_what_is_missing_is_told(tiny_2d: Path, tmp_path: Path) -> None:
    with pytest.raises(EnvironmentNotReady, match="no table of scores for Dataset001_Tiny"):
        select_unlabeled(1, Rules(top=0.5))
    with pytest.raises(EnvironmentNotReady, match=r"none.csv does not exist; make a table with `nnunet_semi score`"):
        select_unlabeled(1, Rules(top=0.5), tmp_path / "none.csv")
    with pytest.raises(EnvironmentNotReady, match=r"is a folder; make a table with `nnunet_semi score`"):
        select_unlabeled(1, Rules(top=0.5), tmp_path)


def test_a_table_of_another_dataset_is_refused(scored: Path) -> None:
    table = newest_table("Dataset001_Tiny")
    assert table is not None
    path = table.with_suffix("") / "provenance.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "dataset": "Dataset002_Other", "plans": "Others"}))
    with pytest.raises(UserError, match="holds the scores of Dataset002_Other, not of Dataset001_Tiny"):
        select_unlabeled(1, Rules(top=0.5))


def test_a_table_with_other_cases_is_refused(scored: Path, tmp_path: Path) -> None:
    table = tmp_path / "mine.csv"
    write_table(table, [row("un_000", 0.5), row("tr_000", 0.9)])
    with pytest.raises(UserError, match="names 1 case.s. that are not among the unlabeled ones .*tr_000"):
        select_unlabeled(1, Rules(top=0.5), table)
    assert not (scored / "unlabeled_final.json").exists()


# --- training obeys ---


def write_selection(folder: Path, content: Any) -> None:
    (folder / "unlabeled_final.json").write_text(content if isinstance(content, str) else json.dumps(content))


def unlabeled_cases(folder: Path, cls: type = nnUNetTrainerCPS) -> list[str]:
    return list(make_trainer(cls, folder / "nnUNetPlans.json").unlabeled_dataset().identifiers)


@pytest.fixture
def folder(tiny_2d: Path) -> Any:
    yield tiny_2d.parent
    (tiny_2d.parent / "unlabeled_final.json").unlink(missing_ok=True)


@pytest.mark.parametrize("cls", [nnUNetTrainerCPS, nnUNetTrainerCPSCutMix])
def test_trainers_use_the_selected_cases_and_say_so(
    cls: type, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert len(unlabeled_cases(folder, cls)) == 4
    write_selection(folder, {"selected": ["un_003", "un_001"]})
    assert unlabeled_cases(folder, cls) == ["un_001", "un_003"]
    said = capsys.readouterr().out
    assert f"2 of 4 unlabeled cases in {folder}" in said and "chosen by" in said and "unlabeled_final.json" in said
    assert UNLABELED.findall(said) == ["4", "2"]  # what the report reads


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "cannot be read as JSON"),
        ("[]", "expected a JSON object"),
        ({"left_out": {}}, "has no list of case names as 'selected'"),
        ({"selected": "un_001"}, "has no list of case names as 'selected'"),
        ({"selected": []}, "selects no case"),
        ({"selected": ["un_001", "un_009", "tr_000"]}, "selects 2 case.s. that are not among the unlabeled .*tr_000"),
    ],
)
def test_a_damaged_selection_is_one_sentence(content: Any, said: str, folder: Path) -> None:
    write_selection(folder, content)
    with pytest.raises(UserError, match=said) as refusal:
        unlabeled_cases(folder)
    assert "unlabeled_final.json" in str(refusal.value)


def test_a_continued_training_goes_on_with_the_selection_it_began_with(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, deleted: Callable[..., None]
) -> None:
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    write_selection(folder, {"selected": ["un_000", "un_002"]})
    first = make_trainer(nnUNetTrainerCPS, folder / "nnUNetPlans.json", **SHORT)
    train(first)
    assert saved(first, "checkpoint_best.pth")[CHECKPOINT_KEY]["selection"] == {"selected": ["un_000", "un_002"]}
    write_selection(folder, {"selected": ["un_001"]})
    again = make_trainer(nnUNetTrainerCPS, folder / "nnUNetPlans.json", **SHORT)
    again.load_checkpoint(os.path.join(first.output_folder, "checkpoint_best.pth"))
    assert list(again.unlabeled_dataset().identifiers) == ["un_000", "un_002"]
    assert "has changed since" in capsys.readouterr().out
    assert unlabeled_cases(folder) == ["un_001"]  # a new training
    deleted("un_000")
    assert list(again.unlabeled_dataset().identifiers) == ["un_002"]
    assert "as when this training began but for un_000, deleted since" in capsys.readouterr().out
    assert again.selection == {"selected": ["un_000", "un_002"]}
    deleted("un_002")
    with pytest.raises(UserError, match="the cases that this training began with are gone .un_000, un_002.; begin"):
        again.unlabeled_dataset()
