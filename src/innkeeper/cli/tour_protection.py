"""Going back to a checkpoint, and a guest that is backed up, lost and restored."""

from __future__ import annotations

import shutil
from typing import Any

from innkeeper.cli.tour_stage import GUESTS, LABEL, REPOSITORY, Stage, require
from innkeeper.model import requests as ask
from innkeeper.model.sizes import format_size

_DATA_MIB = 8
_CHANGE_KIB = 128


def checkpoint(stage: Stage) -> None:
    """Take one, write, apply it: the guest is as it was."""
    guest = GUESTS[2]
    stage.sh(guest, "echo before > /note; sync")
    with stage.timed(f"checkpoint 'before-upgrade' of {guest} taken"):
        wish = ask.CheckpointCreate(name="before-upgrade")
        stage.finish(stage.client.checkpoints.create(guest, wish))
    stage.sh(guest, "echo after > /note; echo damage > /damage; sync")
    stage.say(f"{guest} is changed: /note says {stage.sh(guest, 'cat /note')!r}")
    with stage.timed("checkpoint applied, and the guest is ready again"):
        stage.finish(stage.client.checkpoints.apply(guest, "before-upgrade"))
        stage.ready(guest)
    note = stage.sh(guest, "cat /note; ls /damage 2>/dev/null || true")
    require(note == "before", f"{guest} is not back: /note says {note!r}")
    stage.say(f"{guest} is back: /note says {note!r} and the damage is gone")


def _backup(stage: Stage) -> dict[str, Any]:
    wish = ask.BackupCreate(vms=[GUESTS[2]], repository=REPOSITORY, labels={LABEL: "yes"})
    task = stage.finish(stage.client.backups.create(wish))
    (made,) = task.result["backups"]
    point = stage.client.backups.show(made["id"])
    stage.say(
        f"{point.name}: {format_size(point.logical_bytes)} of data, read {format_size(point.read_bytes)}, "
        f"stored {format_size(point.stored_bytes)}, {point.consistency}-consistent ({point.duration_s:.2f} s)"
    )
    return {"id": point.id, "read": point.read_bytes, "stored": point.stored_bytes}


def backup(stage: Stage) -> None:
    """Back up, change a little, back up, lose the guest, restore it, compare."""
    guest = GUESTS[2]
    place = stage.session.paths.state / "tour-repository"
    stage.client.repositories.create(ask.RepositoryCreate(name=REPOSITORY, path=str(place), labels={LABEL: "yes"}))
    stage.sh(guest, f"dd if=/dev/urandom of=/data bs=1M count={_DATA_MIB} 2>/dev/null; sync")
    first = _backup(stage)
    change = f"dd if=/dev/urandom of=/data bs=1k seek=64 count={_CHANGE_KIB} conv=notrunc 2>/dev/null; sync"
    stage.sh(guest, change)
    checksum = stage.sh(guest, "sha256sum /data")
    stage.say(f"{guest} changed {_CHANGE_KIB} KiB")
    second = _backup(stage)
    require(second["read"] < first["read"] / 2, "the second backup read as much as the first")
    with stage.timed(f"{guest} and its disk are lost"):
        stage.finish(stage.client.vms.rm(guest, with_disks=True, force=True))
    with stage.timed(f"{guest} restored from its last backup"):
        stage.finish(stage.client.backups.restore(second["id"], ask.BackupRestore(as_name=guest)))
    with stage.timed(f"{guest} booted"):
        stage.finish(stage.client.vms.start(guest))
        stage.ready(guest)
    restored = stage.sh(guest, "sha256sum /data")
    require(restored == checksum, "the restored data differ", cause=f"before {checksum}, after {restored}")
    stage.say(f"same checksum inside the guest before and after: {checksum.split()[0][:16]}…")


def clear_backups(stage: Stage) -> None:
    """Remove what an earlier tour backed up, and its repository."""
    mine = [one for one in stage.client.repositories.ls(LABEL) if one.name == REPOSITORY]
    for repository in mine:
        for point in stage.client.backups.ls():
            if point.repository_id == repository.id:
                stage.finish(stage.client.backups.rm(point.id))
        stage.client.repositories.rm(repository.id)
    shutil.rmtree(stage.session.paths.state / "tour-repository", ignore_errors=True)
