"""The same work for many cases: results, order of errors, and workers that are killed."""

from __future__ import annotations

import os
import signal

import pytest

from nnunet_semi import pool
from nnunet_semi.cores import usable_cores
from nnunet_semi.errors import UserError, WrongUse
from nnunet_semi.pool import for_each, number_of_processes


def square(number):
    return number * number, os.getpid()


def fail_at_three(number):
    if number == 3:
        raise ValueError("three")
    return number


def die_at_three(number):
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


@pytest.mark.parametrize("head_start", [0.0, 100.0])
@pytest.mark.parametrize("processes", [1, 2])
def test_every_task_comes_back_once_with_its_result(monkeypatch, head_start, processes):
    monkeypatch.setattr(pool, "HEAD_START", head_start)
    found = list(for_each(square, range(7), processes, "squares"))
    assert sorted((task, result[0]) for task, result in found) == [(number, number**2) for number in range(7)]
    here = {process == os.getpid() for _, (_, process) in found}
    assert here == {processes == 1 or head_start > 0}


def test_no_tasks_are_no_work():
    assert list(for_each(square, [], None, "nothing")) == []


@pytest.mark.parametrize("processes", [1, 2])
def test_exceptions_of_the_work_arrive(monkeypatch, processes):
    monkeypatch.setattr(pool, "HEAD_START", 0.0)
    with pytest.raises(ValueError, match="three"):
        list(for_each(fail_at_three, range(5), processes, "fail"))


def test_a_killed_worker_is_a_sentence(monkeypatch):
    monkeypatch.setattr(pool, "HEAD_START", 0.0)
    with pytest.raises(UserError, match="a worker process was killed, most likely because memory ran out"):
        list(for_each(die_at_three, range(5), 2, "die"))


@pytest.mark.parametrize(
    ("limit", "cores"),
    [("200000 100000", 2), ("150000 100000", 2), ("10000 100000", 1), ("max 100000", 64), (None, 64)],
)
def test_a_containers_limit_counts(monkeypatch, tmp_path, limit, cores):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    if limit is not None:
        (tmp_path / "sys" / "fs" / "cgroup").mkdir(parents=True)
        (tmp_path / "sys" / "fs" / "cgroup" / "cpu.max").write_text(f"{limit}\n")
    assert usable_cores(tmp_path) == cores


def test_processes_by_default_are_nnunets_and_at_most_one_per_core(monkeypatch):
    monkeypatch.setattr(pool, "usable_cores", lambda: 4)
    monkeypatch.delenv("nnUNet_def_n_proc", raising=False)
    assert number_of_processes(None) == 4
    monkeypatch.setenv("nnUNet_def_n_proc", "3")
    assert number_of_processes(None) == 3
    assert number_of_processes(9) == 9
    with pytest.raises(WrongUse, match="got 0 processes"):
        number_of_processes(0)
