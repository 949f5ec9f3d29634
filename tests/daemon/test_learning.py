"""Addresses that a DHCP server outside gives: learned, guarded, changed, and kept over the daemon's lives.

The server is a dnsmasq beyond the uplink; the guest is an open tap that speaks DHCP.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import struct
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any

import frames as f
import pytest
from host_lab import WORLD4, Host, dhcp_outside, new_host, send_from_world, until
from switch_lab import PATIENCE_S, Guest, in_namespace, run_in

from innkeeper.daemon import learning as module
from innkeeper.daemon.journal import Journal
from innkeeper.daemon.nics import Nics
from innkeeper.daemon.rooms import Rooms
from innkeeper.daemon.switches import Switches
from innkeeper.model import requests as ask, views
from innkeeper.model.journal import JournalFilter
from innkeeper.model.resources import LearnedAddresses, Nic, SwitchKind, Vm, VmSpec, VmStatus
from innkeeper.network import learned
from innkeeper.network.links import open_tap
from innkeeper.network.policy import PortPolicy
from innkeeper.state.store import Store
from innkeeper.system.paths import Paths

pytestmark = pytest.mark.root
FIRST, SECOND, STRANGE = "192.0.2.101", "192.0.2.117", "192.0.2.200"
LEASE = bytes([51, 4]) + struct.pack("!I", 3600)


@dataclass
class Life:
    """A daemon's, with one card on its external switch."""

    rooms: Rooms
    switches: Switches
    nics: Nics

    @property
    def nic(self) -> Nic:
        return self.rooms.store.ls(Nic)[0]

    async def shown(self) -> views.NicDetail:
        return await self.nics.show(self.nic.id)

    def learned(self) -> list[str]:
        return list(self.switches.learning.known(self.nic))

    async def until_listening(self) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while any(vm.status.pid for vm in self.rooms.store.ls(Vm)) and not self.switches.learning.hears:
                await asyncio.sleep(0.02)

    async def until_learned(self, *addresses: str) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while sorted(self.learned()) != sorted(addresses):
                await asyncio.sleep(0.02)

    async def until_told(self, reason: str, count: int = 1) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while sum(entry.reason == reason for entry in self.rooms.journal.ls(JournalFilter())) < count:
                await asyncio.sleep(0.02)

    async def dropped(self, guest: Guest, *sent: bytes) -> int:
        """How many of those frames the guards dropped."""
        before = sum((await self.shown()).dropped_packets.values())
        guest.send(*sent)
        return sum((await self.shown()).dropped_packets.values()) - before


class Inn:
    """An inn on a host of ``host_lab``; each ``run`` is a daemon's life."""

    def __init__(self, host: Host, paths: Paths) -> None:
        self.host = host
        self.paths = paths

    def run(self, scenario: Callable[[Life], Awaitable[None]], *, ends: bool = False) -> None:
        async def live() -> None:
            store, journal = Store(self.paths.database), Journal(self.paths.journal)
            unused: Any = None
            rooms = Rooms(self.paths, store, unused, unused, journal)
            switches = Switches(rooms)
            await switches.ensure_all()
            try:
                life = Life(rooms, switches, Nics(rooms, switches))
                await life.until_listening()
                await scenario(life)
            finally:
                await (switches.down_all() if ends else switches.let_go())
                journal.close()
                store.close()

        in_namespace(self.host.namespace, lambda: asyncio.run(live()))


async def settle_in(life: Life) -> None:
    """The switch takes the card, and a vm that has a process gets its port."""
    await life.switches.create(ask.SwitchCreate(name="lan", kind=SwitchKind.EXTERNAL, uplinks=["eth0"]))
    await life.switches.confirm("lan")
    vm = life.rooms.store.create(Vm(name="web", spec=VmSpec(), status=VmStatus(pid=os.getpid())))
    await life.switches.port_up(life.nics.allocate(vm, ask.VmNic(switch="lan")))


@pytest.fixture
def inn(tmp_path: Any) -> Iterator[Inn]:
    paths = Paths.open(tmp_path / "inn", create=True)
    with new_host() as host:
        made = Inn(host, paths)
        made.run(settle_in)
        try:
            yield made
        finally:
            made.run(_nothing, ends=True)
    shutil.rmtree(paths.run, ignore_errors=True)


