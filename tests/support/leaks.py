"""Every test leaves nothing behind. tests/conftest.py puts these fixtures in force.

Nothing leaked means: no running child process, no pending asyncio task, no listening socket of this process; and of an
inn that the test founded below its ``tmp_path`` no process, mount, bridge, tap, nft table or cgroup. With ``CI`` set,
when nothing else runs on the machine, tests marked ``root`` or ``guest`` also leave every namespace, link and nft table
as it was. What fixtures of a wider scope hold was there before a test begins, and is checked when the session ends.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

IN_CI = os.environ.get("CI", "").lower() in {"1", "true", "yes"}
GRACE_S = 3.0
"""For what has been told to end and is about to."""


def _running_children() -> set[str]:
    """Children of this process that run (a zombie has ended), as ``pid command``."""
    children: set[str] = set()
    for path in Path("/proc/self/task").glob("*/children"):
        for pid in _text(path).split():
            status = _text(Path(f"/proc/{pid}/stat")).rpartition(")")[2].split()
            command = _text(Path(f"/proc/{pid}/cmdline")).replace("\0", " ").strip()
            if status and status[0] not in "ZX" and "resource_tracker" not in command:
                children.add(f"{pid} {command[:120]}")
    return children


def _text(path: Path) -> str:
    """A file of /proc or /sys; empty when its owner has just gone."""
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def _listening_sockets() -> set[str]:
    """Sockets on which this process listens, by path or by inode."""
    own = set()
    for link in Path("/proc/self/fd").iterdir():
        try:
            target = str(link.readlink())
        except OSError:
            continue
        if target.startswith("socket:["):
            own.add(target[len("socket:[") : -1])
    listening = set()
    for line in _text(Path("/proc/net/unix")).splitlines()[1:]:
        fields = line.split()
        accepts_connections = int(fields[3], 16) & 0x10000
        if accepts_connections and fields[6] in own:
            listening.add(fields[7] if len(fields) > 7 else fields[6])
    return listening


def _pending_tasks() -> set[str]:
    """asyncio tasks that nobody will run any more: not done, on a loop that does not run."""
    # Python keeps them in one of these, by version; there is no public list over all loops.
    registries = [getattr(asyncio.tasks, name, ()) for name in ("_scheduled_tasks", "_all_tasks")]
    pending = set()
    for task in [task for registry in registries for task in list(registry)]:
        if not task.done() and not task.get_loop().is_running():
            pending.add(repr(task))
    return pending


def _inns_below(directory: Path) -> Iterator[tuple[Path, str]]:
    """State directory and short id of each inn founded there."""
    for identity in directory.glob("**/inn.json"):
        try:
            yield identity.parent, json.loads(identity.read_text())["id"]
        except (OSError, ValueError, KeyError, TypeError):
            continue  # a test's deliberately bad one


def _ids(directory: Path) -> set[str]:
    return {inn_id for _, inn_id in _inns_below(directory)}


def _left_of_inns(directory: Path) -> set[str]:
    """Processes, mounts, links, nft tables and cgroups that carry the name of an inn below that directory."""
    left: set[str] = set()
    for state, inn_id in _inns_below(directory):
        mounts = [line.split()[4] for line in _text(Path("/proc/self/mountinfo")).splitlines()]
        left |= {f"mount {point}" for point in mounts if point.startswith(f"{state}/")}
        links = [link.name for link in Path("/sys/class/net").iterdir() if link.name[5:9] == inn_id]
        left |= {f"link {name}" for name in links if name.startswith(("inbr-", "intp-", "inup-", "inuq-", "inbd-"))}
        left |= {f"link {name}" for name in links if name.startswith(("inov-", "ingw-", "intu-"))}
        left |= {f"namespace {path.name}" for path in Path("/run/netns").glob(f"intn-{inn_id}*")}
        left |= {f"table {table}" for table in _nft_tables() if table.endswith(f" inn_{inn_id}")}
        left |= {f"cgroup {path}" for path in _cgroups() if path.name == f"innkeeper-{inn_id}"}
        for process in Path("/proc").glob("[0-9]*"):
            command = _text(process / "cmdline").replace("\0", " ")
            if str(state) in command or f"/run/innkeeper/{inn_id}/" in command:
                left.add(f"process {process.name} {command[:120]}")
    return left


def _cgroups() -> list[Path]:
    return [*Path("/sys/fs/cgroup").glob("innkeeper-*"), *Path("/sys/fs/cgroup").glob("*/innkeeper-*")]


def _nft_tables() -> set[str]:
    if os.geteuid() != 0:
        return set()
    try:
        listed = subprocess.run(["nft", "list", "tables"], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return set()
    return set(listed.stdout.splitlines())


def _kernel_objects(of_wider_fixtures: set[str]) -> set[str]:
    """Every named network namespace, link and nft table of this machine, without those of the inns with these ids."""
    namespaces = Path("/run/netns")
    found = {f"namespace {entry.name}" for entry in namespaces.iterdir()} if namespaces.is_dir() else set()
    found |= {f"link {entry.name}" for entry in Path("/sys/class/net").iterdir()}
    found |= _nft_tables()
    names = [(f"link inbr-{i}", f"link intp-{i}", f" inn_{i}") for i in of_wider_fixtures]
    return {one for one in found if not any(one.startswith(n[:2]) or one.endswith(n[2]) for n in names)}


Probe = Callable[[], set[str]]


def _still_there(probes: Mapping[str, Probe], before: Mapping[str, set[str]]) -> dict[str, set[str]]:
    """What each probe finds that was not there before, after a grace for what is about to end."""
    deadline = time.monotonic() + GRACE_S
    while True:
        leaks = {what: new for what, probe in probes.items() if (new := probe() - before.get(what, set()))}
        if not leaks or time.monotonic() > deadline:
            return leaks
        time.sleep(0.05)


_named: set[str] = set()
"""Leaks that a test was failed for; the session does not name them again."""


def _fail_on(leaks: Mapping[str, set[str]]) -> None:
    if leaks:
        _named.update(*leaks.values())
        lines = [f"  {what}: {one}" for what, found in sorted(leaks.items()) for one in sorted(found)]
        pytest.fail("the test left behind\n" + "\n".join(lines), pytrace=False)


@pytest.fixture(autouse=True)
def nothing_leaked(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Fails a test that leaves something behind."""
    probes: dict[str, Probe] = {
        "child": _running_children,
        "pending task": _pending_tasks,
        "listening socket": _listening_sockets,
    }
    touches_the_kernel = any(request.node.get_closest_marker(name) for name in ("guest", "root"))
    # Asked for here so that it outlives this check: it holds the inns that the test founded.
    tmp_path = request.getfixturevalue("tmp_path") if "tmp_path" in request.fixturenames else None
    if touches_the_kernel and IN_CI:
        base = tmp_path_factory.getbasetemp()
        probes["in the kernel"] = lambda: _kernel_objects(_ids(base) - (_ids(tmp_path) if tmp_path else set()))
    before = {what: probe() for what, probe in probes.items()}
    yield
    if touches_the_kernel and tmp_path is not None:
        probes["of its inn"] = lambda: _left_of_inns(tmp_path)
    _fail_on(_still_there(probes, before))


@pytest.fixture(scope="session", autouse=True)
def nothing_leaked_by_wider_fixtures(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Fails the session when a fixture of a wider scope left something behind."""
    probes: dict[str, Probe] = {"child": _running_children, "listening socket": _listening_sockets}
    before = {what: probe() for what, probe in probes.items()}
    yield
    probes["of an inn"] = lambda: _left_of_inns(tmp_path_factory.getbasetemp())
    left = {what: found - _named for what, found in _still_there(probes, before).items()}
    _fail_on({what: found for what, found in left.items() if found})
