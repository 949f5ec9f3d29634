"""``inn tour``: Innkeeper's main job on real guests, through the same client that everybody uses.

Every step narrates what it does and how long it took, and proves what it says; one that fails ends the tour with its
cause. What an earlier tour left is removed first, so that it can be run again; the inn is left running.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import click

from innkeeper.cli import lifecycle, tour_network, tour_protection, tour_survival
from innkeeper.cli.options import InnCommand
from innkeeper.cli.session import Session, pass_session
from innkeeper.cli.tour_stage import GUESTS, IMAGE, LABEL, MEMORY_BYTES, SWITCH, Stage
from innkeeper.model import requests as ask
from innkeeper.model.problems import NotFound
from innkeeper.model.resources import Switch, SwitchKind, Task
from innkeeper.model.sizes import format_size


def start_inn(stage: Stage) -> None:
    """Start the inn and have the image."""
    with stage.timed(f"the inn is up at {stage.session.state_dir or 'its usual place'}"):
        lifecycle.start(stage.session)
    clear(stage)
    try:
        image = stage.client.images.show(IMAGE)
        stage.say(f"image {IMAGE} is there already ({format_size(image.size_bytes)})")
    except NotFound:
        with stage.timed(f"image {IMAGE} built from Debian packages"):
            stage.finish(stage.client.images.build(ask.ImageBuild(name=IMAGE)))


def clear(stage: Stage) -> None:
    """Remove what an earlier tour left."""
    tasks = [stage.client.vms.rm(old.id, with_disks=True, force=True) for old in stage.client.vms.ls(LABEL)]
    for task in tasks:
        stage.finish(task)
    tour_protection.clear_backups(stage)
    for switch in stage.client.switches.ls(LABEL):
        stage.client.switches.rm(switch.id)
    if tasks:
        stage.say(f"removed {len(tasks)} guests of an earlier tour")


def make_guests(stage: Stage) -> None:
    """A NAT switch and three guests."""
    with stage.timed(f"switch {SWITCH} made"):
        wish = ask.SwitchCreate(name=SWITCH, kind=SwitchKind.NAT, labels={LABEL: "yes"})
        switch = stage.client.switches.create(wish)
    if isinstance(switch, Switch):
        stage.say(f"{SWITCH}: {switch.subnet}, gateway {switch.gateway}, all guards on by default")
    with stage.timed(f"{len(GUESTS)} guests made from image {IMAGE} and started"):
        tasks = [stage.finish(started) for started in [_create(stage, guest) for guest in GUESTS]]
    took = [step.duration_s for task in tasks for step in task.steps if step.name == "make its disks"]
    if took:
        stage.say(f"cloning a guest's disk took {max(took) * 1000:.0f} ms at most")
    with stage.timed("all agents answer"):
        for guest in GUESTS:
            stage.ready(guest)
    for guest in GUESTS:
        card = stage.card(guest)
        stage.say(f"{guest}: {card.address} ({card.mac}), {stage.sh(guest, 'uname -sr')}")


def _create(stage: Stage, guest: str) -> Task:
    request = ask.VmCreate(
        name=guest,
        image=IMAGE,
        memory_bytes=MEMORY_BYTES,
        nics=[ask.VmNic(switch=SWITCH)],
        labels={LABEL: "yes"},
    )
    started = stage.client.vms.create(request)
    assert isinstance(started, Task)
    return started


def survive(stage: Stage) -> None:
    """Kill the daemon, then the fabric."""
    tour_survival.kill_daemon(stage)
    tour_survival.kill_fabric(stage)


STEPS: tuple[tuple[str, Callable[[Stage], None]], ...] = (
    ("The inn starts: fabric, daemon, and an image to make guests from", start_inn),
    ("A NAT switch and three guests", make_guests),
    ("An ARP attack, with the guard off and on", tour_network.spoof),
    ("A checkpoint, a change, and back", tour_protection.checkpoint),
    ("Backed up twice, lost, restored", tour_protection.backup),
    ("The daemon and the fabric are killed under running guests", survive),
)


def farewell(stage: Stage) -> None:
    """What to try next."""
    option = f"--state-dir {stage.session.state_dir} " if stage.session.state_dir else ""
    inn = f"inn {option}".rstrip()
    stop = f"make stop STATE={stage.session.state_dir}" if stage.session.state_dir else "make stop"
    for line in (
        f"{inn} vm ls                                    the three guests, still running",
        f"{inn} vm exec {GUESTS[0]} -- ip addr           a command in a guest",
        f"{inn} vm console {GUESTS[0]}                   its serial console (root, no password; Ctrl-] leaves)",
        f"{inn} checkpoint create {GUESTS[0]} now        a point to come back to",
        f"{inn} vm create mine --image probe --switch {SWITCH} --memory 192M --wait ready",
        f"{inn} image build debian/12                    a real Debian to make guests from",
        f"{inn} backup ls; {inn} disk ls; {inn} nic show {GUESTS[0]}-0; {inn} doctor",
        f"{stop}                                    end it all and leave nothing behind",
    ):
        stage.say(line)


@click.command(cls=InnCommand)
@pass_session
def tour(session: Session) -> None:
    """Show the main job on real guests, step by step; leaves the inn running."""
    stage = Stage(session)
    total = len(STEPS) + 1
    for number, (title, act) in enumerate(STEPS, 1):
        stage.title(number, total, title)
        began = time.monotonic()
        act(stage)
        stage.say(f"— {time.monotonic() - began:.1f} s")
    stage.title(total, total, f"Done in {time.monotonic() - stage.began:.0f} s. The inn is left running; try next:")
    farewell(stage)
