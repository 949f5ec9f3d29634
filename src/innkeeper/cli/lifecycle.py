"""``inn up`` and ``inn down``: the whole life of an inn, each safe to repeat and to interrupt.

up      found the state directory, check the host, keeper (and through it the fabric), daemon; wait until both answer
down    ask the daemon to end guests and switches, end daemon, keeper and fabric, clear what is left, and say what
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import UUID

import click

from innkeeper.cli import leftovers, processes
from innkeeper.cli.logs import last_lines
from innkeeper.cli.options import InnCommand
from innkeeper.cli.progress import follow
from innkeeper.cli.session import Session, pass_session
from innkeeper.fabric.devices import Device, empty_store, read_identity
from innkeeper.fabric.pool_list import read_list
from innkeeper.harden import doctor as judge, facts
from innkeeper.model.problems import Conflict, Failed, Problem, Unavailable, from_dict
from innkeeper.model.requests import HostStop
from innkeeper.model.views import Health
from innkeeper.system import blockdevice, process
from innkeeper.system.files import Io, RealFiles
from innkeeper.system.paths import Paths

FABRIC_PATIENCE_S = 60.0
"""A fabric that replays a long log answers late."""
DAEMON_PATIENCE_S = 120.0
_POLL_S = 0.05


@contextmanager
def _alone(paths: Paths) -> Iterator[None]:
    """One ``up`` or ``down`` of an inn at a time; a second one waits."""
    descriptor = os.open(paths.state / "lifecycle.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _check_host(state: Path) -> None:
    """Raises ``Failed`` (``host.unfit``) when the doctor finds what an inn cannot run with."""
    wrong = judge.essential(judge.examine(facts.gather(state)))
    if wrong:
        raise Failed(
            "host.unfit",
            "this host is not ready for an inn",
            cause="\n".join(f"{check.name}: {check.detail}" for check in wrong),
            remedy="; ".join(check.remedy for check in wrong if check.remedy),
        )


def _python(*arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-m", *arguments)


def keeper_command(paths: Paths) -> tuple[str, ...]:
    """How the keeper of an inn is started."""
    return _python("innkeeper.fabric.keeper", "--state-dir", str(paths.state))


def daemon_command(paths: Paths) -> tuple[str, ...]:
    """How the daemon of an inn is started."""
    return _python("innkeeper", "--state-dir", str(paths.state), "serve")


def _accepts(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True


def _await(
    answers: Callable[[], bool], started: subprocess.Popen[bytes] | None, log: Path, told: int, patience_s: float
) -> None:
    """Wait until ``answers``; the process that was started may not end meanwhile.

    Raises the problem that it logged behind byte ``told``, else ``Failed`` (``<name>.not_started``) with the end of its
    log.
    """
    name = log.stem
    deadline = time.monotonic() + patience_s
    while not answers():
        ended = started is not None and started.poll() is not None
        if ended or time.monotonic() > deadline:
            if ended and (problem := _problem_in(log, told)) is not None:
                raise problem
            why = "ended at once" if ended else f"does not answer after {patience_s:.0f} s"
            raise Failed(f"{name}.not_started", f"the {name} {why}", cause=last_lines(log, 5), remedy=f"see {log}")
        time.sleep(_POLL_S)


def _health(session: Session) -> Health | None:
    """What the daemon says of itself; None when it does not answer."""
    try:
        return session.client.host.health()
    except Unavailable:
        return None


def _ensure_keeper(paths: Paths) -> bool:
    """Start the keeper unless it runs, and wait for the fabric; whether it was started."""
    running = processes.noted(paths, "keeper") is not None
    fabric_log, log = paths.logs / "fabric.log", paths.logs / "keeper.log"
    told = _length(fabric_log)
    started = None if running else process.spawn(keeper_command(paths), log=log)

    def answers() -> bool:
        if _accepts(paths.fabric_socket):
            return True
        problem = _problem_in(fabric_log, told) if started is not None else None
        if started is not None and problem is not None and not isinstance(problem, Conflict):  # a lock may come free
            processes.end(started.pid)  # it would go on trying; whoever asked is told why that is of no use
            started.wait()
            raise problem
        return False

    _await(answers, started, log, _length(log), FABRIC_PATIENCE_S)
    return not running


def _length(log: Path) -> int:
    return log.stat().st_size if log.exists() else 0


def _problem_in(log: Path, start: int) -> Problem | None:
    """The problem that the fabric ended with, from what it logged behind byte ``start``."""
    try:
        with log.open("rb") as file:
            file.seek(start)
            lines = file.read().splitlines()
        found = [from_dict(json.loads(line)["problem"]) for line in lines if b'"problem": ' in line]
    except (OSError, ValueError, KeyError):  # not there yet, or a line is half written
        return None
    return found[-1] if found else None


def _ensure_daemon(session: Session, paths: Paths) -> bool:
    """Start the daemon unless it answers, and wait until it does; whether it was started."""
    if _health(session) is not None:
        return False
    running = processes.noted(paths, "daemon") is not None
    log = paths.logs / "daemon.log"
    told = _length(log)
    started = None if running else process.spawn(daemon_command(paths), log=log)
    _await(lambda: _health(session) is not None, started, log, told, DAEMON_PATIENCE_S)
    return not running


def start(session: Session) -> Health:
    """Found the inn if need be, start what does not run, and return the daemon's health.

    Raises ``Failed`` (``host.unfit``, ``keeper.not_started``, ``daemon.not_started``, ``inn.unwritable``).
    """
    paths = Paths.open(session.state_dir, create=True)
    with _alone(paths):
        if _health(session) is None:
            _check_host(paths.state)
        for place in (paths.run, paths.logs):
            place.mkdir(mode=0o755, parents=True, exist_ok=True)
        if _ensure_keeper(paths):
            session.say("the fabric is up")
        if _ensure_daemon(session, paths):
            session.say("the daemon is up")
    health = _health(session)
    if health is None:
        raise Failed("daemon.not_started", "the daemon ended again", cause=last_lines(paths.logs / "daemon.log", 5))
    return health


@click.command(cls=InnCommand)
@click.option("--restart", is_flag=True, help="Restart daemon and fabric, for an update; guests go on.")
@pass_session
def up(session: Session, restart: bool) -> None:
    """Found and start the inn; what runs already is left alone, guests that run are adopted."""
    if restart:
        _end_processes(session, ("daemon", "fabric"))
    health = start(session)
    if session.format == "json":
        session.show(health)
    else:
        session.say(f"inn {health.inn_id} is up at {Paths.locate(session.state_dir)}")


def _end_processes(session: Session, names: tuple[str, ...]) -> None:
    for name in names:
        pid = processes.noted(session.paths, name)
        if pid is not None:
            processes.end(pid)


def _stop_guests(session: Session, *, force: bool) -> None:
    """Have the daemon end guests and switches; a daemon that is dead is started for it."""
    try:
        follow(session, session.client.host.stop(HostStop(force=force)))
    except Problem as problem:
        if problem.remedy is None or "--force" not in problem.remedy:
            problem.remedy = f"{problem.remedy}; or 'inn down --force'" if problem.remedy else "'inn down --force'"
        raise


@click.command(cls=InnCommand)
@click.option("--force", is_flag=True, help="Power guests off, and clear everything away whatever happens.")
@click.option("--purge", is_flag=True, help="Remove the state directory too: disks, images, everything.")
@pass_session
def down(session: Session, force: bool, purge: bool) -> None:
    """Stop the guests (each as its --autostop says) and end the inn; nothing is left but its state directory."""
    try:
        paths = session.paths
    except Unavailable as absent:
        session.say(f"{absent.detail}: nothing to end")
        return
    with _alone(paths):
        if paths.run.exists():
            _end(session, paths, force=force)
        forgotten, stayed = leftovers.clear(paths)
    for what in forgotten:
        if not what.startswith("directory"):
            session.say(f"cleared away: {what}")
    stayed = stayed or [one.what for one in leftovers.find(paths)]
    if stayed:
        remedy = "end what holds them, then run 'inn down --force' again"
        raise Failed("inn.left", "not everything could be ended", cause="\n".join(stayed), remedy=remedy)
    if purge:
        _empty_devices(session, paths)
        shutil.rmtree(paths.state)
    session.say(f"the inn at {paths.state} {'is gone' if purge else 'has ended'}; nothing is left running")


def _empty_devices(session: Session, paths: Paths) -> None:
    """Take the pools' data out of the directories that they have elsewhere."""
    places = [str(paths.pool)]
    for pool_id, place in read_list(RealFiles(), str(paths.pool_list)).items():
        identity = read_identity(RealFiles(), place)
        if identity is not None and str(identity[0]) == pool_id:
            places.append(place)
    for place in places:
        identity = read_identity(RealFiles(), place)
        for device in identity[1] if identity else ():
            if device.remote:
                assert identity is not None
                _empty_store(session, place, identity[0], device)
            elif device.source:
                if (found := blockdevice.give_up(device.id)) is not None:
                    session.say(f"emptied: {found}")
            else:
                _empty(session, Path(device.path), "device.json")
    for place in places[1:]:
        _empty(session, Path(place), "pool.json")


