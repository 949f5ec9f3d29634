"""``inn fabric``: a pool by itself, without a daemon; for trying, repairing and serving disks to any NBD client.

Disks and snapshots are named by their ids. A pool is open in one process at a time: one that an inn serves is refused.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import click
import uvloop

from innkeeper.fabric.examine import examine
from innkeeper.fabric.keeper import listen
from innkeeper.fabric.layout import BLOCK
from innkeeper.fabric.pool import Pool
from innkeeper.fabric.pools import Pools
from innkeeper.fabric.report import report_text
from innkeeper.fabric.service import serve as serve_pool, serve_export
from innkeeper.model.problems import Conflict, Invalid, NotFound
from innkeeper.model.resources import new_id
from innkeeper.model.sizes import format_size, parse_size
from innkeeper.system.files import Io

PATH = click.Path(file_okay=False, path_type=Path)


@contextmanager
def _opened(path: Path, *, create: bool = False, background: bool = False) -> Iterator[Pool]:
    """The pool at ``path``. Raises ``NotFound`` (``pool.absent``) and what ``Pool.open`` raises."""
    if not create and not (path / "meta.db").exists():
        raise NotFound("pool.absent", f"there is no pool at {path}", remedy="make one: inn fabric init PATH")
    pool = Pool.open(Io(), str(path), background=background)
    try:
        yield pool
    finally:
        pool.close()


@contextmanager
def _listening(path: Path) -> Iterator[socket.socket]:
    """A listening socket at ``path`` while the context lasts; a dead one there is replaced.

    Raises ``Conflict`` (``socket.in_use``) and ``Invalid`` (``socket.path``).
    """
    with socket.socket(socket.AF_UNIX) as probe, suppress(OSError):
        probe.connect(str(path))
        raise Conflict("socket.in_use", f"something listens at {path} already", remedy="choose another --socket")
    try:
        listener = listen(path)
    except OSError as refused:
        raise Invalid(
            "socket.path", f"{path} cannot be a socket", cause=str(refused), remedy="choose another --socket"
        ) from refused
    try:
        yield listener
    finally:
        listener.close()
        path.unlink(missing_ok=True)


def _print(value: Any) -> None:
    click.echo(json.dumps(value, indent=2, default=str))


def _storage(pool: Pool) -> str:
    """The pool's storage for disks that are made here: its first, made when there is none."""
    known = pool.storage_ls()
    return str(known[0]["id"]) if known else str(pool.storage_create(new_id())["id"])


@click.group()
def fabric() -> None:
    """The storage fabric by itself."""


@fabric.command()
@click.argument("path", type=PATH)
def init(path: Path) -> None:
    """Make a pool in the directory PATH, or open the one that is there."""
    with _opened(path, create=True) as pool:
        _storage(pool)
        _print(pool.pool_show())


@fabric.command()
@click.argument("path", type=PATH)
def show(path: Path) -> None:
    """Show what a pool holds."""
    with _opened(path) as pool:
        _print(pool.pool_show())


@fabric.command()
@click.argument("path", type=PATH)
@click.option("--socket", "nbd", type=click.Path(path_type=Path), required=True, help="Serve NBD here.")
@click.option("--control", type=click.Path(path_type=Path), required=True, help="Take control operations here.")
def serve(path: Path, nbd: Path, control: Path) -> None:
    """Serve a pool until interrupted: its attachments over NBD, its operations as JSON lines."""
    with _opened(path, background=True) as pool, _listening(nbd) as listener:
        uvloop.run(serve_pool(Pools(pool), listener, control))


@fabric.command()
@click.argument("path", type=PATH)
@click.option("--repair", is_flag=True, help="Do what it says it would do.")
@click.option("--device", "devices", type=PATH, multiple=True, help="A directory of the pool that nothing remembers.")
@click.option("-o", "--output", type=click.Choice(["text", "json"]), default="text", show_default=True)
def check(path: Path, repair: bool, devices: tuple[Path, ...], output: str) -> None:
    """Verify all of a pool; tell what is damaged of each disk, and what --repair makes of it, before anything is done.

    What a repair replaces is kept beside it as NAME.broken-<n>. Exit status 1 when something is damaged.
    """
    if not path.is_dir():
        raise NotFound("pool.absent", f"there is no pool at {path}", remedy="make one: inn fabric init PATH")
    report = examine(Io(), str(path.absolute()), repair=repair, devices=[str(each.absolute()) for each in devices])
    if output == "json":
        _print(report.facts())
    else:
        click.echo(report_text(report))
    if report.problems or not (report.sound or repair):
        sys.exit(1)


