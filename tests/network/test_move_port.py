"""A port goes to another switch with its tap open, as a running guest has it."""

from __future__ import annotations

from dataclasses import replace

import frames as f
import pytest
from switch_lab import Guest, Lab, run_in
from switch_world import SWITCH, kernel_state, port_of, switch_directory

from innkeeper.model.problems import Failed, NotFound
from innkeeper.network.policy import SwitchPolicy
from innkeeper.network.traffic import TrafficPolicy

pytestmark = pytest.mark.root
OTHER = SwitchPolicy("other", "inbr-t3st2", kind="internal", subnet="10.67.0.0/24", mtu=1400)


def bridge_of(lab: Lab, tap: str) -> str:
    """The bridge that a tap is plugged into, and its MTU."""
    words = run_in(lab.namespace, "ip", "-o", "link", "show", "dev", tap).split()
    return f"{words[words.index('master') + 1]} {words[words.index('mtu') + 1]}" if "master" in words else ""


def reservations(lab: Lab, bridge: str) -> str:
    return (switch_directory(lab).parent / bridge / "reservations").read_text()


def test_a_port_moves_with_its_guest(lab: Lab) -> None:
    lab.do(lab.runner.ensure(OTHER))
    traffic = TrafficPolicy(max_out_bits_per_s=10**9)
    one, two, three = lab.plug(replace(port_of(1), traffic=traffic)), lab.plug(port_of(2)), port_of(3)
    lab.do(lab.runner.add_port(OTHER.bridge, replace(three, ipv4=("10.67.0.13",))))
    three_there = lab.open(replace(three, ipv4=("10.67.0.13",)))
    assert lab.deliver(one, two) == []
    there = replace(one.port, ipv4=("10.67.0.11",))
    done = lab.do(lab.runner.move_port(OTHER.bridge, there))
    assert done[:2] == [f"unplug tap {there.tap} from {SWITCH.bridge}", f"plug tap {there.tap} into {OTHER.bridge}"]
    assert bridge_of(lab, there.tap) == f"{OTHER.bridge} 1400"
    assert there.mac not in reservations(lab, SWITCH.bridge)
    assert f"{there.mac},10.67.0.11," in reservations(lab, OTHER.bridge)

    one.port = there
    forwarding = run_in(lab.namespace, "bridge", "-d", "link", "show", "dev", there.tap)
    assert "state forwarding" in forwarding
    assert lab.deliver(one, three_there) == [], "the descriptor is the same, the neighbours are others"
    two.drain()
    gratuitous = f.arp(one.mac, 1, one.mac, one.ip, f.BROADCAST, one.ip)
    one.send(gratuitous, lab.honest(one, three_there, b"after"))
    three_there.wait_for(b"after")
    assert gratuitous not in two.drain()
    assert lab.dropped(one)["ip"] == 0
    former = replace(one, port=replace(one.port, ipv4=("10.66.0.11",)))
    one.send(lab.honest(former, three_there, b"with its former address"))
    lab.deliver(one, three_there)
    assert lab.dropped(one)["ip"] == 1
    assert lab.do(lab.runner.repair()).done == [], "what stands is what is desired"
    lab.do(lab.runner.move_port(OTHER.bridge, replace(there, hostname="again")))
    assert ",again" in reservations(lab, OTHER.bridge)


def test_a_move_that_fails_leaves_the_port_where_it_was(lab: Lab) -> None:
    lab.do(lab.runner.ensure(OTHER))
    guest, neighbour = lab.plug(port_of(1)), lab.plug(port_of(2))
    before = kernel_state(lab.namespace)
    (switch_directory(lab).parent / OTHER.bridge / "reservations").unlink()
    blocked = switch_directory(lab).parent / OTHER.bridge / "reservations.new"
    blocked.mkdir()
    with pytest.raises(Failed) as problem:
        lab.do(lab.runner.move_port(OTHER.bridge, replace(guest.port, ipv4=("10.67.0.11",))))
    assert problem.value.code == "switch.directory"
    assert kernel_state(lab.namespace) == before
    assert bridge_of(lab, guest.port.tap) == f"{SWITCH.bridge} 1500"
    assert guest.mac in reservations(lab, SWITCH.bridge)
    assert lab.deliver(guest, neighbour) == []
    blocked.rmdir()


def test_only_what_is_plugged_in_moves(lab: Lab) -> None:
    with pytest.raises(NotFound) as problem:
        lab.do(lab.runner.move_port(SWITCH.bridge, port_of(1)))
    assert problem.value.code == "nic.not_plugged"
    guest: Guest = lab.plug(port_of(1))
    with pytest.raises(NotFound) as problem:
        lab.do(lab.runner.move_port("inbr-t3st9", guest.port))
    assert problem.value.code == "switch.not_found"
