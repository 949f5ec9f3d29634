"""VLANs on an external switch: what leaves by the uplink carries its card's tag, and comes in to that VLAN's cards."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import replace
from typing import Any

import frames as f
import pytest
from host_lab import BRIDGE, HOST4, MAC, Host, new_host, plugged, until
from switch_lab import INN_ID, PATIENCE_S, Guest, in_namespace, run_in

from innkeeper.model.problems import Problem
from innkeeper.network import uplink_priorities, vlan_bridge
from innkeeper.network.capture import open_socket, tag_of
from innkeeper.network.host_vlans import host_vlans
from innkeeper.network.policy import PortPolicy, SwitchPolicy
from innkeeper.network.priorities import Priority
from innkeeper.network.traffic import TrafficPolicy
from innkeeper.network.uplink_policy import UplinkPolicy
from innkeeper.network.vlan_policy import UNTAGGED, VlanPolicy

POLICIES = {
    1: UNTAGGED,
    2: VlanPolicy("access", 10),
    3: VlanPolicy("access", 20),
    4: VlanPolicy("trunk", 1, ((10, 10), (30, 30))),
    5: VlanPolicy("isolated", 10, ((101, 101),)),
    6: VlanPolicy("isolated", 10, ((101, 101),)),
    7: VlanPolicy("promiscuous", 10, ((101, 101),)),
}
ELSEWHERE = {8: VlanPolicy("access", 80), 9: VlanPolicy("access", 10)}
"""Of guests that are not on the switch at first."""
ARRIVES: dict[int | None, dict[int, int | None]] = {
    None: {1: None, 4: None},
    10: {2: None, 4: 10, 5: None, 6: None, 7: None},
    20: {3: None},
    30: {4: 30},
    40: {},
}
"""Tag outside -> guests that get such a broadcast, with the tag that it has there."""
STRANGER = "02:00:00:00:00:77"


class Outside:
    """What passes the far end of the uplink's wire."""

    def __init__(self, host: Host) -> None:
        self._namespace = host.world
        self._wire = in_namespace(host.world, lambda: open_socket("out", ()))
        self._wire.setblocking(True)
        self._wire.settimeout(PATIENCE_S)

    def send(self, mark: bytes, tag: int | None, source: str = STRANGER) -> None:
        self.send_frame(broadcast(source, mark, tag))

    def send_frame(self, frame: bytes) -> None:
        self._wire.send(frame)

    def arrived(self, mark: bytes) -> list[tuple[int | None, bytes]]:
        """(tag, frame) of what came in, up to and with the frame with that mark; waits for it."""
        return [(tci & 0xFFF or None, frame) for tci, frame in self._received(mark)]

    def _received(self, mark: bytes) -> list[tuple[int, bytes]]:
        found: list[tuple[int, bytes]] = []
        while not any(mark in frame for _, frame in found):
            frame, facts, _, (_, _, way, *_) = self._wire.recvmsg(4096, 256)
            if way != socket.PACKET_OUTGOING:
                tag = tag_of(facts)
                found.append((0 if tag is None else tag[1], frame))
        return found

    def tag_of(self, mark: bytes) -> int | None:
        return self.arrived(mark)[-1][0]

    def tci_of(self, mark: bytes) -> int:
        """Priority and VLAN of the frame with that mark; 0 where it has no tag."""
        return self._received(mark)[-1][0]

    def close(self) -> None:
        self._wire.close()


def broadcast(source: str, mark: bytes, tag: int | None = None) -> bytes:
    packet = f.ipv4("192.0.2.77", "192.0.2.255", 17, f.udp("192.0.2.77", "192.0.2.255", 4000, 4000, mark))
    return f.ethernet(f.BROADCAST, source, 0x0800, packet, () if tag is None else ((0x8100, tag),))


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    subprocess.run(["modprobe", "-a", "tun", "bridge", "veth"], check=True)
    with new_host() as made:
        made.do(made.runner.ensure(replace(made.policy(), vlans=True)))
        yield made


