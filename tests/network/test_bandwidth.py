"""Bandwidth and mirroring with real frames, and what is put right when somebody takes it away."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import replace

import frames as f
import pytest
from switch_lab import Guest, Lab, run_in
from switch_world import port_of

from innkeeper.network.policy import GuardPolicy, PortPolicy
from innkeeper.network.traffic import TrafficPolicy

pytestmark = pytest.mark.root
RATE = 8_000_000
BURST = 20_000
INTERVAL_S = 1.0
PAYLOAD = bytes(1400)


def with_traffic(number: int, traffic: TrafficPolicy) -> PortPolicy:
    return replace(port_of(number), traffic=traffic)


def flood(lab: Lab, sender: Guest, receiver: Guest) -> tuple[int, float]:
    """Send for a fixed interval as fast as goes, then wait until nothing comes: (bytes that arrived, seconds)."""
    frame = lab.honest(sender, receiver, PAYLOAD)
    receiver.drain()
    began, arrived, last = time.monotonic(), 0, time.monotonic()
    while (now := time.monotonic()) - began < INTERVAL_S or now - last < 0.2:
        if now - began < INTERVAL_S:
            sender.send(*[frame] * 4)
        got = [frame for frame in receiver.drain() if PAYLOAD in frame]
        arrived += sum(map(len, got))
        last = time.monotonic() if got else last
    return arrived, last - began


def traffic_control(lab: Lab) -> str:
    """Queues and filters of the inn's devices, without what changes by itself."""
    links = run_in(lab.namespace, "ip", "-o", "link", "show")
    said = []
    for device in sorted(re.findall(r"(in(?:tp|if)-\w+)", links)):
        said.append(run_in(lab.namespace, "tc", "qdisc", "show", "dev", device))
        for hook in ("ingress", "egress"):
            shown = run_in(lab.namespace, "tc", "filter", "show", "dev", device, hook, check=False)
            said += [f"{device} {hook}: {line.strip()}\n" for line in shown.splitlines() if "mirred" in line]
    return re.sub(r" refcnt \d+", "", "".join(said))


@pytest.mark.parametrize(
    ("sender", "receiver"),
    [
        (TrafficPolicy(max_out_bits_per_s=RATE, burst_bytes=BURST), TrafficPolicy()),
        (TrafficPolicy(), TrafficPolicy(max_in_bits_per_s=RATE, burst_bytes=BURST)),
    ],
    ids=["out", "in"],
)
def test_a_maximum_holds(lab: Lab, sender: TrafficPolicy, receiver: TrafficPolicy) -> None:
    one, two = lab.plug(with_traffic(1, sender)), lab.plug(with_traffic(2, receiver))
    arrived, seconds = flood(lab, one, two)
    assert RATE / 8 * seconds * 0.4 < arrived < RATE / 8 * seconds * 1.1 + BURST + 10_000
    back, seconds = flood(lab, two, one)
    assert back > RATE / 8 * seconds * 1.5, "the other direction is not held back"


def test_behind_a_maximum_a_storm_is_known_as_one(lab: Lab) -> None:
    """Frames that were led through the bucket's device: whom they are for is still known."""
    traffic = TrafficPolicy(max_out_bits_per_s=RATE * 10)
    guards = GuardPolicy(broadcast_per_s=1, multicast_per_s=1)
    one, two = lab.plug(replace(with_traffic(1, traffic), guards=guards)), lab.plug(port_of(2))
    for target in (f.BROADCAST, "01:00:5e:00:00:fb"):
        before = lab.dropped(one)["storm"]
        packet = f.ipv4(one.ip, two.ip, 17, f.udp(one.ip, two.ip, 9, 9, PAYLOAD[:100]))
        lab.deliver(one, two, *[f.ethernet(target, one.mac, 0x0800, packet)] * 100)
        assert lab.dropped(one)["storm"] - before > 50


