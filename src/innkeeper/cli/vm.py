"""``inn vm``: guests."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from innkeeper.cli import resources
from innkeeper.cli.console import attach_console, serve_vnc
from innkeeper.cli.lazy import VerbGroup
from innkeeper.cli.options import (
    SIZE,
    InnCommand,
    Ref,
    detach_option,
    dry_run_option,
    labels_option,
    no_labels_option,
)
from innkeeper.cli.output import Column, ago
from innkeeper.cli.parse import request
from innkeeper.cli.progress import settle
from innkeeper.cli.session import Session, pass_session
from innkeeper.cli.vlan import VLAN
from innkeeper.model import requests as ask
from innkeeper.model.problems import Conflict
from innkeeper.model.resources import CloudInit, Task, Vm, VmState
from innkeeper.model.sizes import format_size
from innkeeper.model.views import Plan
from innkeeper.model.vlan import NicVlan

VM = Ref("vms")
_WAIT = click.Choice(["none", "running", "ready"])
_AT_NEXT_BOOT = frozenset(("cpus", "memory_bytes", "firmware", "secure_boot"))


@click.group(cls=VerbGroup, help="Guests.")
def vm() -> None:
    """The noun."""


def _columns(session: Session) -> list[Column[Vm]]:
    return [
        Column("name", lambda one: one.name),
        Column("state", lambda one: one.status.state.value),
        Column("agent", lambda one: one.status.agent),
        Column("cpus", lambda one: one.spec.cpus, right=True),
        Column("memory", lambda one: format_size(one.spec.memory_bytes), right=True),
        Column("addresses", lambda one: one.status.addresses),
        Column("up", lambda one: ago(one.status.started_at)),
    ]


resources.add_ls(vm, "vms", _columns)
resources.add_show(vm, "vms")


def _cloud_init(
    user_data: Path | None, network_config: Path | None, ssh_keys: tuple[str, ...], hostname: str | None
) -> CloudInit | None:
    if not (user_data or network_config or ssh_keys or hostname):
        return None
    keys = [Path(key).read_text().strip() if Path(key).is_file() else key for key in ssh_keys]
    return CloudInit(
        user_data=user_data.read_text() if user_data else None,
        network_config=network_config.read_text() if network_config else None,
        ssh_keys=keys,
        hostname=hostname,
    )


def _extra_disk(text: str) -> dict[str, Any]:
    """A size makes a new disk, anything else names one."""
    return {"size_bytes": SIZE.convert(text, None, None)} if text[:1].isdigit() else {"disk": text}


def _nics(
    switches: tuple[str, ...],
    addresses: tuple[str, ...],
    addresses6: tuple[str, ...],
    macs: tuple[str, ...],
    vlans: tuple[NicVlan, ...],
    static: bool,
) -> list[dict[str, Any]]:
    if static and not switches:
        raise click.UsageError("--static needs a --switch")
    if max(len(addresses), len(addresses6), len(macs), len(vlans)) > len(switches):
        raise click.UsageError("--address, --address6, --mac and --vlan belong to a --switch each")
    cards: list[dict[str, Any]] = [{"switch": switch, "static": static} for switch in switches]
    for card, address in zip(cards, addresses, strict=False):
        card["address"] = address
    for card, address in zip(cards, addresses6, strict=False):
        card["address6"] = address
    for card, mac in zip(cards, macs, strict=False):
        card["mac"] = mac.lower()
    for card, vlan in zip(cards, vlans, strict=False):
        card["vlan"] = vlan
    return cards


_FILE = click.Path(exists=True, dir_okay=False, readable=True, path_type=Path)


@vm.command("create", cls=InnCommand)
@click.argument("name")
@click.option("--image", type=Ref("images"), help="The image that its first disk is a clone of.")
@click.option("--disk", "disk_bytes", type=SIZE, help="Size of the first disk: the image's is grown to it.")
@click.option(
    "--add-disk", "disks", multiple=True, metavar="DISK|SIZE", help="A further disk: existing, or new of a size."
)
@click.option("--storage", type=Ref("storages"), help="Where new disks live.")
@click.option("--switch", "switches", type=Ref("switches"), multiple=True, help="A card on that switch; repeatable.")
@click.option("--address", "addresses", multiple=True, help="Reserved IPv4 address of the card, in order of --switch.")
@click.option("--address6", "addresses6", multiple=True, help="Its IPv6 address, likewise.")
@click.option("--static", is_flag=True, help="Its cards get their addresses through cloud-init, not by DHCP.")
@click.option("--mac", "macs", multiple=True, help="MAC address of the card, in order of --switch.")
@click.option("--vlan", "vlans", type=VLAN, multiple=True, help="VLAN of the card, in order of --switch.")
@click.option("--cpus", type=click.IntRange(1, 512))
@click.option("--memory", "memory_bytes", type=SIZE, help="Memory, such as 512M or 4G.")
@click.option("--firmware", type=click.Choice(["bios", "uefi"]))
@click.option("--secure-boot", is_flag=True, help="With --firmware uefi.")
@click.option("--tpm", is_flag=True, help="A TPM 2.0.")
@click.option("--iso", type=Ref("images"), help="An ISO image to insert.")
@click.option("--boot-iso", "iso_boot_first", is_flag=True, help="Boot from the ISO first.")
@click.option("--user-data", type=_FILE, help="cloud-init user data.")
@click.option("--network-config", type=_FILE, help="cloud-init network configuration.")
@click.option("--ssh-key", "ssh_keys", multiple=True, metavar="FILE|KEY", help="A public key for the default user.")
@click.option("--hostname")
@click.option("--protect", is_flag=True, help="Refuse its removal.")
@click.option("--autostart", type=click.Choice(["never", "last", "always"]))
@click.option("--autostop", type=click.Choice(["shutdown", "save", "poweroff"]))
@click.option("--description")
@click.option("--start/--no-start", default=True, show_default=True)
@click.option(
    "--wait", "wait", type=_WAIT, default="running", show_default=True, help="ready: until its agent answers."
)
@click.option("--timeout", "timeout_s", type=float, default=300.0, show_default=True, help="Seconds to wait for ready.")
@labels_option
@dry_run_option
@pass_session
def create(session: Session, /, wait: str, timeout_s: float, dry_run: bool, **options: Any) -> None:
    """Make a guest and start it.

    \b
    inn vm create web --image debian/12 --switch lan --memory 512M --cpus 1 --disk 4G --wait ready
    """
    cloud_init = _cloud_init(*(options.pop(name) for name in ("user_data", "network_config", "ssh_keys", "hostname")))
    nics = _nics(*(options.pop(name) for name in ("switches", "addresses", "addresses6", "macs", "vlans", "static")))
    disks = [_extra_disk(text) for text in options.pop("disks")]
    made = request(ask.VmCreate, nics=nics, disks=disks, cloud_init=cloud_init, **options)
    if wait == "ready" and not made.start:
        raise click.UsageError("--wait ready needs the guest started")
    started = session.client.vms.create(made, dry_run=dry_run)
    _follow(session, started, made.name, "made", wait=wait, timeout_s=timeout_s)


def _follow(
    session: Session, started: Task | Plan, name: str, done: str, *, wait: str = "running", timeout_s: float = 300.0
) -> None:
    """Wait for the task as wished, then print the guest."""
    if settle(session, started, no_wait=wait == "none", done=lambda _task: f"{name} {done}") is None:
        return
    if wait == "ready":
        session.client.wait_ready(name, timeout_s=timeout_s)
        session.say(f"{name} is ready")
    if session.format == "json" or session.quiet:
        session.show(session.client.vms.show(name))


def _verb(verb: str, help_line: str, done: str, *, waits: bool = False) -> None:
    """A life-cycle verb without options of its own, for one guest or several."""

    @click.argument("refs", type=VM, nargs=-1, required=True)
    @detach_option
    @pass_session
    def act(session: Session, refs: tuple[str, ...], no_wait: bool, wait: str = "running") -> None:
        started = [(ref, getattr(session.client.vms, verb)(ref)) for ref in refs]
        for ref, task in started:
            _follow(session, task, ref, done, wait="none" if no_wait else wait)

    if waits:
        act = click.option("--wait", type=_WAIT, default="running", show_default=True)(act)
    vm.command(verb, cls=InnCommand, help=help_line)(act)


_verb("start", "Start it; a saved guest resumes where it was.", "started", waits=True)


@vm.command("shutdown", cls=InnCommand)
@click.argument("refs", type=VM, nargs=-1, required=True)
@click.option("--timeout", "timeout_s", type=float, help="Seconds that the guest has to end itself. [default: 90]")
@click.option("--force", is_flag=True, help="Power it off when it does not.")
@detach_option
@pass_session
def shutdown(session: Session, refs: tuple[str, ...], timeout_s: float | None, force: bool, no_wait: bool) -> None:
    """Ask it to end itself, through its agent or by ACPI."""
    wish = request(ask.VmShutdown, timeout_s=timeout_s, force=force)
    started = [(ref, session.client.vms.shutdown(ref, wish)) for ref in refs]
    for ref, task in started:
        _follow(session, task, ref, "shut down", wait="none" if no_wait else "running")


_verb("poweroff", "Pull its plug.", "powered off")
_verb("pause", "Stop its processors; memory stays.", "paused")
_verb("resume", "Let a paused guest go on.", "resumed")
_verb("reset", "Press its reset button.", "reset")
_verb("save", "Write its memory to disk and stop it; start resumes it.", "saved")


@vm.command("set", cls=InnCommand)
@click.argument("ref", type=VM)
@click.option("--cpus", type=click.IntRange(1, 512))
@click.option("--memory", "memory_bytes", type=SIZE)
@click.option("--secure-boot/--no-secure-boot", default=None)
@click.option("--tpm/--no-tpm", default=None)
@click.option("--iso", type=Ref("images"), help="Insert an ISO image.")
@click.option("--no-iso", is_flag=True, help="Eject the ISO.")
@click.option("--boot-iso/--no-boot-iso", "iso_boot_first", default=None, help="Boot from the ISO first.")
@click.option("--boot-order", metavar="DISK,DISK,...", help="Disks to boot from, first to last.")
@click.option("--protect/--no-protect", default=None, help="Refuse its removal.")
@click.option("--autostart", type=click.Choice(["never", "last", "always"]))
@click.option("--autostop", type=click.Choice(["shutdown", "save", "poweroff"]))
@click.option("--description")
@labels_option
@no_labels_option
@pass_session
def change(
    session: Session,
    /,
    ref: str,
    no_iso: bool,
    boot_order: str | None,
    labels: dict[str, str],
    no_labels: bool,
    **options: Any,
) -> None:
    """Change it. Processors, memory and firmware take effect at its next start."""
    members = {name: value for name, value in options.items() if value is not None}
    if boot_order is not None:
        members["boot_order"] = [disk.strip() for disk in boot_order.split(",") if disk.strip()]
    if labels or no_labels:
        members["labels"] = labels
    if not members and not no_iso:
        raise click.UsageError("say what to change")
    wish = request(ask.VmSet, **members)
    if no_iso:
        wish.iso = None  # an explicit null is what ejects
    changed = session.client.vms.set(ref, wish)
    later = members.keys() & _AT_NEXT_BOOT and changed.status.state not in (VmState.STOPPED, VmState.CRASHED)
    session.done(changed, f"{changed.name} changed" + (", from its next boot on" if later else ""))


@vm.command("rename", cls=InnCommand)
@click.argument("ref", type=VM)
@click.argument("name")
@pass_session
def rename(session: Session, ref: str, name: str) -> None:
    """Give it another name."""
    renamed = session.client.vms.rename(ref, request(ask.VmRename, name=name))
    session.done(renamed, f"{ref} is now {renamed.name}")


@vm.command("clone", cls=InnCommand)
@click.argument("ref", type=VM)
@click.argument("name")
@click.option("--checkpoint", help="As it was at that checkpoint, instead of now.")
@click.option("--start", is_flag=True, help="Start the clone.")
@labels_option
@dry_run_option
@detach_option
@pass_session
def clone(
    session: Session, /, ref: str, name: str, dry_run: bool, no_wait: bool, labels: dict[str, str], **options: Any
) -> None:
    """Make a copy under another name, with MAC addresses of its own."""
    wish = request(ask.VmClone, name=name, labels=labels or None, **options)
    started = session.client.vms.clone(ref, wish, dry_run=dry_run)
    _follow(session, started, wish.name, f"cloned from {ref}", wait="none" if no_wait else "running")


@vm.command("rm", cls=InnCommand)
@click.argument("refs", type=VM, nargs=-1, required=True)
@click.option("--with-disks", is_flag=True, help="Its disks too; else they are kept.")
@click.option("--force", is_flag=True, help="Power a running guest off first.")
@detach_option
@pass_session
def remove(session: Session, refs: tuple[str, ...], with_disks: bool, force: bool, no_wait: bool) -> None:
    """Remove it; its disks are kept unless told otherwise."""
    started = [(ref, session.client.vms.rm(ref, with_disks=with_disks, force=force)) for ref in refs]
    for ref, task in started:
        name = task.target_name or ref
        ended = settle(session, task, no_wait=no_wait, done=lambda _task, name=name: f"{name} removed")  # type: ignore[misc]
        if ended is not None and session.format == "json":
            session.show(ended)


@vm.command("exec", cls=InnCommand, context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.argument("ref", type=VM)
@click.argument("argv", nargs=-1, required=True, type=click.UNPROCESSED)
@click.option("-i", "--stdin", "with_stdin", is_flag=True, help="Pass this command's standard input on.")
@click.option("-e", "--env", "environment", multiple=True, metavar="NAME=VALUE")
@click.option("--timeout", "timeout_s", type=float, default=60.0, show_default=True, help="Seconds.")
@click.pass_context
def execute(
    ctx: click.Context,
    ref: str,
    argv: tuple[str, ...],
    with_stdin: bool,
    environment: tuple[str, ...],
    timeout_s: float,
) -> None:
    """Run a command in the guest through its agent: inn vm exec web -- uname -a.

    Ends with the command's own exit code (128 + signal when a signal ended it).
    """
    session = ctx.ensure_object(Session)
    words = argv[1:] if argv[0] == "--" else argv
    env = dict(pair.partition("=")[::2] for pair in environment)
    stdin = sys.stdin.buffer.read() if with_stdin else None
    wish = request(ask.VmExec, argv=list(words), stdin=stdin, env=env, timeout_s=timeout_s)
    result = session.client.vms.exec(ref, wish)
    if session.format == "json":
        session.show(result)
    else:
        sys.stdout.buffer.write(result.stdout)
        sys.stdout.buffer.flush()
        sys.stderr.buffer.write(result.stderr)
        sys.stderr.buffer.flush()
        if result.truncated:
            session.say("(the agent cut the output)")
    ctx.exit(result.exit_code if result.exit_code is not None else 128 + (result.signal or 0))


def _socket(session: Session, ref: str, kind: str) -> tuple[str, str]:
    """The guest's name and its socket of that kind. Raises ``Conflict`` (``vm.not_running``)."""
    found = session.client.vms.show(ref)
    path = found.sockets.get(kind)
    if path is None or found.status.state in (VmState.STOPPED, VmState.SAVED):
        raise Conflict("vm.not_running", f"{found.name} is {found.status.state}", remedy=f"inn vm start {found.name}")
    return found.name, path


@vm.command("console", cls=InnCommand)
@click.argument("ref", type=VM)
@pass_session
def console(session: Session, ref: str) -> None:
    """Its serial console. Leave with Ctrl-]."""
    name, path = _socket(session, ref, "serial")
    session.say(f"serial console of {name}; leave with Ctrl-]")
    attach_console(path)


@vm.command("vnc", cls=InnCommand)
@click.argument("ref", type=VM)
@click.option("--listen", metavar="ADDRESS:PORT", help="Serve it there over TCP until interrupted.")
@pass_session
def vnc(session: Session, ref: str, listen: str | None) -> None:
    """Print the socket of its screen, or serve it on a port for a viewer."""
    name, path = _socket(session, ref, "vnc")
    if listen is None:
        click.echo(path)
        return
    session.say(f"screen of {name} at vnc://{listen}; end with Ctrl-C")
    serve_vnc(path, listen)