@pytest.fixture(scope="module")
def guests(host: Host) -> Iterator[dict[int, Guest]]:
    with ExitStack() as stack:
        yield {number: stack.enter_context(plugged(host, port(number))) for number in POLICIES}


@pytest.fixture
def outside(host: Host) -> Iterator[Outside]:
    made = Outside(host)
    yield made
    made.close()


def port(number: int) -> PortPolicy:
    return PortPolicy(f"intp-{INN_ID}{number}", f"52:54:00:00:00:0{number}", vlan=(POLICIES | ELSEWHERE)[number])


def tag_at(frame: bytes) -> int | None:
    return int.from_bytes(frame[14:16], "big") & 0xFFF if frame[12:14] == b"\x81\x00" else None


def made_switch(host: Host) -> SwitchPolicy:
    standing = host.runner.standing(BRIDGE)
    assert standing is not None
    return standing.switch


def filters(host: Host) -> bool:
    return "vlan_filtering 1" in run_in(host.namespace, "ip", "-d", "link", "show", "dev", BRIDGE)


def test_what_leaves_carries_the_tag_of_its_card(host: Host, guests: dict[int, Guest], outside: Outside) -> None:
    sent: list[tuple[int, int | None, int | None]] = [(1, None, None), (2, None, 10), (3, None, 20), (4, None, None)]
    sent += [(4, 10, 10), (4, 30, 30), (5, None, 10), (7, None, 10)]
    for number, tag, carried in sent:
        mark = b"from %d with %d;" % (number, tag or 0)
        guests[number].send(broadcast(guests[number].mac, mark, tag))
        assert outside.tag_of(mark) == carried, mark
    for number, tag in ((4, 20), (4, 1), (2, 10), (2, 20), (1, 10)):
        guests[number].send(broadcast(guests[number].mac, b"does not belong there;", tag))
    guests[1].send(broadcast(guests[1].mac, b"the end;"))
    assert not any(b"does not belong there;" in frame for _, frame in outside.arrived(b"the end;"))


@pytest.mark.parametrize("tag", list(ARRIVES))
def test_what_comes_in_arrives_in_its_vlan_only(guests: dict[int, Guest], outside: Outside, tag: int | None) -> None:
    for guest in guests.values():
        guest.drain()
    mark = b"to all of %d;" % (tag or 0)
    outside.send(mark, tag)
    for vlan in (None, 10, 20, 30):
        outside.send(b"the end;", vlan)
    for number, guest in guests.items():
        frames: list[bytes] = []
        while not any(b"the end;" in frame for frame in frames):
            frame = guest.receive(PATIENCE_S)
            assert frame is not None
            frames.append(frame)
        found = {tag_at(frame) for frame in frames if mark in frame}
        assert found == ({ARRIVES[tag][number]} if number in ARRIVES[tag] else set()), number


def test_members_of_a_private_vlan_stay_apart(guests: dict[int, Guest], outside: Outside) -> None:
    for guest in guests.values():
        guest.drain()
    guests[5].send(broadcast(guests[5].mac, b"of an isolated one;"))
    assert outside.tag_of(b"of an isolated one;") == 10
    guests[7].send(broadcast(guests[7].mac, b"the end;"))
    assert guests[6].wait_for(b"the end;") == []
    for number, heard in ((7, True), (2, False), (4, False)):
        assert any(b"of an isolated one;" in frame for frame in guests[number].drain()) == heard, number


def test_the_host_is_in_the_untagged_network(host: Host, guests: dict[int, Guest], outside: Outside) -> None:
    assert until(host.reaches)
    for tags in (((0x8100, 10),), ((0x8100, 40),), ()):
        outside.send_frame(f.arp(STRANGER, 1, STRANGER, "192.0.2.77", "00:00:00:00:00:00", HOST4, tags=tags))
    answer = f.mac(STRANGER) + f.mac(MAC)
    assert [tag for tag, frame in outside.arrived(answer) if frame.startswith(answer)] == [None]
    guests[1].send(broadcast(guests[1].mac, b"the end;"))
    assert not any(frame.startswith(answer) for _, frame in outside.arrived(b"the end;"))


