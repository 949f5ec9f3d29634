"""Examining a pool that nobody has open: what is damaged, what a repair makes of it, and the repair.

Without ``repair`` all of it happens on an overlay: the same steps are taken and told, and nothing is touched. First the
pool is made one that can be opened (its identity, its devices' identities, meta), then it is opened and mended.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from typing import Any
from uuid import UUID

from innkeeper.fabric.aside import set_aside
from innkeeper.fabric.devices import (
    SLOW,
    TIERS,
    VERSION,
    Device,
    device_identity,
    read_identity,
    write_device_identity,
    write_identity,
)
from innkeeper.fabric.groups import has_header, parse_group_name
from innkeeper.fabric.layout import PAGE
from innkeeper.fabric.logformat import pool_of_segment
from innkeeper.fabric.mend import MendingPool, Step, mend
from innkeeper.fabric.meta import Meta
from innkeeper.fabric.rebuild import rebuild_meta
from innkeeper.fabric.space import Limits, unusable
from innkeeper.fabric.verdicts import Verdict, judge, search
from innkeeper.model.problems import Corrupt, NotFound, Problem, Unavailable
from innkeeper.system.files import FileSystem, Io
from innkeeper.system.overlay import OverlayFiles

_POOL_AT = 16
"""Where the headers of groups and segments say whose they are."""


@dataclass(slots=True)
class Report:
    """``steps``: what a repair does, or has done; ``before`` and ``after``: the verdicts without and with them."""

    path: str
    repaired: bool
    steps: list[Step] = field(default_factory=list)
    before: list[Verdict] = field(default_factory=list)
    after: list[Verdict] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    groups: int = 0
    items: int = 0
    bytes: int = 0

    @property
    def sound(self) -> bool:
        return not self.steps and not self.problems

    def facts(self) -> dict[str, Any]:
        return asdict(self) | {"sound": self.sound}


def examine(
    io: Io, path: str, *, repair: bool = False, devices: Sequence[str] = (), limits: Limits | None = None
) -> Report:
    """See the module's docstring; ``devices``: directories of the pool that nothing remembers.

    Raises ``NotFound`` (``pool.absent``), ``Conflict`` (``pool.locked``), ``Corrupt`` for what a later version wrote,
    ``Unavailable`` (``device.missing``), and what opening the pool raises where no repair helps.
    """
    if not any(io.files.exists(f"{path}/{name}") for name in ("pool.json", "meta.db", "groups", "log")):
        raise _absent(path)
    try:
        return _examined(io if repair else replace(io, files=OverlayFiles(io.files)), path, repair, devices, limits)
    except OSError as refused:
        raise unusable(path, refused) from refused


def _absent(path: str) -> NotFound:
    return NotFound(
        "pool.absent", f"there is no pool at {path}", remedy="make one: inn fabric init PATH, or name its directory"
    )


def _examined(io: Io, path: str, repair: bool, devices: Sequence[str], limits: Limits | None) -> Report:
    report = Report(path, repair)
    io.files.lock(f"{path}/lock").close()
    report.steps += _mend_identity(io.files, path, devices)
    report.steps += _mend_devices(io.files, path)
    report.steps += _mend_meta(io, path, limits)
    pool = MendingPool.open(io, path, limits=limits, background=False)
    try:
        findings = search(pool)
        report.before = judge(pool, findings)
        report.steps += mend(pool, findings)
        if report.steps:
            findings = search(pool)
        report.after = judge(pool, findings)
        checked = pool.check(repair=repair)
        report.problems = checked["problems"]
        report.groups, report.items, report.bytes = (checked[name] for name in ("groups", "items", "bytes"))
    finally:
        pool.close()
    return report


# -- identity ----------------------------------------------------------------------------------------------------------


def _mend_identity(files: FileSystem, path: str, more: Sequence[str]) -> list[Step]:
    """``pool.json`` from what else the pool has."""
    known: tuple[UUID, list[Device]] | None = None
    why = f"{path}/pool.json is not there"
    try:
        known = read_identity(files, path)
    except Corrupt as broken:
        if _is_of_later(files, f"{path}/pool.json"):
            raise
        why = broken.detail
    remembered = _of_meta(files, path)
    witnesses = _witnesses(files, path)
    if known is None and remembered is None and not witnesses:
        raise _absent(path)
    pool_id = _most_likely(known, remembered, witnesses)
    listed = known[1] if known is not None else []
    told = remembered[1] if remembered is not None else []
    certain = bool(listed) and all(_is_device(files, pool_id, each) for each in listed)
    devices = listed if certain else told or listed
    devices = [*devices, *_added(files, pool_id, devices, more)]
    if known is not None and (pool_id, devices) == known:
        return []
    if known is not None:
        why = f"{path}/pool.json names pool {known[0]} and {len(listed)} devices, others of its files do not"
    aside = [set_aside(files, f"{path}/pool.json")] if files.exists(f"{path}/pool.json") else []
    write_identity(files, path, pool_id, devices)
    return [Step(f"{path}/pool.json is written anew: pool {pool_id} with {len(devices)} more devices", why, aside)]


def _is_of_later(files: FileSystem, name: str) -> bool:
    """Whether the file is whole, and of a format that this program does not know."""
    file = files.open(name)
    try:
        facts = json.loads(file.pread(file.size(), 0))
        UUID(facts["pool"])
        return isinstance(facts["format"], int) and facts["format"] > VERSION
    except (ValueError, KeyError, TypeError, AttributeError):
        return False
    finally:
        file.close()


def _of_meta(files: FileSystem, path: str) -> tuple[UUID, list[Device]] | None:
    """What meta says, without changing it."""
    if not files.exists(f"{path}/meta.db"):
        return None
    try:
        meta = Meta(OverlayFiles(files), f"{path}/meta.db")
    except Problem:
        return None
    try:
        devices = [Device(**each) for each in json.loads(meta.get("devices", "[]"))]
        return UUID(meta.get("pool")), devices
    except (Problem, ValueError, TypeError, AttributeError):
        return None
    finally:
        meta.close()


def _witnesses(files: FileSystem, path: str) -> Counter[UUID]:
    """Whose groups and segments lie in the pool's own directory, by their headers."""
    found: Counter[UUID] = Counter()
    for directory, known in ((f"{path}/groups", _pool_of_group), (f"{path}/log", _pool_of_segment)):
        for name in files.listdir(directory) if files.exists(directory) else []:
            pool_id = known(files, directory, name)
            if pool_id is not None:
                found[pool_id] += 1
    return found


