"""What rules of lists log is told in the journal, and a flood of it is told as a number."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import frames as f
import pytest
from acl_world import UNGUARDED
from hypothesis import given, strategies as st
from switch_lab import PATIENCE_S, Guest, Lab, new_namespace
from switch_world import SWITCH, port_of

from innkeeper.daemon import acls
from innkeeper.daemon.acl_log import SENTENCES_AT_ONCE, AclLog, Budget, place_of
from innkeeper.daemon.acls import check_logs
from innkeeper.daemon.journal import Journal
from innkeeper.daemon.rooms import Rooms
from innkeeper.model.acl import AclLists, AclRule
from innkeeper.model.journal import JournalEntry, JournalFilter
from innkeeper.model.problems import Unavailable
from innkeeper.model.resources import Nic, Vm, VmSpec, VmStatus, new_id
from innkeeper.network.acl import policy_of
from innkeeper.network.nflog import Logged
from innkeeper.state.store import Store
from innkeeper.system.paths import Paths

NAMES = {7: "intp-a1", 8: "intp-a2"}


def logged(prefix: str, in_index: int = 7, out_index: int = 8) -> Logged:
    return Logged(prefix, in_index, out_index, 0x0800, None, b"")


def test_what_is_logged_names_port_and_rule() -> None:
    assert place_of(logged("acl out/100 deny"), NAMES) == (("intp-a1", "out"), "rule out/100", "denied")
    assert place_of(logged("acl in/0 allow web"), NAMES) == (("intp-a2", "in"), "rule in/0 of acl web", "allowed")
    assert place_of(logged("acl in/0 allow web", out_index=9), NAMES) is None


@given(st.text() | st.lists(st.sampled_from(["acl", "in/1", "out/x", "in", "deny", "web", "²"])).map(" ".join))
def test_what_is_no_rules_prefix_is_passed_over(prefix: str) -> None:
    place_of(logged(prefix), NAMES)


def test_a_budget_is_spent_and_comes_back() -> None:
    budget = Budget(3, 0.5)
    assert [budget.take("a", 0.0) for _ in range(5)] == [True, True, True, False, False]
    assert budget.take("b", 0.0)
    assert not budget.take("a", 1.0) and budget.take("a", 2.5) and not budget.take("a", 3.0)
    assert [budget.take("a", 1_000.0) for _ in range(4)] == [True, True, True, False]
    budget.forget(["b"])
    assert budget.take("a", 1_000.0)


def test_a_rule_that_logs_needs_a_kernel_that_does(monkeypatch: pytest.MonkeyPatch) -> None:
    quiet = AclRule(weight=1, action="deny", direction="in")
    loud = quiet.model_copy(update={"weight": 7, "log": True})
    monkeypatch.setattr(acls, "kernel_parts", lambda parts: dict.fromkeys(parts, True))
    check_logs([quiet, loud])
    monkeypatch.setattr(acls, "kernel_parts", lambda parts: {part: part != "nfnetlink_log" for part in parts})
    check_logs([quiet])
    with pytest.raises(Unavailable) as refused:
        check_logs([quiet, loud])
    assert refused.value.code == "network.kernel_lacks"
    assert "nfnetlink_log" in str(refused.value) and "in/7" in str(refused.value)


class World:
    """A switch whose cards have documents, with a journal that hears what their rules log."""

    def __init__(self, lab: Lab, rooms: Rooms) -> None:
        self.lab, self.rooms = lab, rooms
        self.log = AclLog(rooms, lab.runner)
        vm = rooms.store.create(Vm(name="web", spec=VmSpec(), status=VmStatus(uid=900001)))
        self.guests: list[Guest] = []
        self.nics: list[Nic] = []
        for number in (1, 2):
            port = replace(port_of(number), tap=rooms.paths.tap(number))
            nic = Nic(name=f"web-{number}", vm_id=vm.id, switch_id=new_id(), number=number, mac=port.mac)
            self.nics.append(rooms.store.create(nic))
            self.guests.append(lab.plug(port))

    def send(self, ports: range) -> None:
        one, two = self.guests
        for port in ports:
            packet = f.ipv4(one.ip, two.ip, 17, f.udp(one.ip, two.ip, 5000, port, b"word"))
            one.send(f.ethernet(two.mac, one.mac, 0x0800, packet))

    def told(self, reason: str) -> list[JournalEntry]:
        return [entry for entry in self.rooms.journal.ls(JournalFilter()) if entry.reason == reason]

    async def until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < deadline, [entry.message for entry in self.rooms.journal.ls(JournalFilter())]
            await asyncio.sleep(0.05)


@contextmanager
def new_world(tmp_path: Path) -> Iterator[World]:
    paths = Paths.open(tmp_path / "inn", create=True)
    unused: Any = None
    with (
        closing(Store(paths.database)) as store,
        closing(Journal(paths.journal)) as journal,
        tempfile.TemporaryDirectory(prefix="inn-lab-") as folder,
        new_namespace("acllog") as namespace,
    ):
        Path(folder).chmod(0o755)
        with closing(Lab(namespace, Path(folder) / "switches", SWITCH, paths.inn_id)) as lab:
            yield World(lab, Rooms(paths, store, unused, unused, journal))


@pytest.mark.root
def test_denials_and_allowances_are_told_and_a_flood_is_a_number(tmp_path: Path) -> None:
    denied = AclRule(weight=9, action="deny", direction="out", protocol="udp", remote_ports="6000-60000", log=True)
    allowed = AclRule(weight=5, action="allow", direction="in", protocol="udp", remote_ports="5000", log=True)
    silent = AclRule(weight=1, action="deny", direction="in")
    with new_world(tmp_path) as world:
        lab, (one, two) = world.lab, world.guests
        lab.set_port(one, replace(one.port, acl=policy_of([("", AclLists(rules=[denied]))])))
        lists = [("", AclLists()), ("servers", AclLists(rules=[allowed, silent]))]
        lab.set_port(two, replace(two.port, acl=policy_of(lists)))
        assert lab.do(lab.runner.repair()).done == [], "the kernel lists them as they were given"

        async def live() -> None:
            await world.log.settle()
            while not world.told("AclDenied"):  # what is sent before the log is heard is counted only
                world.send(range(7000, 7001))
                await asyncio.sleep(0.1)
            world.send(range(53, 54))
            await world.until(lambda: bool(world.told("AclAllowed")))
            (entry,) = world.told("AclDenied")
            port = f"port {one.port.tap} (card web-1, vm web)"
            assert entry.message == f"rule out/9 denied udp {one.ip}:5000 -> {two.ip}:7000 at {port}"
            assert (entry.subject.name, entry.subject.vm_id) == ("web-1", world.nics[0].vm_id)
            (entry,) = world.told("AclAllowed")
            port = f"port {two.port.tap} (card web-2, vm web)"
            assert entry.message == f"rule in/5 of acl servers allowed udp {one.ip}:5000 -> {two.ip}:53 at {port}"

            before = (await lab.runner.logged())[one.port.tap]["out"]
            world.send(range(10_000, 20_000))
            decided = (await lab.runner.logged())[one.port.tap]["out"]
            assert decided - before == 10_000
            await world.until(lambda: len(world.told("AclDenied")) > 1)
            await world.log.unplug(world.nics[0])
            await world.log.let_go()
            entries, (left_out,) = world.told("AclDenied"), world.told("AclLogSuppressed")
            assert 1 < len(entries) <= 2 * SENTENCES_AT_ONCE
            assert sum(entry.count for entry in entries) + left_out.count == decided
            assert "(out)" in left_out.message and one.port.tap in left_out.message

        lab.do(live())


@pytest.mark.root
def test_what_is_left_untold_at_one_look_is_counted_at_the_next(tmp_path: Path) -> None:
    rule = AclRule(weight=9, action="deny", direction="out", protocol="udp", log=True)
    with new_world(tmp_path) as world:
        one = world.guests[0]
        world.lab.set_port(one, replace(one.port, acl=policy_of([("", AclLists(rules=[rule]))])))

        async def live() -> None:
            world.send(range(1001, 1101))
            await world.log.count()
            assert world.told("AclLogSuppressed") == [], "it may be on its way"
            await world.log.count()
            assert [entry.count for entry in world.told("AclLogSuppressed")] == [100]
            await world.log.count()
            await world.log.unplug(world.nics[0])
            assert [entry.count for entry in world.told("AclLogSuppressed")] == [100]

        world.lab.do(live())


@pytest.mark.root
def test_a_tag_and_ipv6_are_told(tmp_path: Path) -> None:
    rule = AclRule(weight=9, action="deny", direction="out", protocol="47", log=True)
    with new_world(tmp_path) as world:
        one, two = world.guests
        acl = policy_of([("", AclLists(rules=[rule]))])
        world.lab.set_port(one, replace(one.port, guards=UNGUARDED, acl=acl))
        tags = ((0x8100, 0x600A),)
        frames = [
            f.ethernet(two.mac, one.mac, 0x0800, f.ipv4(one.ip, two.ip, 47, b"word"), tags),
            f.ethernet(two.mac, one.mac, 0x86DD, f.ipv6("fe80::1", "fe80::2", 47, b"word")),
        ]
        wanted = {f"protocol 47 {one.ip} -> {two.ip} in VLAN 10", "protocol 47 fe80::1 -> fe80::2"}

        def told() -> set[str]:
            entries = world.told("AclDenied")
            return {entry.message.split(" at ")[0].removeprefix("rule out/9 denied ") for entry in entries}

        async def live() -> None:
            await world.log.settle()
            while told() < wanted:
                one.send(*frames)
                await asyncio.sleep(0.1)
            await world.log.let_go()

        world.lab.do(asyncio.wait_for(live(), PATIENCE_S))
        assert told() == wanted


@pytest.mark.root
def test_lists_hold_where_the_kernel_cannot_log(tmp_path: Path) -> None:
    rule = AclRule(weight=9, action="deny", direction="out", protocol="udp", log=True)
    with new_world(tmp_path) as world:
        lab, one = world.lab, world.guests[0]
        kernel = lab.runner._open
        kernel.schema = kernel._rules._schema = replace(kernel.schema, logs=False)
        lab.set_port(one, replace(one.port, acl=policy_of([("", AclLists(rules=[rule]))])))
        world.send(range(1, 11))
        assert lab.dropped(one)["acl"] == 10
        assert lab.do(lab.runner.repair()).done == []