def test_a_mac_of_a_guest_is_cloned_from_no_vlan(guests: dict[int, Guest], outside: Outside) -> None:
    for guest in guests.values():
        guest.drain()
    for tag in (None, 10, 20):
        outside.send(b"cloned;", tag, guests[2].mac)
        outside.send(b"the end;", tag)
    for number in (1, 2, 3):
        assert not any(b"cloned;" in frame for frame in guests[number].wait_for(b"the end;"))


def test_a_vlan_device_of_the_host_is_found(host: Host) -> None:
    assert in_namespace(host.namespace, host_vlans) == {}
    host.ip("link add link eth0 name eth0.7 type vlan id 7")
    assert in_namespace(host.namespace, host_vlans) == {("eth0", 7): "eth0.7"}
    host.ip("link del eth0.7")


def test_what_was_changed_behind_the_inns_back_is_put_right(host: Host, guests: dict[int, Guest]) -> None:
    assert host.do(host.runner.repair()).done == []
    run_in(host.namespace, "bridge", "vlan", "del", "dev", "eth0", "vid", "20")
    run_in(host.namespace, "bridge", "vlan", "add", "dev", "eth0", "vid", "40")
    assert host.do(host.runner.repair()).done == ["put eth0 into its VLANs"]
    host.ip("link set eth0 nomaster")
    assert "put eth0 into its VLANs" in host.do(host.runner.repair()).done
    assert host.do(host.runner.repair()).done == []


def test_a_change_of_vlan_leads_elsewhere_at_once(host: Host, guests: dict[int, Guest], outside: Outside) -> None:
    for vlan, carried in ((VlanPolicy("access", 50), 50), (UNTAGGED, None), (POLICIES[3], 20)):
        host.do(host.runner.update_port(replace(guests[3].port, vlan=vlan)))
        guests[3].send(broadcast(guests[3].mac, b"now in %d;" % (carried or 1)))
        assert outside.tag_of(b"now in %d;" % (carried or 1)) == carried
    assert '"vlan":50' not in run_in(host.namespace, "bridge", "-j", "vlan", "show", "dev", "eth0")


def test_what_leaves_has_the_priority_that_its_card_is_given(
    host: Host, guests: dict[int, Guest], outside: Outside
) -> None:
    def leaves_with(number: int, tag: int | None) -> int:
        mark = b"%d at %f;" % (number, time.monotonic())
        guests[number].send(broadcast(guests[number].mac, mark, tag))
        return outside.tci_of(mark)

    def give(number: int, pcp: int | None) -> None:
        host.do(host.runner.update_port(replace(guests[number].port, traffic=TrafficPolicy(pcp=pcp))))

    others = ("dev", "eth0", "egress")
    subprocess.run(["modprobe", "-a", "cls_flower", "act_vlan", "sch_ingress"], check=True)
    assert (leaves_with(2, None), leaves_with(4, 7 << 13 | 10)) == (10, 7 << 13 | 10), "as at first, trunks are trusted"
    give(2, 5)
    give(4, 1)
    for _ in range(2):
        assert (leaves_with(2, None), leaves_with(3, None)) == (5 << 13 | 10, 20)
        assert (leaves_with(4, 7 << 13 | 10), leaves_with(4, 7 << 13 | 30)) == (1 << 13 | 10, 1 << 13 | 30)
        assert leaves_with(4, None) == 0
        assert host.do(host.runner.repair()).done == []
        run_in(host.namespace, "tc", "filter", "del", *others)
        assert host.do(host.runner.repair()).done == ["set priorities at eth0"]
    run_in(
        host.namespace,
        *["tc", "filter", "add", "dev", "eth0", "egress", "pref", "20", "matchall", "action", "continue"],
    )
    give(2, None)
    give(4, None)
    assert (leaves_with(2, None), leaves_with(4, 7 << 13 | 10)) == (10, 7 << 13 | 10)
    assert "matchall" in run_in(host.namespace, *["tc", "filter", "show", "dev", "eth0", "egress"]), (
        "others' filters stay"
    )
    run_in(host.namespace, *["tc", "filter", "del", "dev", "eth0", "egress"])
    give(2, 3)
    give(2, None)
    assert "clsact" not in run_in(host.namespace, "tc", "qdisc", "show", "dev", "eth0")


