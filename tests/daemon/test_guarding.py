"""What guards drop is told once, with the port, the vm and how much."""

from __future__ import annotations

import asyncio
from contextlib import closing
from pathlib import Path
from typing import Any, cast

import pytest

from innkeeper.daemon import guarding as guarding_module
from innkeeper.daemon.guarding import WHAT, Guarding, fresh
from innkeeper.daemon.journal import Journal, Note
from innkeeper.daemon.rooms import Rooms
from innkeeper.model.guards import GUARD_NAMES
from innkeeper.model.journal import JournalFilter
from innkeeper.model.problems import NotFound
from innkeeper.model.resources import Nic, Vm, VmSpec, VmStatus, new_id
from innkeeper.network.ruleset import COUNTED
from innkeeper.network.switch import SwitchRunner
from innkeeper.state.store import Store
from innkeeper.system.paths import Paths


def test_only_what_is_new_is_told() -> None:
    before = {"a": {"arp": 5, "mac": 1}, "gone": {"arp": 9}}
    after = {"a": {"arp": 7, "mac": 1}, "quiet": {"arp": 0}, "new": {"mac": 3, "arp": 0}}
    assert fresh(before, after) == {"a": {"arp": 2}, "new": {"mac": 3}}


def test_a_port_that_was_made_anew_counts_from_zero() -> None:
    assert fresh({"a": {"arp": 5}}, {"a": {"arp": 2}}) == {"a": {"arp": 2}}


class Counting:
    """A runner's counters: of all ports, and of one that still stands."""

    def __init__(self) -> None:
        self.dropped: dict[str, dict[str, int]] = {}

    async def all_counters(self) -> dict[str, dict[str, int]]:
        return {tap: dict(guards) for tap, guards in self.dropped.items()}

    async def counters(self, tap: str) -> dict[str, int]:
        if tap not in self.dropped:
            raise NotFound("nic.not_plugged", f"tap {tap} is plugged into no switch")
        return dict(self.dropped[tap])


def test_what_a_port_dropped_is_told_before_it_goes_and_once(tmp_path: Path) -> None:
    paths = Paths.open(tmp_path / "inn", create=True)
    unused: Any = None
    with closing(Store(paths.database)) as store, closing(Journal(paths.journal)) as journal:
        vm = store.create(Vm(name="web", spec=VmSpec(), status=VmStatus(uid=900001)))
        nic = store.create(Nic(name="web-0", vm_id=vm.id, switch_id=new_id(), number=1, mac="52:54:00:00:00:01"))
        tap, runner = paths.tap(nic.number), Counting()
        guarding = Guarding(Rooms(paths, store, unused, unused, journal), cast(SwitchRunner, runner))

        def told() -> dict[str, int]:
            return {entry.message.split()[1]: entry.count for entry in journal.ls(JournalFilter())}

        async def live() -> None:
            runner.dropped[tap] = {"arp": 2}
            await guarding.tell()
            assert told() == {"arp": 2}
            runner.dropped[tap] = {"arp": 5, "mac": 1}
            await guarding.unplug(nic)
            assert told() == {"arp": 5, "mac": 1}
            await guarding.tell()  # it is still there
            assert told() == {"arp": 5, "mac": 1}
            runner.dropped.clear()
            await guarding.unplug(nic)
            await guarding.tell()
            runner.dropped[tap] = {"arp": 1}
            await guarding.tell()
            assert told() == {"arp": 6, "mac": 1}

        asyncio.run(live())


def test_every_guard_has_words() -> None:
    assert set(WHAT) == set(GUARD_NAMES) <= set(COUNTED)


def test_what_nobody_foresaw_does_not_end_the_telling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guarding_module, "TELL_INTERVAL_S", 0.0)
    answers: list[Exception | dict[str, dict[str, int]]] = [ValueError("no JSON")]
    told: list[int] = []
    enough = asyncio.Event()

    class Runner:
        async def all_counters(self) -> dict[str, dict[str, int]]:
            answer = answers.pop(0) if len(answers) > 1 else answers[0]
            if isinstance(answer, Exception):
                raise answer
            return answer

    class Failing:
        def note_all(self, notes: list[Note]) -> None:
            told.extend(note.count for note in notes)
            if len(told) == 1:
                raise OSError("the disk is full")
            enough.set()

    paths = Paths.open(tmp_path / "inn", create=True)
    store, unused = Store(paths.database), None
    rooms: Any = Rooms(paths, store, unused, unused, Failing())  # type: ignore[arg-type]
    nic = Nic(name="web-0", vm_id=new_id(), switch_id=new_id(), mac="52:54:00:00:00:01", number=1)
    answers += [{paths.tap(1): {"mac": count}} for count in (1, 3)]

    async def live() -> None:
        store.create(nic)
        looking = Guarding(rooms, Runner())  # type: ignore[arg-type]
        await looking.settle()
        await asyncio.wait_for(enough.wait(), 10)
        await looking.let_go()

    asyncio.run(live())
    assert told == [1, 2]
    store.close()
