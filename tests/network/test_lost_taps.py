"""A process whose tap was deleted and made again speaks and hears through the new one."""

from __future__ import annotations

import os

import frames as f
import pytest
from switch_lab import VIRTIO_HEADER, Lab, run_in
from switch_world import GATEWAY, port_of, until

from innkeeper.network.lost_taps import give_back

pytestmark = pytest.mark.root


def forwards(lab: Lab, tap: str) -> bool:
    return "state forwarding" in run_in(lab.namespace, "bridge", "link", "show", "dev", tap)


def test_the_new_tap_is_given_to_whoever_had_the_old_one(lab: Lab) -> None:
    one, two = lab.plug(port_of(1)), lab.plug(port_of(2))
    assert not give_back(os.getpid(), one.port.tap), "nothing is lost yet"
    run_in(lab.namespace, "ip", "link", "del", one.port.tap)
    with pytest.raises(OSError):
        one.send(b"nobody hears this")
    assert lab.do(lab.runner.repair()).new_taps == [one.port.tap]
    assert give_back(os.getpid(), one.port.tap, len(VIRTIO_HEADER))
    assert until(lambda: forwards(lab, one.port.tap))
    assert lab.deliver(one, two) == [] and lab.deliver(two, one) == []
    poison = f.arp(one.mac, 2, one.mac, GATEWAY, two.mac, two.ip)
    assert lab.deliver(one, two, poison) == [], "its guards stand"
    assert lab.do(lab.runner.repair()).new_taps == []


def test_where_several_are_lost_nobody_guesses(lab: Lab) -> None:
    taps = [lab.plug(port_of(number)).port.tap for number in (1, 2)]
    for tap in taps:
        run_in(lab.namespace, "ip", "link", "del", tap)
    assert sorted(lab.do(lab.runner.repair()).new_taps) == taps
    assert not give_back(os.getpid(), taps[0])
