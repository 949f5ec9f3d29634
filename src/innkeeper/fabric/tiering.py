"""Which group belongs on which device: a pure decision from how full devices are and when groups were read.

Nutanix's rules, as published: above 75 % of the fast tier the coldest data goes down, the larger of "to 75 %" and 15 %
of the tier; data on the slow tier that was touched 3 times at random, or 10 times by long reads, within 10 minutes goes
up, where a touch is a span of 10 s in which it was read, however often. A device that is being drained gives up all,
and what is bound to a tier goes there and stays, as long as that has room. What is hot where it stays, in an object
store or bound to the slow tier, gets a copy on the fast one instead.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from innkeeper.fabric.devices import DRAINING, FAST, ONLINE, SLOW

TOUCH_S = 10.0
WINDOW_S = 600.0
RANDOM_TOUCHES = 3
BULK_TOUCHES = 10
HIGH_PERCENT = 75
DOWN_PERCENT = 15
FULL_PERCENT = 95
"""No device is filled beyond this by moves."""
COPY_PERCENT = 20
"""What fast copies may take of the fast tier."""


@dataclass(frozen=True, slots=True)
class DeviceFacts:
    """A device: the size of its file system and what is free of it, in bytes, less what is reserved there.

    Devices on one file system have the same ``volume``: between them no move makes room or haste.
    """

    id: str
    tier: str
    state: str
    total_bytes: int
    free_bytes: int
    volume: int | None = None
    remote: bool = False
    """An object store: it holds as much as it is given, and is the last resort of the slow tier."""


@dataclass(frozen=True, slots=True)
class GroupFacts:
    """A group that may be moved: where it is, its bytes, when it was last touched (s), whether it is wanted up.

    ``bound``: the tier that it is to stay on whatever its heat; "" for none.
    """

    number: int
    device: str
    size_bytes: int
    touched_at: float = 0.0
    hot: bool = False
    bound: str = ""


@dataclass(frozen=True, slots=True)
class Move:
    """A group and the device it is to go to."""

    number: int
    device: str


@dataclass(slots=True)
class Heat:
    """When groups were touched; ``sample`` is told every ``TOUCH_S`` which were read since."""

    random: dict[int, deque[float]] = field(default_factory=dict)
    bulk: dict[int, deque[float]] = field(default_factory=dict)
    last: dict[int, float] = field(default_factory=dict)

    def sample(self, now: float, random: Iterable[int], bulk: Iterable[int]) -> None:
        for touched, kept, most in ((random, self.random, RANDOM_TOUCHES), (bulk, self.bulk, BULK_TOUCHES)):
            for number in touched:
                kept.setdefault(number, deque(maxlen=most)).append(now)
                self.last[number] = now
        for kept in (self.random, self.bulk):
            for number in [number for number, times in kept.items() if times[-1] < now - WINDOW_S]:
                del kept[number]

    def hot(self, number: int, now: float) -> bool:
        """Whether it was touched so often of late that it belongs on a fast device."""
        for kept, enough in ((self.random, RANDOM_TOUCHES), (self.bulk, BULK_TOUCHES)):
            times = kept.get(number)
            if times and len(times) == enough and times[0] >= now - WINDOW_S:
                return True
        return False

    def touches(self, now: float) -> dict[int, int]:
        """How often each group was touched of late, as far as that is kept."""
        counts: dict[int, int] = {}
        for kept in (self.random, self.bulk):
            for number, times in kept.items():
                counts[number] = counts.get(number, 0) + sum(1 for at in times if at >= now - WINDOW_S)
        return {number: count for number, count in counts.items() if count}

    def warm(self, now: float) -> set[int]:
        """All that is ``hot``."""
        return {number for number in (*self.random, *self.bulk) if self.hot(number, now)}

    def forget(self, present: Iterable[int]) -> None:
        """Drop what is known of groups that are gone."""
        known = set(present)
        self.random = {number: times for number, times in self.random.items() if number in known}
        self.bulk = {number: times for number, times in self.bulk.items() if number in known}
        self.last = {number: at for number, at in self.last.items() if number in known}


def due(devices: Sequence[DeviceFacts], hot: bool) -> bool:
    """Whether a plan could have any move in it; ``hot``: there are hot groups."""
    below = any(device.remote for device in devices)
    return hot or any(device.state == DRAINING or _too_full(device, device.free_bytes, below) for device in devices)


def _too_full(device: DeviceFacts, free_bytes: int, below: bool) -> bool:
    """Whether a device is to give the coldest away; ``below``: there is an object store below the slow devices."""
    used = device.total_bytes - free_bytes
    gives = device.tier == FAST or (below and not device.remote)
    return gives and used * 100 > HIGH_PERCENT * device.total_bytes


def plan(devices: Sequence[DeviceFacts], groups: Sequence[GroupFacts]) -> list[Move]:
    """The moves worth making now, the most urgent first; free space is counted down as they are planned."""
    planner = _Planner(devices, sorted(groups, key=lambda group: (group.touched_at, group.number)))
    planner.drain()
    planner.bind()
    planner.down()
    planner.up()
    return planner.moves


class _Planner:
    """A plan in the making; ``groups`` the coldest first."""

    def __init__(self, devices: Sequence[DeviceFacts], groups: Sequence[GroupFacts]) -> None:
        self.moves: list[Move] = []
        self._groups = groups
        self._by_id = {device.id: device for device in devices}
        self._online = [device for device in devices if device.state == ONLINE]
        self._free = {device.id: device.free_bytes for device in devices}

    def drain(self) -> None:
        """All of what is being drained goes, to a device of its own tier if one has room."""
        for group in self._groups:
            here = self._by_id[group.device]
            if here.state == DRAINING:
                other = SLOW if here.tier == FAST else FAST
                size = group.size_bytes
                to = self._target(here.tier, size, FULL_PERCENT) or self._target(other, size, FULL_PERCENT)
                self._move(group, to)

    def bind(self) -> None:
        """What is bound to another tier than it is on goes there."""
        for group in self._groups:
            here = self._by_id[group.device]
            if group.bound not in ("", here.tier) and here.state == ONLINE:
                self._move(group, self._target(group.bound, group.size_bytes, FULL_PERCENT, here))

    def down(self) -> None:
        """The coldest of devices that are too full go down: fast, slow, object store."""
        below = any(device.remote for device in self._online)
        for device in sorted(self._online, key=lambda each: each.tier != SLOW):
            used = device.total_bytes - self._free[device.id]
            if not _too_full(device, self._free[device.id], below):
                continue
            wanted = max(used - HIGH_PERCENT * device.total_bytes // 100, DOWN_PERCENT * device.total_bytes // 100)
            for group in self._groups:
                if wanted <= 0:
                    break
                stays = group.hot or (group.bound != "" and (group.bound, device.tier) != (SLOW, SLOW))
                if group.device != device.id or stays:
                    continue
                if self._move(group, self._target(SLOW, group.size_bytes, FULL_PERCENT, device)):
                    wanted -= group.size_bytes

    def up(self) -> None:
        """What is hot on slow directories goes up, the hottest first."""
        for group in reversed(self._groups):
            here = self._by_id[group.device]
            if group.hot and not group.bound and here.tier == SLOW and here.state == ONLINE and not here.remote:
                self._move(group, self._target(FAST, group.size_bytes, HIGH_PERCENT, here))

    def _target(self, tier: str, size: int, percent: int, away_from: DeviceFacts | None = None) -> DeviceFacts | None:
        """The device of a tier with most room that is then filled to ``percent`` at most, on another file system.

        A store only where no disk has room, and for what goes on from a slow disk.
        """
        on_slow = away_from is not None and away_from.tier == SLOW and not away_from.remote
        fit = [
            device
            for device in self._online
            if device.tier == tier
            and (self._free[device.id] - size) * 100 >= (100 - percent) * device.total_bytes
            and (away_from is None or device.volume is None or device.volume != away_from.volume)
            and (device.remote or not (on_slow and tier == SLOW))
        ]
        return max(fit, key=lambda device: (not device.remote, self._free[device.id], device.id), default=None)

    def _move(self, group: GroupFacts, to: DeviceFacts | None) -> bool:
        if to is None:
            return False
        self.moves.append(Move(group.number, to.id))
        self._free[to.id] -= group.size_bytes
        self._free[group.device] += group.size_bytes
        return True


def copy_budget(devices: Sequence[DeviceFacts], copied_bytes: int) -> int:
    """How many bytes fast copies may take in all: a share of the fast tier, and none of what keeps it from being too
    full. ``copied_bytes``: what they take now."""
    volumes = {
        (device.volume if device.volume is not None else device.id): (device.total_bytes, device.free_bytes)
        for device in devices
        if device.tier == FAST and device.state == ONLINE
    }
    total = sum(size for size, _ in volumes.values())
    others = total - sum(free for _, free in volumes.values()) - copied_bytes
    return max(0, min(COPY_PERCENT * total // 100, HIGH_PERCENT * total // 100 - others))


def wants_copy(group: GroupFacts, here: DeviceFacts) -> bool:
    """Whether a group is hot where it stays: in an object store, or bound to the slow tier."""
    stays = here.remote or group.bound == SLOW
    return group.hot and here.tier == SLOW and here.state == ONLINE and stays and group.bound != FAST


def plan_copies(wanted: Sequence[GroupFacts], held: Sequence[GroupFacts], budget: int) -> tuple[list[int], list[int]]:
    """(copies to drop, groups to copy), by number. ``wanted``: groups that are to have a copy; ``held``: those that do.

    What is no longer wanted goes first, the coldest before all, and only where its room is needed; what is wanted and
    has a copy keeps it unless the budget shrinks.
    """
    hot = {group.number for group in wanted}
    kept = {group.number for group in held}
    used = sum(group.size_bytes for group in held)
    going = sorted(held, key=lambda group: (group.number in hot, group.touched_at, group.number))
    drop: list[int] = []
    make: list[int] = []
    while going and used > budget:
        used -= going[0].size_bytes
        drop.append(going.pop(0).number)
    for group in sorted(wanted, key=lambda each: (-each.touched_at, each.number)):
        if group.number in kept or group.size_bytes > budget:
            continue
        while going and going[0].number not in hot and used + group.size_bytes > budget:
            used -= going[0].size_bytes
            drop.append(going.pop(0).number)
        if used + group.size_bytes <= budget:
            used += group.size_bytes
            make.append(group.number)
    return drop, make