def _first_page(files: FileSystem, path: str) -> bytes:
    file = files.open(path)
    try:
        return file.pread(PAGE, 0)
    finally:
        file.close()


def _pool_of_group(files: FileSystem, directory: str, name: str) -> UUID | None:
    if parse_group_name(name) is None:
        return None
    page = _first_page(files, f"{directory}/{name}")
    return UUID(bytes=page[_POOL_AT : _POOL_AT + 16]) if has_header(page) else None


def _pool_of_segment(files: FileSystem, directory: str, name: str) -> UUID | None:
    return pool_of_segment(_first_page(files, f"{directory}/{name}")) if name.endswith(".seg") else None


def _most_likely(
    known: tuple[UUID, list[Device]] | None, remembered: tuple[UUID, list[Device]] | None, witnesses: Counter[UUID]
) -> UUID:
    """The pool's id: what most of its files say."""
    votes = Counter(witnesses)
    for each in (known, remembered):
        if each is not None:
            votes[each[0]] += 1
    best = max(votes.values())
    candidates = [pool_id for pool_id, count in votes.items() if count == best]
    return known[0] if known is not None and known[0] in candidates else candidates[0]


def _is_device(files: FileSystem, pool_id: UUID, device: Device) -> bool:
    return device.remote or (device.tier in TIERS and device_identity(files, device.path) == (str(pool_id), device.id))