async def _nothing(_: Life) -> None:
    return


@pytest.fixture
def guest(inn: Inn) -> Iterator[Guest]:
    found: list[PortPolicy] = []

    async def find(life: Life) -> None:
        found.append(PortPolicy(life.rooms.paths.tap(life.nic.number), life.nic.mac))

    inn.run(find)
    (port,) = found
    descriptor = in_namespace(inn.host.namespace, lambda: open_tap(port.tap))
    try:
        shows = ("bridge", "link", "show", "dev", port.tap)
        assert until(lambda: "state forwarding" in run_in(inn.host.namespace, *shows))
        yield Guest(port, descriptor)
    finally:
        os.close(descriptor)


# --- the guest's client ----------------------------------------------------------------------------------------------


def asks(guest: Guest, kind: int, number: int, *, has: str | None = None, wants: str | None = None) -> bytes:
    message = f.dhcp(1, kind, guest.mac, xid=number, options=bytes([50, 4]) + f.ip(wants) if wants else b"")
    if has is not None:
        message = message[:12] + f.ip(has) + message[16:]
    source = has or "0.0.0.0"
    packet = f.ipv4(source, "255.255.255.255", 17, f.udp(source, "255.255.255.255", 68, 67, message))
    return f.ethernet(f.BROADCAST, guest.mac, 0x0800, packet)


def exchange(guest: Guest, kind: int, number: int, **members: Any) -> tuple[int, str]:
    """(type, address) of the answer."""
    guest.drain()
    guest.send(asks(guest, kind, number, **members))
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        frame = guest.receive(0.5)
        if frame and frame[12:14] == b"\x08\x00" and frame[36:38] == b"\0\x44" and frame[46:50] == number.to_bytes(4):
            return frame[284], socket.inet_ntoa(frame[58:62])
    raise AssertionError("no answer of DHCP")


def gets_address(guest: Guest, number: int) -> str:
    _, offered = exchange(guest, 1, number)
    assert exchange(guest, 3, number, wants=offered) == (5, offered)
    return offered


def spoofed(guest: Guest) -> list[bytes]:
    """ARP and IPv4 from an address that is not the guest's."""
    packet = f.ipv4(STRANGE, WORLD4, 17, f.udp(STRANGE, WORLD4, 4000, 4000, b"x"))
    claim = f.arp(guest.mac, 1, guest.mac, STRANGE, "00:00:00:00:00:00", WORLD4)
    return [claim, f.ethernet(f.BROADCAST, guest.mac, 0x0800, packet)]


def answered(guest: Guest, address: str) -> bool:
    """Whether the world answers the guest at that address."""
    guest.drain()
    guest.send(f.arp(guest.mac, 1, guest.mac, address, "00:00:00:00:00:00", WORLD4))
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        frame = guest.receive(0.5)
        if frame and frame[12:14] == b"\x08\x06" and frame[28:32] == f.ip(WORLD4) and frame[38:42] == f.ip(address):
            return True
    return False


def server(host: Host, guest: Guest, address: str, lease: str = "1h") -> Any:
    return dhcp_outside(host, f"--dhcp-host={guest.mac},{address},{lease}", "--dhcp-authoritative")


# --- tests -----------------------------------------------------------------------------------------------------------


def test_an_address_is_learned_held_and_kept_over_a_restart(inn: Inn, guest: Guest) -> None:
    async def learn(life: Life) -> None:
        shown = await life.shown()
        assert shown.guards_without_address == ["ip", "arp"]
        assert [one.known_from for one in shown.known_addresses] == ["mac"]
        assert await life.dropped(guest, *spoofed(guest)) == 0, "its address is not known"
        assert await asyncio.to_thread(gets_address, guest, 11) == FIRST
        await life.until_learned(FIRST)
        await life.until_told("AddressLearned")
        await holds(life)

    async def holds(life: Life) -> None:
        shown = await life.shown()
        assert shown.guards_without_address == [] and shown.address is None
        known = {one.address: one for one in shown.known_addresses}
        assert known[FIRST].known_from == "dhcp-learned" and known[FIRST].ends_at is not None
        assert await life.dropped(guest, *spoofed(guest)) == 2
        assert await asyncio.to_thread(answered, guest, FIRST)

    with server(inn.host, guest, FIRST):
        inn.run(learn)
    inn.run(holds)


