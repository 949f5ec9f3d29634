"""``set`` on what a vm leaves behind, on a live inn: the name and labels of a checkpoint, the labels of a backup."""

from __future__ import annotations

from pathlib import Path

import pytest
from live_inn import LiveInn

pytestmark = [pytest.mark.guest, pytest.mark.root]


def test_checkpoints_and_backups_are_renamed_and_labelled(inn: LiveInn, tmp_path: Path) -> None:
    inn("vm", "create", "kept", "--memory", "64M", "--disk", "1M", "--no-start")
    inn("checkpoint", "create", "kept", "first", "--label", "why=test")
    inn("checkpoint", "create", "kept", "second")
    inn("checkpoint", "set", "kept", "first", "--name", "begin")
    renamed = inn.json("checkpoint", "show", "kept", "begin")
    assert (renamed["name"], renamed["labels"]) == ("kept/begin", {"why": "test"})
    inn.refused("checkpoint.not_found", "checkpoint", "show", "kept", "first")
    inn.refused("checkpoint.name_taken", "checkpoint", "set", "kept", "second", "--name", "begin")
    inn("checkpoint", "set", "kept", renamed["id"], "--no-labels")
    assert inn.json("checkpoint", "show", "kept", "begin")["labels"] == {}
    inn("checkpoint", "apply", "kept", "begin")

    inn("repository", "create", "shelf", "--path", str(tmp_path / "repository"))
    inn("backup", "create", "kept", "--repository", "shelf", "--label", "week=1")
    inn("backup", "set", "kept", "--label", "week=2", "--label", "keep=yes")
    (backup,) = inn.json("backup", "ls", "--label", "week=2")
    assert backup["labels"] == {"week": "2", "keep": "yes"}
    inn("backup", "verify", backup["id"])
    inn("backup", "set", backup["name"], "--no-labels")
    assert inn.json("backup", "show", backup["id"])["labels"] == {}
    inn("vm", "rm", "kept", "--with-disks")
    inn("repository", "rm", "shelf")
