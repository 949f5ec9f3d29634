"""Minimum bandwidth: how an uplink is shared, and that competing senders get their shares of a real one."""

from __future__ import annotations

import re
import select
import socket
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import frames
import pytest
from hypothesis import given, strategies as st
from switch_lab import INN_ID, Guest, Lab, in_namespace, new_namespace, run_in

from innkeeper.network.minimums import DEFAULT_MINOR, listing, minor, shares
from innkeeper.network.plan import Standing, plan_change
from innkeeper.network.policy import PortPolicy, SwitchPolicy
from innkeeper.network.traffic import TrafficPolicy
from innkeeper.network.uplink_policy import UplinkPolicy

RATE = 16_000_000
SWITCH = SwitchPolicy(
    "out",
    "inbr-t3st1",
    kind="external",
    uplink=UplinkPolicy(("up0",)),
    uplink_rate_bits_per_s=RATE,
    dhcp=False,
)
OUTSIDE_MAC, OUTSIDE_IP = "52:54:00:00:00:f0", "192.0.2.240"
PAYLOAD = bytes(1400)


def port(number: int, **traffic: int) -> PortPolicy:
    return PortPolicy(
        f"intp-{INN_ID}{number}",
        f"52:54:00:00:00:0{number}",
        (f"192.0.2.{number}",),
        traffic=TrafficPolicy(**traffic),  # type: ignore[arg-type]
    )


def rates(*ports: PortPolicy, switch: SwitchPolicy = SWITCH) -> dict[int, int]:
    found = shares(switch, ports)
    return {} if found is None else {number: share.rate_bytes_per_s * 8 for number, share in found.shares.items()}


def test_weights_are_hundredths_of_the_uplink_and_the_rest_is_everybodys() -> None:
    assert rates(port(1, min_weight=50), port(2, min_weight=20), port(3)) == {
        minor(port(1).tap): RATE // 2,
        minor(port(2).tap): RATE // 5,
        DEFAULT_MINOR: RATE * 3 // 10,
    }


def test_weights_beyond_a_hundred_are_parts_of_their_sum() -> None:
    found = rates(port(1, min_weight=100), port(2, min_weight=50))
    one, two, rest = found.values()
    assert one == pytest.approx(2 * two, rel=1e-4) and rest == pytest.approx(RATE / 151, rel=1e-3)
    assert sum(found.values()) <= RATE


def test_rates_are_what_was_asked_for() -> None:
    found = rates(port(1, min_out_bits_per_s=10_000_000), port(2, min_out_bits_per_s=2_000_000))
    assert list(found.values()) == [10_000_000, 2_000_000, 4_000_000]


def test_nothing_is_shared_without_minimums_an_uplink_or_its_rate() -> None:
    assert rates(port(1)) == {}
    asking = port(1, min_weight=10)
    assert rates(asking, switch=replace(SWITCH, uplink_rate_bits_per_s=None)) == {}
    assert rates(asking, switch=replace(SWITCH, uplink=None)) == {}


@given(st.lists(st.integers(1, 100), min_size=1, max_size=8))
def test_what_all_are_sure_of_is_never_more_than_there_is(weights: list[int]) -> None:
    found = rates(*(port(number, min_weight=weight) for number, weight in enumerate(weights, 1)))
    assert sum(found.values()) <= RATE
    assert len(found) == len(weights) + 1 and min(found.values()) >= 8_000


def test_classes_of_ports_differ_and_are_none_that_is_taken() -> None:
    names = "0123456789abcdefghijklmnopqrstuvwxyz"
    taps = [f"intp-{INN_ID}{one}{two}" for one in names[1:] for two in names]
    found = {minor(tap) for tap in taps}
    assert len(found) == len(taps) and not found & {0, 1, DEFAULT_MINOR}


def test_a_plan_shows_what_would_be_shared() -> None:
    old, new = (Standing(SWITCH, {one.tap: one}) for one in (port(1), port(1, min_weight=25)))
    diff = plan_change(old, new, Path("/nowhere"), "nobody").diff.splitlines()
    assert "+qdisc up0 root htb default ffff" in diff
    assert "+class up0 494e:11 htb rate 4000000bit ceil 16000000bit quantum 20000b" in diff
    assert "+bridge minimum_class: intp-t3st1 : 494e:11" in diff
    assert listing(None, None) == []


# --- in the kernel ---------------------------------------------------------------------------------------------------


