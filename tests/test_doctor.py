"""Each fact of doctor, in order and out of order, and what the command makes of them."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from nnunet_semi import discovery, doctor, plugin_trainer
from nnunet_semi.cli import main
from nnunet_semi.doctor import Fact, folders, lookup, machine, software
from nnunet_semi.registry import TRAINERS

GB = 10**9


# --- folders ---


def test_unset_folder_fails_and_names_the_remedy() -> None:
    (fact,) = folders.folder("nnUNet_raw")
    assert fact.status == "FAIL" and "not set" in fact.text and "nnunet_semi init" in fact.remedy


@pytest.mark.parametrize("quote", ['"', "'"])
def test_folder_quoted_by_accident_fails(quote: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nnUNet_raw", f"{quote}{tmp_path}{quote}")
    (fact,) = folders.folder("nnUNet_raw")
    assert fact.status == "FAIL" and "quotation marks" in fact.text


def test_missing_folder_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "gone"))
    (fact,) = folders.folder("nnUNet_results")
    assert fact.status == "FAIL" and "gone" in fact.text and fact.remedy


@pytest.mark.parametrize(("variable", "status"), [("nnUNet_raw", "warn"), ("nnUNet_results", "FAIL")])
def test_read_only_folder_is_told(variable: str, status: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setenv(variable, str(tmp_path))
    monkeypatch.setattr(Path, "touch", refuse)
    fact = folders.folder(variable)[0]
    assert fact.status == status and "not writable: Permission denied" in fact.text


@pytest.mark.parametrize(("free", "status"), [(100 * GB, "ok"), (5 * GB, "warn"), (GB, "FAIL")])
def test_free_disk_is_told(free: int, status: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nnUNet_results", str(tmp_path))
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=free))
    folder, disk = folders.folder("nnUNet_results")
    assert (folder.status, disk.status) == ("ok", status)
    assert list(tmp_path.iterdir()) == []


# --- machine ---


@pytest.mark.parametrize(
    ("available", "limit", "status"),
    [(32, None, "ok"), (32, "max", "ok"), (32, str(4 * GB), "warn"), (4, None, "warn")],
)
def test_memory_within_the_limit_of_a_container(
    available: int, limit: str | None, status: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text(f"MemTotal: 1 kB\nMemAvailable: {available * GB // 1024} kB\n")
    if limit is not None:
        (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
        (tmp_path / "sys/fs/cgroup/memory.max").write_text(f"{limit}\n")
    free = machine._available_memory(tmp_path)
    monkeypatch.setattr(machine, "_available_memory", lambda: free)
    (fact,) = machine.memory()
    assert fact.status == status


def test_memory_stays_unmentioned_where_the_system_does_not_tell(tmp_path: Path) -> None:
    assert machine._available_memory(tmp_path) is None


@pytest.mark.parametrize(("size", "status"), [(64 * 2**20, "warn"), (8 * GB, "ok")])
def test_small_shared_memory_is_a_warning(size: int, status: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "is_dir", lambda path: True)
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(total=size))
    (fact,) = machine.shared_memory()
    assert fact.status == status and ("--shm-size" in fact.remedy) == (status == "warn")


def test_compilation_is_tried_where_nnunet_would_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    def compilation() -> machine.Fact:
        return machine.compilation()[0]

    monkeypatch.delenv("nnUNet_compile", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert compilation().status == "ok" and "not used" in compilation().text
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("nnunet_semi.compilation.compile_problem", lambda device: None)
    assert compilation().status == "ok" and "was compiled" in compilation().text
    monkeypatch.setattr("nnunet_semi.compilation.compile_problem", lambda device: "no g++")
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert compilation().status == "warn" and "no g++" in compilation().text
    assert "a C compiler" in compilation().remedy and "nnUNet_compile=f" in compilation().remedy
    monkeypatch.setenv("nnUNet_compile", "f")
    assert compilation().status == "ok"


@pytest.mark.parametrize(("workers", "status"), [("1", "ok"), ("64", "warn")])
def test_more_workers_than_cores_is_a_warning(workers: str, status: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nnUNet_n_proc_DA", workers)
    monkeypatch.setattr("os.cpu_count", lambda: 64)
    for module in (machine, plugin_trainer):
        monkeypatch.setattr(module, "usable_cores", lambda: 2)
    (fact,) = machine.cores()
    assert fact.status == status and ("nnUNet_n_proc_DA=1" in fact.remedy) == (status == "warn")


# --- software ---


@pytest.mark.parametrize(("version", "status"), [((3, 9), "warn"), ((3, 10), "ok"), ((3, 13), "ok"), ((3, 14), "warn")])
def test_python_version(version: tuple[int, int], status: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "version_info", (*version, 0))
    assert software.python()[0].status == status


@pytest.mark.parametrize(("version", "status"), [("2.8.3", "ok"), ("2.8", "ok"), ("2.7.1", "FAIL"), ("2.10.0", "FAIL")])
def test_other_versions_of_nnunet_fail(version: str, status: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(software, "version_of", lambda package: version)
    assert software.nnunetv2()[0].status == status


def test_missing_nnunet_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    (fact,) = software.nnunetv2()
    assert fact.status == "FAIL" and "pip install" in fact.remedy


def test_second_copy_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "nnunetv2").mkdir()
    (tmp_path / "nnunetv2" / "__init__.py").touch()
    assert [fact.status for fact in software.nnunetv2()] == ["ok"]
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    first, second = software.nnunetv2()
    assert first.status == "ok"
    assert second.status == "warn" and str(tmp_path / "nnunetv2") in second.text


def test_a_torch_that_nnunet_excludes_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", "2.9.1+cu128")
    assert software.torch()[0].status == "FAIL"


def test_no_gpu_is_a_warning_that_names_the_flag(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    fact = software.torch()[1]
    assert fact.status == "warn" and "-device cpu" in fact.remedy


def test_hook_by_the_start_up_line() -> None:
    (fact,) = software.hook()
    assert fact.status == "ok" and "start-up line" in fact.text


def test_hook_switched_off_fails_unless_the_variable_was_set_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NNUNET_SEMI_NO_HOOK", "1")
    monkeypatch.delenv(discovery.VARIABLE)
    (fact,) = software.hook()
    assert fact.status == "FAIL" and "NNUNET_SEMI_NO_HOOK" in fact.text and "nnunet_semi env" in fact.remedy
    monkeypatch.setenv(discovery.VARIABLE, discovery.extended_search_path())
    (fact,) = software.hook()
    assert fact.status == "ok" and "in this shell" in fact.text


def test_wrong_entries_of_the_search_path_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own, copy = tmp_path / "own", tmp_path / "copy"
    own.mkdir()
    copy.mkdir()
    (copy / "nnunet_semi_trainers.py").touch()
    entries = [str(own), str(copy), f'"{tmp_path}"', str(discovery.hook_folder())]
    monkeypatch.setenv(discovery.VARIABLE, os.pathsep.join(entries))
    second_copy, quoted = software.search_folders()
    assert second_copy.status == quoted.status == "warn"
    assert str(copy) in second_copy.text and f'"{tmp_path}"' in quoted.text


def test_look_up_asks_nnunet_itself() -> None:
    answers, problem = lookup.look_up([*TRAINERS, "nnUNetTrainer_3epochs", "nnUNetTrainerNobodyWrote"])
    assert problem == ""
    assert "Could not find requested" in answers.pop("nnUNetTrainerNobodyWrote")
    assert {name: answer.split(" in ")[0] for name, answer in answers.items()} == dict.fromkeys(answers, "found")
    assert set(TRAINERS) < set(answers)


def test_look_up_says_when_the_process_dies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookup, "_SCRIPT", "import sys; sys.exit('no way')")
    assert lookup.look_up(["a"]) == ({}, "nnU-Net's look-up ended with code 1: no way")
    monkeypatch.setattr(lookup, "_SCRIPT", "import time; time.sleep(60)")
    assert lookup.look_up(["a"], timeout=0.2)[1].endswith("gave no answer within 0 s")


def test_every_trainer_has_a_fact(monkeypatch: pytest.MonkeyPatch) -> None:
    one = next(iter(TRAINERS))
    monkeypatch.setattr(software, "look_up", lambda names: ({one: "found in here"}, "the process died"))
    facts = {fact.name: fact for fact in software.trainers()}
    assert set(TRAINERS) < set(facts)
    assert [name for name, fact in facts.items() if fact.status == "ok"] == [one]
    assert all(fact.text == "the process died" and fact.remedy for name, fact in facts.items() if name != one)


# --- the command ---


def facts_are(monkeypatch: pytest.MonkeyPatch, *facts: Fact) -> None:
    """Lets doctor find exactly these."""
    for floor in ("SOFTWARE_FACTS", "FOLDER_FACTS", "MACHINE_FACTS"):
        monkeypatch.setattr(doctor, floor, [])
    monkeypatch.setattr(doctor, "SOFTWARE_FACTS", [lambda: list(facts)])


FINE = Fact("a", "ok", "fine")
ODD = Fact("b", "warn", "odd", "do this")
BROKEN = Fact("c", "FAIL", "broken", "do that")


@pytest.mark.parametrize(("facts", "code"), [([FINE, ODD], 0), ([FINE, ODD, BROKEN], 3)])
def test_exit_code_3_if_anything_fails(facts: list[Fact], code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    facts_are(monkeypatch, *facts)
    assert main(["doctor"]) == code


def test_a_line_per_fact(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    facts_are(monkeypatch, FINE, ODD, BROKEN)
    main(["doctor"])
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines == ["ok a fine", "warn b odd -> do this", "FAIL c broken -> do that", "1 ok, 1 warn, 1 FAIL"]
    main(["doctor", "-q"])
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines == ["warn b odd -> do this", "FAIL c broken -> do that", "1 ok, 1 warn, 1 FAIL"]


def test_json_for_scripts(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    facts_are(monkeypatch, FINE, BROKEN)
    assert main(["doctor", "--json"]) == 3
    assert json.loads(capsys.readouterr().out) == [vars(FINE), vars(BROKEN)]


def test_a_check_that_fails_itself_does_not_hide_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def clumsy() -> list[Fact]:
        raise ValueError("oops")

    facts_are(monkeypatch)
    monkeypatch.setattr(doctor, "FOLDER_FACTS", [clumsy, lambda: [FINE]])
    assert doctor.diagnose() == [Fact("clumsy", "warn", "could not be looked at: ValueError: oops"), FINE]