def test_a_change_that_is_refused_leads_nowhere_else(
    host: Host, guests: dict[int, Guest], outside: Outside, monkeypatch: pytest.MonkeyPatch
) -> None:
    subprocess.run(["modprobe", "-a", "cls_flower", "act_vlan", "sch_ingress"], check=True)
    whole = uplink_priorities.commands
    former = replace(guests[2].port, traffic=TrafficPolicy(pcp=5))
    host.do(host.runner.update_port(former))

    def half(device: str, wanted: Iterable[Priority]) -> list[str]:
        lines = whole(device, wanted)
        return [*lines, f"filter add dev {device} egress nonsense"] if "priority 3" in "".join(lines) else lines

    monkeypatch.setattr(uplink_priorities, "commands", half)
    other = replace(former, vlan=VlanPolicy("access", 60), traffic=TrafficPolicy(pcp=3))
    with pytest.raises(Problem):
        host.do(host.runner.update_port(other))
    guests[2].send(broadcast(guests[2].mac, b"as before;"))
    assert outside.tci_of(b"as before;") == 5 << 13 | 10
    assert '"vlan":60' not in run_in(host.namespace, "bridge", "-j", "vlan", "show", "dev", "eth0")
    assert host.do(host.runner.repair()).done == []
    host.do(host.runner.update_port(guests[2].port))


def all_leave_tagged(host: Host, outside: Outside, monkeypatch: pytest.MonkeyPatch) -> None:
    """A guest of VLAN 10 that sends all the while is plugged into the switch: nothing of it is without the tag."""
    other = SwitchPolicy("other", f"inbr-{INN_ID}3", kind="private", vlans=True)
    host.do(host.runner.ensure(other, [port(9)]))
    guest = Guest(port(9), host.do(host.runner.open_tap(port(9).tap)))
    ensure = vlan_bridge.ensure

    def late(*facts: Any) -> list[str]:
        for _ in range(3):
            with suppress(OSError):  # it is down
                guest.send(broadcast(guest.mac, b"all the while;"))
            time.sleep(0.05)
        return ensure(*facts)

    monkeypatch.setattr(vlan_bridge, "ensure", late)
    try:
        host.do(host.runner.move_port(BRIDGE, port(9)))
        host.ip(f"link set {guest.port.tap} nomaster")
        assert f"plug tap {guest.port.tap} into {BRIDGE}" in host.do(host.runner.repair()).done
        guest.send(broadcast(guest.mac, b"the end;"))
        assert {tag for tag, frame in outside.arrived(b"the end;") if frame[6:12] == f.mac(guest.mac)} == {10}
        assert host.do(host.runner.repair()).done == []
    finally:
        os.close(guest.descriptor)
        host.do(host.runner.remove_port(guest.port.tap))
        host.do(host.runner.remove(other.bridge))


def test_a_guest_that_is_plugged_in_is_in_its_vlan_from_the_first_frame(
    host: Host, guests: dict[int, Guest], outside: Outside, monkeypatch: pytest.MonkeyPatch
) -> None:
    all_leave_tagged(host, outside, monkeypatch)


def test_an_uplink_that_another_bridge_has_keeps_its_vlans(host: Host, guests: dict[int, Guest]) -> None:
    host.ip("link add br9 type bridge vlan_filtering 1")
    host.ip("link set eth0 nomaster")
    host.ip("link set eth0 master br9")
    run_in(host.namespace, "bridge", "vlan", "add", "dev", "eth0", "vid", "40")
    try:
        assert host.do(host.runner.repair()).problems["lan"].code == "switch.uplink_busy"
        host.do(host.runner.update_port(replace(guests[3].port, vlan=VlanPolicy("access", 70))))
        host.do(host.runner.update_port(guests[3].port))
        ((shown,),) = [json.loads(run_in(host.namespace, "bridge", "-j", "vlan", "show", "dev", "eth0"))]
        assert [one["vlan"] for one in shown["vlans"]] == [1, 40]
    finally:
        host.ip("link set eth0 nomaster")
        host.ip("link del br9")
    assert "put eth0 into its VLANs" in host.do(host.runner.repair()).done


