import json
import os
import stat

import pytest

from nnunet_semi.storage import atomic_path, remove_unfinished, write_json


def test_file_appears_whole_when_the_block_ends(tmp_path):
    target = tmp_path / "case.nii.gz"
    with atomic_path(target) as temporary:
        assert temporary.parent == tmp_path and temporary.name.startswith(".") and temporary.name.endswith(".nii.gz")
        temporary.write_bytes(b"new")
        assert not target.exists()
    assert target.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_failure_keeps_the_old_file_and_removes_the_new(tmp_path, error):
    target = tmp_path / "checkpoint.pth"
    target.write_bytes(b"old")
    with pytest.raises(error), atomic_path(target) as temporary:
        temporary.write_bytes(b"ne")
        raise error
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_permissions_are_those_of_the_old_file_or_of_open(tmp_path):
    mode = {name: stat.S_IMODE(_written(tmp_path / name).stat().st_mode) for name in ("old", "new", "plain")}
    assert mode["old"] == 0o640
    assert mode["new"] == mode["plain"]


def _written(path):
    if path.name == "plain":
        path.write_text("")
        return path
    if path.name == "old":
        path.write_text("")
        path.chmod(0o640)
    with atomic_path(path) as temporary:
        temporary.write_text("x")
    return path


def test_link_is_followed(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    real, link = tmp_path / "elsewhere" / "plans.json", tmp_path / "plans.json"
    os.symlink(real, link)
    write_json(link, {"a": [1]})
    assert link.is_symlink() and json.loads(real.read_text()) == {"a": [1]}


def test_only_what_killed_writers_of_these_names_left_is_removed(tmp_path):
    with atomic_path(tmp_path / "checkpoint_best.pth") as temporary:
        left = temporary.name
        other = left.replace("best.pth", "best.txt")
    stays = ["checkpoint_best.pth", "0123abcd_checkpoint_best.pth", ".mine_checkpoint_best.pth", other]
    for name in (left, *stays):
        (tmp_path / name).touch()
    remove_unfinished(tmp_path, "checkpoint_*.pth")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(stays)
    remove_unfinished(tmp_path / "missing", "*")


def test_missing_folder_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "missing" / "file"):
        pass


def test_content_that_is_no_json_leaves_nothing(tmp_path):
    with pytest.raises(TypeError):
        write_json(tmp_path / "plans.json", {"a": object()})
    assert list(tmp_path.iterdir()) == []
