"""Every way in which a source can be broken: one clear message that names the file, and nothing written."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from conversion_breakages import BROKEN, FUGC, IMAGE, MAKERS, MASK
from conversion_sources import (
    QUIET,
    make_fugc,
    nnunet_folders,  # noqa: F401
    raw,
)
from nnunet_semi.cli import main
from nnunet_semi.conversion import convert
from nnunet_semi.dataset_conversion.plan import SourceProblems
from nnunet_semi.errors import WrongUse


@pytest.mark.parametrize(("challenge", "kind"), BROKEN)
def test_broken_sources_are_refused_with_the_file_and_the_reason(challenge: str, kind: str, tmp_path: Path) -> None:
    root = MAKERS[challenge](tmp_path / "source")
    change, said = BROKEN[challenge, kind]
    change(root)
    with pytest.raises(SourceProblems) as refusal:
        convert(challenge, root, verify=False, num_processes=1, progress=False, log=QUIET.log)
    message = str(refusal.value)
    assert [part for part in said if part not in message] == [], message
    assert "expected" in message and str(root) in message
    assert os.listdir(raw()) == []


@pytest.mark.parametrize("challenge", MAKERS)
def test_the_same_sources_unbroken_are_converted(challenge: str, tmp_path: Path) -> None:
    root = MAKERS[challenge](tmp_path / "source")
    done = convert(challenge, root, verify=False, num_processes=1, progress=False, log=QUIET.log)
    assert done.counts["labeled"] > 0 and os.listdir(raw()) == [done.folder.name]


@pytest.mark.parametrize("challenge", MAKERS)
def test_a_source_that_is_not_there_is_wrong_use(challenge: str, tmp_path: Path) -> None:
    (tmp_path / "archive.zip").write_bytes(b"PK")
    with pytest.raises(WrongUse, match="which does not exist"):
        convert(challenge, tmp_path / "nowhere")
    with pytest.raises(WrongUse, match="a file; unpack it"):
        convert(challenge, tmp_path / "archive.zip")


def test_the_command_line_tells_problems_and_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = make_fugc(tmp_path / "source")
    (root / MASK).unlink()
    (root / f"{FUGC}/images/0002.png").write_bytes(b"no picture")
    assert main(["convert", "fugc2025", str(root), "-np", "1", "-q"]) == 1
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert out == ""
    assert lines[0] == f"nnunet_semi convert: 2 problems in {root}; nothing was written:"
    assert lines[1].startswith(f"  {IMAGE}: got no label for it; expected labels/0001")
    assert lines[2].startswith(f"  {FUGC}/images/0002.png: got a file that cannot be read")


def test_at_least_thirty_kinds_of_broken_input_are_tested() -> None:
    assert len(BROKEN) >= 30