def test_another_address_holds_at_once_and_the_old_one_for_a_grace(
    inn: Inn, guest: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def learn(life: Life) -> None:
        assert await asyncio.to_thread(gets_address, guest, 21) == FIRST
        await life.until_learned(FIRST)
        await life.until_told("AddressLearned")

    async def change(life: Life) -> None:
        assert await asyncio.to_thread(exchange, guest, 3, 22, has=FIRST) == (6, "0.0.0.0")
        assert await asyncio.to_thread(gets_address, guest, 23) == SECOND
        await life.until_learned(FIRST, SECOND)
        await life.until_told("AddressLearned", 2)
        for address in (FIRST, SECOND):
            assert await asyncio.to_thread(answered, guest, address)
        assert await life.dropped(guest, *spoofed(guest)) == 2
        monkeypatch.setattr(learned, "GRACE_S", 0.0)
        life.switches.learning._changed.set()  # the clock looks again
        await life.until_told("AddressForgotten")
        assert life.learned() == [SECOND]
        old = f.arp(guest.mac, 1, guest.mac, FIRST, "00:00:00:00:00:00", WORLD4)
        assert await life.dropped(guest, old) == 1
        assert await asyncio.to_thread(answered, guest, SECOND)

    with server(inn.host, guest, FIRST):
        inn.run(learn)
    with server(inn.host, guest, SECOND):
        inn.run(change)


def test_an_address_that_is_given_while_no_daemon_runs_holds_at_once_and_is_taken_over(inn: Inn, guest: Guest) -> None:
    async def learn(life: Life) -> None:
        assert await asyncio.to_thread(gets_address, guest, 61) == FIRST
        await life.until_learned(FIRST)
        await life.until_told("AddressLearned")

    async def take_over(life: Life) -> None:
        assert sorted(life.learned()) == [FIRST, SECOND]
        await life.until_told("AddressLearned", 2)
        assert await life.switches._runner.passed_leases() == []
        assert await life.dropped(guest, *spoofed(guest)) == 2
        assert await asyncio.to_thread(answered, guest, SECOND)
        assert (await life.switches._runner.repair()).done == []
        assert await asyncio.to_thread(exchange, guest, 3, 63, has=SECOND) == (5, SECOND)
        async with asyncio.timeout(PATIENCE_S):
            while life.switches.learning.leases(life.nic)[0].client == module.UNHEARD:
                await asyncio.sleep(0.02)

    with server(inn.host, guest, FIRST):
        inn.run(learn)
    with server(inn.host, guest, SECOND):
        assert gets_address(guest, 62) == SECOND
        assert answered(guest, SECOND) and answered(guest, FIRST)
        probe = f.arp(guest.mac, 1, guest.mac, "0.0.0.0", "00:00:00:00:00:00", WORLD4)
        guest.send(*spoofed(guest), probe)
        inn.run(take_over)


def test_what_nobody_asked_for_is_not_learned(inn: Inn, guest: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "JUST_BEGUN_S", -1.0)

    def forged(number: int, mac: str, address: str) -> bytes:
        message = f.dhcp(2, 5, mac, yours=address, options=LEASE, xid=number)
        packet = f.ipv4(WORLD4, "255.255.255.255", 17, f.udp(WORLD4, "255.255.255.255", 67, 68, message))
        return f.ethernet(f.BROADCAST, "02:00:00:00:00:20", 0x0800, packet)

    async def forge(life: Life) -> None:
        await asyncio.to_thread(guest.send, asks(guest, 1, 31))
        await asyncio.to_thread(send_from_world, inn.host, forged(30, guest.mac, STRANGE))
        await asyncio.to_thread(guest.wait_for, f.ip(STRANGE))
        async with asyncio.timeout(PATIENCE_S):
            while await life.switches._runner.passed_leases():
                await asyncio.sleep(0.02)
        sent = [forged(31, "52:54:00:00:00:99", STRANGE), forged(31, guest.mac, SECOND)]
        await asyncio.to_thread(send_from_world, inn.host, *sent)
        await life.until_learned(SECOND)

    inn.run(forge)


def test_it_goes_with_the_port_and_gives_way_to_the_document(inn: Inn, guest: Guest) -> None:
    async def learn(life: Life) -> None:
        await asyncio.to_thread(gets_address, guest, 41)
        await life.until_learned(FIRST)
        await life.nics.set(life.nic.id, ask.NicSet(address=SECOND))
        shown = await life.shown()
        assert [one.known_from for one in shown.known_addresses if ":" not in one.address] == ["document"]
        assert life.learned() == []
        await life.switches.port_down(life.nic)
        assert life.rooms.store.ls(LearnedAddresses) == []
        await life.switches.port_up(life.nic)

    with server(inn.host, guest, FIRST):
        inn.run(learn)


def test_a_card_that_is_no_more_plugged_in_when_the_daemon_starts_is_not_known(inn: Inn, guest: Guest) -> None:
    async def learn(life: Life) -> None:
        await asyncio.to_thread(gets_address, guest, 51)
        await life.until_learned(FIRST)
        vm = life.rooms.store.ls(Vm)[0]
        life.rooms.change(vm, None, status=VmStatus())

    async def look(life: Life) -> None:
        assert life.learned() == [] and life.rooms.store.ls(LearnedAddresses) == []

    with server(inn.host, guest, FIRST):
        inn.run(learn)
    inn.run(look)


def test_every_renewal_counts_and_few_are_written(inn: Inn, guest: Guest) -> None:
    async def renew(life: Life) -> None:
        await asyncio.to_thread(gets_address, guest, 71)
        await life.until_learned(FIRST)
        assert await asyncio.to_thread(answered, guest, FIRST), "the server knows now where it is"
        revision, lease = life.rooms.store.ls(LearnedAddresses)[0].revision, life.switches.learning.leases(life.nic)[0]
        for number in range(72, 76):
            assert await asyncio.to_thread(exchange, guest, 3, number, has=FIRST) == (5, FIRST)
        async with asyncio.timeout(PATIENCE_S):
            while life.switches.learning.leases(life.nic)[0] == lease:
                await asyncio.sleep(0.02)
        assert life.rooms.store.ls(LearnedAddresses)[0].revision == revision

    with server(inn.host, guest, FIRST):
        inn.run(renew)


def test_an_address_of_dhcpv6_adds_to_the_link_local_one(inn: Inn, guest: Guest) -> None:
    leased, beside = "2001:db8::77", "2001:db8::78"

    def option(code: int, value: bytes) -> bytes:
        return struct.pack("!HH", code, len(value)) + value

    def message(kind: int, inner: bytes = b"") -> bytes:
        return bytes([kind, 0, 0, 81]) + option(1, b"\0\3\0\1client") + option(3, struct.pack("!III", 1, 0, 0) + inner)

    def speaks(address: str) -> bytes:
        packet = f.ipv6(address, "2001:db8::1", 17, f.udp(address, "2001:db8::1", 4000, 4000, b"x"))
        return f.ethernet("02:00:00:00:00:20", guest.mac, 0x86DD, packet)

    async def learn(life: Life) -> None:
        assert await life.dropped(guest, speaks(leased)) == 1
        asked = f.udp(guest.link_local, "ff02::1:2", 546, 547, message(3))
        packet = f.ipv6(guest.link_local, "ff02::1:2", 17, asked)
        guest.send(f.ethernet(f.multicast_mac("ff02::1:2"), guest.mac, 0x86DD, packet))
        given = option(5, f.ip(leased) + struct.pack("!II", 600, 600))
        said = f.udp("fe80::1", guest.link_local, 547, 546, message(7, given))
        reply = f.ethernet(guest.mac, "02:00:00:00:00:20", 0x86DD, f.ipv6("fe80::1", guest.link_local, 17, said))
        await asyncio.to_thread(send_from_world, inn.host, reply)
        await life.until_learned(leased)
        await life.until_told("AddressLearned")
        assert await life.dropped(guest, speaks(leased)) == 0
        assert await life.dropped(guest, speaks(beside)) == 1
        assert (await life.shown()).guards_without_address == ["ip", "arp"], "that is IPv4"

    inn.run(learn)