@contextmanager
def outside_lab() -> Iterator[tuple[Lab, socket.socket]]:
    """A lab whose switch has an uplink, and a socket at its far end."""
    with (
        tempfile.TemporaryDirectory(prefix="inn-lab-") as folder,
        new_namespace("switch") as namespace,
        new_namespace("outside") as outside,
    ):
        Path(folder).chmod(0o755)
        link = ["type", "veth", "peer", "name", "far0", "address", OUTSIDE_MAC, "netns", outside]
        run_in(namespace, "ip", "link", "add", "up0", *link)
        run_in(outside, "ip", "link", "set", "far0", "up")
        run_in(namespace, "ip", "link", "set", "up0", "up")
        lab = Lab(namespace, Path(folder) / "switches", SWITCH)
        far = in_namespace(outside, lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)))
        try:
            far.bind(("far0", 0))
            yield lab, far
        finally:
            far.close()
            lab.close()


def compete(far: socket.socket, *senders: Guest) -> Counter[str]:
    """Bits a second that each gets of the uplink while all send more than it carries, by mac."""
    frame = {one.mac: outward(one) for one in senders}
    for one in senders:  # the bridge learns where the outside is
        far.send(frames.ethernet(one.mac, OUTSIDE_MAC, 0x88B5, bytes(50)))
    got: Counter[str] = Counter()
    began = time.monotonic()
    settled, end = began + 0.7, began + 2.7
    while (now := time.monotonic()) < end:
        for one in senders:
            one.send(*[frame[one.mac]] * 4)
        while select.select([far], [], [], 0)[0]:
            arrived = far.recv(2000)
            if now > settled and len(arrived) > 1400:
                got[":".join(f"{octet:02x}" for octet in arrived[6:12])] += 8 * len(arrived)
        time.sleep(0.001)
    return Counter({mac: int(bits / (end - settled)) for mac, bits in got.items()})


def outward(guest: Guest) -> bytes:
    datagram = frames.udp(guest.ip, OUTSIDE_IP, 4000, 4000, PAYLOAD)
    return frames.ethernet(OUTSIDE_MAC, guest.mac, 0x0800, frames.ipv4(guest.ip, OUTSIDE_IP, 17, datagram))


def queues(lab: Lab) -> str:
    shown = run_in(lab.namespace, "tc", "class", "show", "dev", "up0")
    shown += run_in(lab.namespace, "tc", "qdisc", "show", "dev", "up0")
    return re.sub(r" refcnt \d+| direct_packets_stat \d+", "", "\n".join(sorted(shown.splitlines())))


@pytest.mark.root
def test_competing_senders_get_what_they_are_sure_of_and_what_others_leave() -> None:
    with outside_lab() as (lab, far):
        one, two = lab.plug(port(1, min_weight=75)), lab.plug(port(2, min_weight=25))
        got = compete(far, one, two)
        assert got[one.mac] / got[two.mac] == pytest.approx(3, rel=0.2)
        assert sum(got.values()) == pytest.approx(RATE, rel=0.1)
        alone = compete(far, two)
        assert alone[two.mac] == pytest.approx(RATE, rel=0.15)
        lab.set_port(one, port(1))
        lab.set_port(two, port(2, min_out_bits_per_s=12_000_000))
        got = compete(far, one, two)
        assert got[two.mac] == pytest.approx(12_000_000, rel=0.15)
        assert got[one.mac] == pytest.approx(4_000_000, rel=0.25), "who has no minimum shares the rest"


@pytest.mark.root
def test_queues_follow_the_ports_and_are_put_right() -> None:
    with outside_lab() as (lab, _):
        before = queues(lab)
        one, two = lab.plug(port(1, min_weight=75)), lab.plug(port(2, min_weight=25))
        healthy = queues(lab)
        assert healthy.count("class htb") == 4
        assert lab.do(lab.runner.repair()).done == []
        run_in(lab.namespace, "tc", "qdisc", "del", "dev", "up0", "root")
        assert lab.do(lab.runner.repair()).done == ["share up0 by minimums"]
        assert queues(lab) == healthy
        changed = ["classid", "494e:11", "parent", "494e:1", "htb", "rate", "1mbit"]
        run_in(lab.namespace, "tc", "class", "change", "dev", "up0", *changed)
        assert lab.do(lab.runner.repair()).done == ["share up0 by minimums"]
        assert queues(lab) == healthy
        lab.unplug(one)
        assert queues(lab).count("class htb") == 3
        lab.unplug(two)
        assert queues(lab) == before
        assert lab.do(lab.runner.repair()).done == []