@fabric.command()
@click.argument("path", type=PATH)
def sweep(path: Path) -> None:
    """Move the log into groups and take back dead space."""
    with _opened(path) as pool:
        pool.drain()
        _print(pool.sweep())


@fabric.group()
def disk() -> None:
    """Disks of a pool, by id."""


@disk.command("create")
@click.argument("path", type=PATH)
@click.option("--size", required=True, help="Such as 10G.")
@click.option("--id", "disk_id", help="Its UUID. [default: a new one]")
def disk_create(path: Path, size: str, disk_id: str | None) -> None:
    """Make an empty disk and print its id."""
    with _opened(path) as pool:
        click.echo(pool.disk_create(disk_id or new_id(), parse_size(size), _storage(pool))["id"])


@disk.command("ls")
@click.argument("path", type=PATH)
def disk_ls(path: Path) -> None:
    """List the disks and their snapshots."""
    with _opened(path) as pool:
        for each in pool.disk_ls():
            click.echo(f"{each['id']}  {format_size(each['size_bytes'])}")
            for snapshot in pool.snapshot_ls(each["id"]):
                click.echo(f"  snapshot {snapshot['id']}  {format_size(snapshot['size_bytes'])}")


@disk.command("rm")
@click.argument("path", type=PATH)
@click.argument("disk_id")
def disk_rm(path: Path, disk_id: str) -> None:
    """Remove a disk; its snapshots stay."""
    with _opened(path) as pool:
        pool.disk_rm(disk_id)


@disk.command("snapshot")
@click.argument("path", type=PATH)
@click.argument("disk_ids", nargs=-1, required=True)
def disk_snapshot(path: Path, disk_ids: tuple[str, ...]) -> None:
    """Snapshot disks at one instant and print the snapshots' ids."""
    with _opened(path) as pool:
        for snapshot in pool.snapshot_create({new_id(): disk_id for disk_id in disk_ids}):
            click.echo(snapshot["id"])


@disk.command("clone")
@click.argument("path", type=PATH)
@click.argument("snapshot_id")
def disk_clone(path: Path, snapshot_id: str) -> None:
    """Make a disk with a snapshot's content and print its id."""
    with _opened(path) as pool:
        click.echo(pool.disk_clone(new_id(), snapshot_id)["id"])


@disk.command("diff")
@click.argument("path", type=PATH)
@click.argument("snapshot_id")
@click.argument("base_snapshot_id", required=False)
def disk_diff(path: Path, snapshot_id: str, base_snapshot_id: str | None) -> None:
    """Print the 64 KiB blocks in which a snapshot differs from a base, or all that it holds."""
    with _opened(path) as pool:
        start: int | None = 0
        while start is not None:
            page = pool.changed_blocks(snapshot_id, base_snapshot_id, start)
            for block, kind, *_rest in page["blocks"]:
                click.echo(f"{block * BLOCK} {BLOCK} {kind}")
            start = page["next"]


@disk.command("export")
@click.argument("path", type=PATH)
@click.argument("subject")
@click.option("--socket", "nbd", type=click.Path(path_type=Path), required=True, help="Serve NBD here.")
@click.option("--writable", is_flag=True, help="Let the client write (disks only).")
def disk_export(path: Path, subject: str, nbd: Path, writable: bool) -> None:
    """Serve a disk, or a snapshot read-only, over NBD until interrupted; prints its URI."""
    with _opened(path, background=True) as pool, _listening(nbd) as listener:
        is_disk = any(each["id"] == subject for each in pool.disk_ls())
        if writable and not is_disk:
            raise Invalid("snapshot.read_only", "a snapshot cannot be written", remedy="clone it first: disk clone")
        attached = pool.attach(
            new_id(),
            disk_id=subject if is_disk else None,
            snapshot_id=None if is_disk else subject,
            role="writer" if writable else "reader",
            uid=os.geteuid(),
        )
        click.echo(f"nbd+unix:///{attached['export']}?socket={nbd.absolute()}")
        try:
            uvloop.run(serve_export(Pools(pool), listener))
        finally:
            pool.detach(attached["export"])


@fabric.command("attachments")
@click.argument("path", type=PATH)
def attachments(path: Path) -> None:
    """List who may use which disk or snapshot; one that a killed export left stays until detached."""
    with _opened(path) as pool:
        _print(pool.attachment_ls())


@fabric.command("detach")
@click.argument("path", type=PATH)
@click.argument("attachment_id")
def detach(path: Path, attachment_id: str) -> None:
    """End an attachment."""
    with _opened(path) as pool:
        pool.detach(attachment_id)