def test_what_vlan_cards_ask_is_heard_at_a_card_that_puts_no_tags_in_itself(host: Host) -> None:
    subprocess.run(["modprobe", "dummy"], check=True)
    host.ip("link add plain0 type dummy")
    host.ip("link set plain0 up")
    second = SwitchPolicy("second", f"inbr-{INN_ID}2", kind="external", uplink=UplinkPolicy(("plain0",)), vlans=True)
    host.do(host.runner.ensure(second, [port(8)]))
    guest = Guest(port(8), host.do(host.runner.open_tap(port(8).tap)))
    try:
        listener = host.do(host.runner.listen("plain0"))
        wire = in_namespace(host.namespace, lambda: open_socket("plain0", ()))
        asks = f.udp("0.0.0.0", "255.255.255.255", 68, 67, f.dhcp(1, 1, guest.mac, xid=9))
        packet = f.ipv4("0.0.0.0", "255.255.255.255", 17, asks)

        def heard() -> bool:
            guest.send(f.ethernet(f.BROADCAST, guest.mac, 0x0800, packet))
            return any((one.kind, one.number, one.vlan_id) == ("ask", 9, 80) for one in listener._read())

        assert until(heard)
        frames = []
        with suppress(BlockingIOError):
            while True:
                frame, facts, *_ = wire.recvmsg(4096, 256)
                frames.append((tag_at(frame), tag_of(facts)))
        assert (80, None) in frames, "the tag is in the frame, not beside it"
    finally:
        os.close(guest.descriptor)
        host.do(host.runner.remove(second.bridge))
        host.ip("link del plain0")


def test_without_vlans_the_bridge_filters_nothing(
    host: Host, guests: dict[int, Guest], outside: Outside, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert filters(host)
    for number in POLICIES:
        host.do(host.runner.update_port(replace(guests[number].port, vlan=UNTAGGED)))
    ports = [replace(port(number), vlan=UNTAGGED) for number in POLICIES]
    host.do(host.runner.ensure(replace(made_switch(host), vlans=False), ports))
    assert not filters(host)
    guests[3].send(broadcast(guests[3].mac, b"plain;"))
    assert outside.tag_of(b"plain;") is None
    assert until(host.reaches)
    host.do(host.runner.ensure(replace(made_switch(host), vlans=True), ports))
    assert not filters(host)
    all_leave_tagged(host, outside, monkeypatch)
    assert not filters(host), "the first VLAN has gone with its card"


def test_nothing_stays_on_a_card_that_the_host_has_again(host: Host, guests: dict[int, Guest]) -> None:
    subprocess.run(["modprobe", "-a", "cls_flower", "act_vlan", "sch_ingress"], check=True)
    wishes = replace(port(2), traffic=TrafficPolicy(pcp=5))

    def has_filters() -> bool:
        return "clsact" in run_in(host.namespace, "tc", "qdisc", "show", "dev", "eth0")

    host.do(host.runner.update_port(wishes))
    assert has_filters()
    assert f"remove {BRIDGE}, which belongs to nothing" in host.do(host.runner.start([])).done
    assert not has_filters() and host.reaches()

    host.do(host.runner.ensure(replace(host.policy(confirm_s=5.0), vlans=True), [wishes]))
    assert has_filters()
    assert until(lambda: "eth0" in host.network() and host.reaches())
    assert host.do(host.runner.repair()).problems["lan"].code == "switch.not_confirmed"
    assert not has_filters()
    host.do(host.runner.update_port(replace(wishes, traffic=TrafficPolicy(pcp=3))))
    assert not has_filters()