def _added(files: FileSystem, pool_id: UUID, known: Sequence[Device], paths: Sequence[str]) -> list[Device]:
    """Devices that somebody named, by what they say of themselves. Raises ``Corrupt`` (``device.foreign``)."""
    found: list[Device] = []
    for path in paths:
        said = device_identity(files, path)
        if said is None or said[0] != str(pool_id):
            raise Corrupt(
                "device.foreign",
                f"{path} is no device of pool {pool_id}",
                cause=f"its device.json names {said[0]}" if said else f"there is no {path}/device.json",
                remedy="name another directory",
            )
        if said[1] not in {each.id for each in (*known, *found)}:
            found.append(Device(said[1], path.rstrip("/"), SLOW))
    return found


# -- devices -----------------------------------------------------------------------------------------------------------


def _mend_devices(files: FileSystem, path: str) -> list[Step]:
    """``device.json`` where a device's groups are the pool's."""
    steps = []
    identity = read_identity(files, path)
    assert identity is not None
    pool_id, devices = identity
    for device in devices:
        if device.remote or device_identity(files, device.path) == (str(pool_id), device.id):
            continue
        names = files.listdir(device.groups) if files.exists(device.groups) else []
        whose = {found for name in names if (found := _pool_of_group(files, device.groups, name)) is not None}
        name = f"{device.path}/device.json"
        if not whose <= {pool_id} or not (whose or files.exists(name)):
            if not files.exists(name):
                raise Unavailable(
                    "device.missing",
                    f"{device.path}, which has a part of the pool in {path}, is not there",
                    cause=f"there is no {name}, and no group of the pool beside it",
                    remedy="mount it, or put it back",
                )
            continue  # opening the pool tells what it is
        aside = [set_aside(files, name)] if files.exists(name) else []
        write_device_identity(files, device.path, pool_id, device.id)
        why = "it was missing or damaged; the groups beside it are the pool's"
        steps.append(Step(f"{name} is written anew", why, aside))
    return steps


# -- meta --------------------------------------------------------------------------------------------------------------


def _mend_meta(io: Io, path: str, limits: Limits | None) -> list[Step]:
    """A new meta from the groups and the log where the one that is there is of no use."""
    why = _wrong_with_meta(io, path, limits)
    if why is None:
        return []
    files = io.files
    before = set(files.listdir(path))
    found = rebuild_meta(io, path)
    asides = [f"{path}/{name}" for name in files.listdir(path) if ".broken-" in name and name not in before]
    counts = ", ".join(f"{found[what]} {what}" for what in ("disks", "snapshots", "groups"))
    steps = [
        Step(
            f"{path}/meta.db is rebuilt from the groups and the log: {counts}. Policies, attachments and holds are"
            " gone, what was removed since the last drain may be back, and what was made since is missing where the"
            " log does not tell of it",
            why,
            asides,
        )
    ]
    steps += [
        Step(f"disk {each} is new: writes of a disk whose id, size and origin nothing remembers", "found in the log")
        for each in found["nameless"]
    ]
    steps += [Step(f"what was in {each} is lost", "its header fails its checksum") for each in _unreadable(files, path)]
    for subject, doubt in found["doubts"].items():
        steps.append(Step(f"{subject} is as of an earlier instant", doubt))
    return steps


def _unreadable(files: FileSystem, path: str) -> list[str]:
    """Segments of the log that say nothing."""
    found = []
    for name in files.listdir(f"{path}/log"):
        page = _first_page(files, f"{path}/log/{name}") if name.endswith(".seg") else b""
        if page.strip(b"\0") and pool_of_segment(page) is None:
            found.append(f"{path}/log/{name}")
    return found


def _wrong_with_meta(io: Io, path: str, limits: Limits | None) -> str | None:
    """Why meta is to be rebuilt; None where it is of use. Tried on an overlay."""
    try:
        pool = MendingPool.open(replace(io, files=OverlayFiles(io.files)), path, limits=limits, background=False)
    except Problem as problem:
        if problem.code in ("meta.corrupt", "meta.lost", "meta.foreign", "meta.failed"):
            return str(problem.detail)
        if problem.code == "device.unknown":
            raise Corrupt(
                "device.unknown", problem.detail, remedy="name the directory of that device: --device PATH"
            ) from problem
        raise
    why = pool.read_only if pool.rolled_back else None
    with suppress(Problem):
        pool.close()
    return why