def test_a_maximum_is_changed_while_frames_pass_and_taken_back(lab: Lab) -> None:
    before = traffic_control(lab)
    one, two = lab.plug(port_of(1)), lab.plug(port_of(2))
    plain = traffic_control(lab)
    lab.set_port(one, with_traffic(1, TrafficPolicy(max_out_bits_per_s=RATE, max_in_bits_per_s=RATE)))
    slow, seconds = flood(lab, one, two)
    assert slow < RATE / 8 * seconds * 1.1 + 150_000
    lab.set_port(one, with_traffic(1, TrafficPolicy(max_out_bits_per_s=RATE * 100, max_in_bits_per_s=RATE)))
    assert "rate 800Mbit" in traffic_control(lab)
    assert lab.deliver(one, two) == []
    lab.set_port(one, port_of(1))
    assert traffic_control(lab) == plain
    assert lab.deliver(one, two) == []
    lab.set_port(one, with_traffic(1, TrafficPolicy(max_out_bits_per_s=RATE)))
    lab.unplug(one)
    lab.unplug(two)
    assert traffic_control(lab) == before


DAMAGES: dict[str, Callable[[Lab], object]] = {
    "queue": lambda lab: run_in(lab.namespace, "tc", "qdisc", "del", "dev", "intp-t3st1", "root"),
    "rate": lambda lab: run_in(
        lab.namespace,
        *["tc", "qdisc", "replace", "dev", "inif-t3st1", "root", "handle", "494e:"],
        *["tbf", "rate", "1gbit", "burst", "90000", "limit", "90000"],
    ),
    "filters": lambda lab: run_in(lab.namespace, "tc", "qdisc", "del", "dev", "intp-t3st1", "clsact"),
    "device": lambda lab: run_in(lab.namespace, "ip", "link", "del", "inif-t3st1"),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_what_somebody_took_away_is_put_back(lab: Lab, damage: Callable[[Lab], object]) -> None:
    limits = TrafficPolicy(max_in_bits_per_s=RATE, max_out_bits_per_s=RATE, mirror="source")
    lab.plug(with_traffic(1, limits))
    lab.plug(with_traffic(2, TrafficPolicy(mirror="destination")))
    healthy = traffic_control(lab)
    assert lab.do(lab.runner.repair()).done == []
    damage(lab)
    assert traffic_control(lab) != healthy
    assert lab.do(lab.runner.repair()).done != []
    assert traffic_control(lab) == healthy
    assert lab.do(lab.runner.repair()).done == []


def test_a_limiter_that_belongs_to_nothing_is_removed(lab: Lab) -> None:
    run_in(lab.namespace, "ip", "link", "add", "inif-t3st9", "type", "ifb")
    run_in(lab.namespace, "ip", "link", "add", "inif-other1", "type", "ifb")
    assert lab.do(lab.runner.repair()).done == ["remove inif-t3st9, which belongs to nothing"]
    assert "inif-other1" in run_in(lab.namespace, "ip", "-o", "link", "show")


@pytest.mark.parametrize("limit", [None, RATE], ids=["unlimited", "limited"])
def test_a_mirrors_destination_gets_a_copy_of_both_directions(lab: Lab, limit: int | None) -> None:
    source = with_traffic(1, TrafficPolicy(mirror="source", max_out_bits_per_s=limit, max_in_bits_per_s=limit))
    one, two, three = lab.plug(source), lab.plug(port_of(2)), lab.plug(port_of(3))
    probe = lab.plug(with_traffic(4, TrafficPolicy(mirror="destination")))
    for sender, receiver, word in ((one, two, b"out"), (two, one, b"in")):
        probe.drain()
        sender.send(lab.honest(sender, receiver, b"frame " + word))
        probe.wait_for(b"frame " + word)
    three.send(lab.honest(three, two, b"not seen"))
    one.send(lab.honest(one, two, b"the last"))
    seen = probe.wait_for(b"the last")
    assert not any(b"not seen" in frame for frame in seen)
    # what the probe says itself is no copy, and comes back to nobody
    probe.send(lab.honest(probe, one, b"probe's own"))
    one.wait_for(b"probe's own")
    copies = [frame for frame in probe.wait_for(b"probe's own") if f.mac(two.mac) in frame[:12]]
    assert copies == []


def test_copies_follow_the_destination(lab: Lab) -> None:
    one, two = lab.plug(with_traffic(1, TrafficPolicy(mirror="source"))), lab.plug(port_of(2))
    probe = lab.plug(with_traffic(4, TrafficPolicy(mirror="destination")))
    assert "mirred" in traffic_control(lab)
    lab.unplug(probe)
    assert "mirred" not in traffic_control(lab)
    assert lab.deliver(one, two) == []
    probe = lab.plug(with_traffic(4, TrafficPolicy(mirror="destination")))
    one.send(lab.honest(one, two, b"again"))
    assert probe.wait_for(b"again") is not None
