"""What becomes of flows of access control lists in time, on whatever kernel: for tests here and in the lane."""

from __future__ import annotations

import time

import frames as f
from switch_lab import Guest, Lab

from innkeeper.model.acl import AclLists, AclRule
from innkeeper.network.acl import policy_of

TCP, UDP = 6, 17
SYN, ACK, RST = 2, 16, 4
SHORT_S = 2


def lists() -> AclLists:
    allow = AclRule(direction="out", action="allow", weight=10, stateful=True, idle_timeout_s=SHORT_S)
    return AclLists(rules=(allow, AclRule(direction="in", action="deny", weight=1)))


POLICY = policy_of([("", lists())])


def arrives(lab: Lab, sender: Guest, receiver: Guest, payload: bytes, protocol: int) -> bool:
    """Whether it does; an ARP request, which no list stops, comes after it."""
    asked = f.arp(sender.mac, 1, sender.mac, sender.ip, "00:00:00:00:00:00", receiver.ip)
    receiver.drain()
    packet = f.ipv4(sender.ip, receiver.ip, protocol, payload)
    sender.send(f.ethernet(receiver.mac, sender.mac, 0x0800, packet), asked)
    return any(payload in frame for frame in receiver.wait_for(asked[:42]))


def _datagram(sender: Guest, receiver: Guest, ports: tuple[int, int]) -> bytes:
    return f.udp(sender.ip, receiver.ip, *ports, b"word %f" % time.monotonic())


def _segment(sender: Guest, receiver: Guest, ports: tuple[int, int], flags: int) -> bytes:
    return f.tcp(sender.ip, receiver.ip, *ports, flags, b"word %f" % time.monotonic())


def check_that_flows_last_while_they_are_used(lab: Lab, one: Guest, two: Guest) -> None:
    """``one`` has ``POLICY``. Busy flows and quiet ones, whose packets come as seldom as they may."""
    assert not arrives(lab, two, one, _datagram(two, one, (9, 8)), UDP)
    for pause_s, packets in ((0.01, 30), (0.8 * SHORT_S, 4)):
        ports = (5000 + packets, 6000)
        assert arrives(lab, one, two, _datagram(one, two, ports), UDP)
        for _ in range(packets):
            time.sleep(pause_s)
            assert arrives(lab, two, one, _datagram(two, one, ports[::-1]), UDP), f"one each {pause_s} s"
        time.sleep(SHORT_S + 2.5)
        assert not arrives(lab, two, one, _datagram(two, one, ports[::-1]), UDP), "it was idle"


def check_that_a_reset_ends_its_flow(lab: Lab, one: Guest, two: Guest) -> None:
    """``one`` has ``POLICY``: a reset ends a busy flow and a quiet one, whoever sends it, and no other."""
    port = 7000
    for pause_s in (0.0, 1.3):
        for resets_it in ("one", "two"):
            port += 1
            out, back = (port, 443), (443, port)
            assert not arrives(lab, two, one, _segment(two, one, back, RST), TCP), "of no flow"
            assert arrives(lab, one, two, _segment(one, two, out, SYN), TCP)
            for _ in range(3):
                assert arrives(lab, two, one, _segment(two, one, back, ACK), TCP)
            time.sleep(pause_s)
            if resets_it == "one":
                assert arrives(lab, one, two, _segment(one, two, out, RST), TCP)
            else:
                assert arrives(lab, two, one, _segment(two, one, back, RST), TCP)
            assert not arrives(lab, two, one, _segment(two, one, back, ACK), TCP)
