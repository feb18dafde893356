"""The index of unlabeled cases survives what can happen to a file that is only appended to."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from nnunet_semi.unlabeled.index import FILES_OF_A_CASE, UnlabeledCase, UnlabeledIndex, describe_sources


def good(case: str, size: int = 1, settings: str = "s") -> UnlabeledCase:
    return UnlabeledCase(case, ((f"{case}_0000.png", size, 7),), settings, (1, 8, 9), None)


def bad(case: str, reason: str = "it is empty") -> UnlabeledCase:
    return UnlabeledCase(case, ((f"{case}_0000.png", 0, 7),), "s", None, reason)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "plans_2d_unlabeled.jsonl"


def write_files(folder: Path, *cases: str) -> None:
    folder.mkdir(exist_ok=True)
    for case in cases:
        for ending in FILES_OF_A_CASE:
            (folder / (case + ending)).touch()


def test_an_index_that_does_not_exist_is_empty(path: Path) -> None:
    index = UnlabeledIndex.load(path)
    assert (index.good, index.bad, index.shapes, index.skip_bad, index.failure) == ([], {}, {}, False, None)
    assert not path.exists()


def test_the_folder_lies_beside_the_file(path: Path) -> None:
    assert UnlabeledIndex(path).folder == path.parent / "plans_2d_unlabeled"


def test_what_was_added_is_loaded(path: Path) -> None:
    index = UnlabeledIndex(path)
    for case in (good("b"), bad("c"), good("a")):
        index.add(case)
    loaded = UnlabeledIndex.load(path)
    assert loaded.cases == index.cases
    assert loaded.good == ["a", "b"]
    assert loaded.bad == {"c": "it is empty"}
    assert loaded.shapes == {"a": (1, 8, 9), "b": (1, 8, 9)}


def test_the_last_line_of_a_case_counts(path: Path) -> None:
    index = UnlabeledIndex(path)
    index.add(good("a", size=1))
    index.add(good("a", size=2))
    assert UnlabeledIndex.load(path).cases["a"].sources == (("a_0000.png", 2, 7),)


def test_a_choice_is_remembered_and_not_repeated(path: Path) -> None:
    index = UnlabeledIndex(path)
    index.note(skip_bad=True)
    index.note(skip_bad=True)
    assert len(path.read_text().splitlines()) == 1
    assert UnlabeledIndex.load(path).skip_bad
    index.note(skip_bad=False, failure="no space")
    loaded = UnlabeledIndex.load(path)
    assert (loaded.skip_bad, loaded.failure) == (False, "no space")


def test_a_torn_last_line_costs_only_its_case(path: Path) -> None:
    index = UnlabeledIndex(path)
    index.add(good("a"))
    index.add(good("b"))
    whole = path.read_bytes()
    for cut in range(whole.index(b"\n") + 1, len(whole) - 1):
        path.write_bytes(whole[:cut])
        assert UnlabeledIndex.load(path).good == ["a"]


def test_a_line_after_a_torn_one_counts(path: Path) -> None:
    index = UnlabeledIndex(path)
    index.add(good("a"))
    index.add(good("b"))
    path.write_bytes(path.read_bytes()[:-20])
    index = UnlabeledIndex.load(path)
    index.add(good("c"))
    assert UnlabeledIndex.load(path).good == ["a", "c"]


@pytest.mark.parametrize("line", ["", "\0\0\0", "[]", "7", "{}", '{"case": "x"}', '{"case": 3, "sources": []}', "ÿ"])
def test_lines_of_nonsense_are_passed_over_and_compacted_away(path: Path, line: str) -> None:
    index = UnlabeledIndex(path)
    index.add(good("a"))
    path.write_text(f"{line}\n{path.read_text()}{line}\n", encoding="utf-8")
    index = UnlabeledIndex.load(path)
    assert index.good == ["a"]
    index.compact()
    assert [json.loads(line).get("case") for line in path.read_text().splitlines()] == [None, "a"]


def test_a_case_name_is_never_a_path(path: Path) -> None:
    index = UnlabeledIndex(path)
    index.add(good("../a"))
    assert UnlabeledIndex.load(path).good == []


def test_compacting_keeps_a_line_for_each_case_and_the_choice(path: Path) -> None:
    index = UnlabeledIndex(path)
    index.note(skip_bad=True)
    for size in range(5):
        index.add(good("a", size))
        index.add(bad("b", f"reason {size}"))
    index.compact()
    assert len(path.read_text().splitlines()) == 3
    loaded = UnlabeledIndex.load(path)
    assert loaded.cases == index.cases and loaded.skip_bad


def test_compacting_what_is_compact_writes_nothing(path: Path) -> None:
    index = UnlabeledIndex(path)
    index.note(skip_bad=False)
    index.add(good("a"))
    before = path.stat().st_ino
    index.compact()
    UnlabeledIndex.load(path).compact()
    assert path.stat().st_ino == before


def test_a_removed_case_leaves_with_its_files_and_takes_no_others(path: Path) -> None:
    index = UnlabeledIndex(path)
    index.add(good("a"))
    index.add(good("b"))
    write_files(index.folder, "a", "b", "a_2")
    index.remove("a")
    index.compact()
    assert UnlabeledIndex.load(path).good == ["b"]
    assert sorted(os.listdir(index.folder)) == sorted(c + e for c in ("b", "a_2") for e in FILES_OF_A_CASE)


def test_a_removed_case_stays_away_without_a_choice_in_the_file(path: Path) -> None:
    index = UnlabeledIndex(path)
    index.add(good("a"))
    index.add(good("b"))
    index = UnlabeledIndex.load(path)
    index.remove("b")
    index.compact()
    assert UnlabeledIndex.load(path).good == ["a"]


@pytest.mark.parametrize("ending", FILES_OF_A_CASE)
def test_a_good_case_without_all_its_files_is_missed(path: Path, ending: str) -> None:
    index = UnlabeledIndex(path)
    for case in (good("a"), good("b"), bad("c")):
        index.add(case)
    assert index.missing_files() == ["a", "b"]
    write_files(index.folder, "a", "b")
    assert index.missing_files() == []
    (index.folder / f"a{ending}").unlink()
    assert index.missing_files() == ["a"]


def test_keeping_only_some_cases_changes_no_file(path: Path) -> None:
    index = UnlabeledIndex(path)
    index.add(good("a"))
    index.add(good("b"))
    index.keep_only(["b", "z"])
    assert index.good == ["b"]
    assert UnlabeledIndex.load(path).good == ["a", "b"]


def test_sources_tell_name_size_and_time(tmp_path: Path) -> None:
    file = tmp_path / "a_0000.png"
    file.write_bytes(b"12345")
    os.utime(file, ns=(1, 1234567890123456789))
    (tmp_path / "dead").symlink_to(tmp_path / "nothing")
    described = describe_sources([str(file), str(tmp_path / "dead")])
    assert described == (("a_0000.png", 5, 1234567890123456789), ("dead", -1, -1))


def test_any_file_name_survives(path: Path) -> None:
    name = os.fsdecode(b'sch\xf6n \xe2\x80\x94 "x"')
    index = UnlabeledIndex(path)
    index.add(UnlabeledCase(name, ((name, 1, 2),), "s", (1, 2, 3), None))
    assert UnlabeledIndex.load(path).cases == index.cases
