"""A disk's snapshots on a real inn: a tree with names, back to one of them, clones, and what the disk's guest sees."""

from __future__ import annotations

import pytest
from live_inn import SMALL, LiveInn

pytestmark = [pytest.mark.guest, pytest.mark.root]
DISK = "$(ls /dev/vd? | tail -1)"


def put(inn: LiveInn, word: str) -> None:
    inn.sh("shots", f"echo {word} | dd of={DISK} bs=64k conv=sync,fsync 2>/dev/null")


def seen(inn: LiveInn) -> str:
    return inn.sh("shots", f"echo 3 > /proc/sys/vm/drop_caches; head -n 1 {DISK}")


def tree(inn: LiveInn, disk: str) -> dict[str, str | None]:
    """name -> name of the one before."""
    found = inn.json("disk", "snapshots", disk)
    names = {each["id"]: each["name"] for each in found}
    return {each["name"]: names.get(each["parent_id"]) for each in found}


def test_a_disk_goes_back_and_on(inn: LiveInn) -> None:
    inn("disk", "create", "book", "--size", "64M")
    inn("vm", "create", "shots", *SMALL, "--wait", "ready")
    inn("disk", "attach", "book", "shots")
    for word in ("one", "two"):
        put(inn, word)
        inn("disk", "snapshot", "book", word)
    inn.refused("disk.in_use", "disk", "revert", "book", "one")
    inn("checkpoint", "create", "shots", "point")
    inn("disk", "detach", "book")
    inn.refused("snapshot.not_found", "disk", "revert", "book", "zero")
    inn("disk", "revert", "book", "one")
    inn("disk", "attach", "book", "shots")
    assert seen(inn) == "one"
    put(inn, "three")
    inn("disk", "snapshot", "book", "three")
    inn("disk", "clone", "book", "copy", "--snapshot", "two")
    assert tree(inn, "book") == {"one": None, "two": "one", "shots/point": "two", "three": "one"}
    found = {each["name"]: each for each in inn.json("disk", "snapshots", "book")}
    assert found["two"]["clone_ids"] == [inn.json("disk", "show", "copy")["id"]]
    assert [name for name, each in found.items() if each["current"]] == ["three"]
    assert found["three"]["changed_bytes"] == 64 << 10
    assert "copy" in inn("disk", "snapshots", "book")
    inn("checkpoint", "rm", "shots", "point")
    inn("disk", "snapshot", "book", "one", "--rm")
    assert tree(inn, "book") == {"two": None, "three": None}
    inn("disk", "detach", "book")
    inn("disk", "attach", "copy", "shots")
    assert seen(inn) == "two"
    inn("vm", "rm", "shots", "--force", "--with-disks")
    inn("disk", "rm", "book")
