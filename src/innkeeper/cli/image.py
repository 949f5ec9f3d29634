"""``inn image``: templates and ISOs."""

from __future__ import annotations

from pathlib import Path

import click

from innkeeper.cli import resources
from innkeeper.cli.lazy import VerbGroup
from innkeeper.cli.options import InnCommand, detach_option, dry_run_option, labels_option
from innkeeper.cli.output import Column, ago
from innkeeper.cli.parse import request
from innkeeper.cli.progress import settle
from innkeeper.cli.session import Session, pass_session
from innkeeper.model import requests as ask
from innkeeper.model.resources import Image
from innkeeper.model.sizes import format_size


@click.group(cls=VerbGroup, help="Templates to make guests from, and ISOs.")
def image() -> None:
    """The noun."""


def _columns(_session: Session) -> list[Column[Image]]:
    return [
        Column("name", lambda one: one.name),
        Column("kind", lambda one: one.image_kind),
        Column("size", lambda one: format_size(one.size_bytes), right=True),
        Column("ready", lambda one: one.ready),
        Column("source", lambda one: one.source),
        Column("age", lambda one: ago(one.created_at)),
    ]


@image.command("build", cls=InnCommand)
@click.argument("name")
@click.option("--rebuild", is_flag=True, help="Anew, though there is one; guests made from it keep theirs.")
@dry_run_option
@detach_option
@pass_session
def build(session: Session, name: str, rebuild: bool, dry_run: bool, no_wait: bool) -> None:
    """Build a known image from packages: inn image build debian/12."""
    started = session.client.images.build(request(ask.ImageBuild, name=name, rebuild=rebuild), dry_run=dry_run)
    if settle(session, started, no_wait=no_wait, done=lambda _task: f"image {name} built") and session.format == "json":
        session.show(session.client.images.show(name))


@image.command("import", cls=InnCommand)
@click.argument("name")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--iso", is_flag=True, help="It is an ISO image to insert, not a disk.")
@click.option("--format", "file_format", type=click.Choice(["raw", "qcow2"]), help="Found out when not given.")
@click.option("--sha256", help="Checksum of the file as it is; compared before anything is made of it.")
@labels_option
@dry_run_option
@detach_option
@pass_session
def import_(
    session: Session,
    name: str,
    file: Path,
    iso: bool,
    file_format: str | None,
    sha256: str | None,
    labels: dict[str, str],
    dry_run: bool,
    no_wait: bool,
) -> None:
    """Take a raw or qcow2 file (also .xz, .zst) or an ISO: inn image import fedora/41 Fedora.qcow2."""
    wish = request(
        ask.ImageImport,
        name=name,
        path=str(file.absolute()),
        image_kind="iso" if iso else "disk",
        format=file_format,
        sha256=sha256,
        labels=labels,
    )
    started = session.client.images.import_(wish, dry_run=dry_run)
    ended = settle(session, started, no_wait=no_wait, done=lambda _task: f"image {name} imported")
    if ended is not None and session.format == "json":
        session.show(session.client.images.show(name))


resources.add_ls(image, "images", _columns)
resources.add_show(image, "images")
resources.add_set(image, "images")
resources.add_rm(image, "images")