def _empty_store(session: Session, pool_path: str, pool_id: UUID, device: Device) -> None:
    try:
        count = empty_store(Io(), pool_path, pool_id, device)
        session.say(f"emptied: {device.path}, of {count} objects")
    except Problem as away:
        session.say(f"not emptied, remove what is below {pool_id}/ in {device.path}: {away}")


def _empty(session: Session, place: Path, mark: str) -> None:
    if not (place / mark).exists():
        return
    for directory in ("groups", "log", "copies", "credentials"):
        shutil.rmtree(place / directory, ignore_errors=True)
    for left in (*place.glob("meta.*"), *place.glob("fingerprints.*"), place / "lock", place / mark):
        left.unlink(missing_ok=True)
    session.say(f"emptied: {place}")


def _end(session: Session, paths: Paths, *, force: bool) -> None:
    """End what runs, in order. With ``force`` what does not answer is left to the clearing that follows."""
    try:
        if _health(session) is None and any(processes.of_inn(paths)):
            _ensure_keeper(paths)
            _ensure_daemon(session, paths)
        if _health(session) is not None:
            _stop_guests(session, force=force)
    except Problem as problem:
        if not force:
            raise
        session.say(f"going on without the daemon: {problem}")
    _end_processes(session, ("daemon", "keeper", "fabric"))
