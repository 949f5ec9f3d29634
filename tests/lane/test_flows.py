"""Flows of access control lists in Debian's full kernel, which is older than others the inn runs on."""

from __future__ import annotations

import subprocess
from dataclasses import replace

import attacks
import flows
import frames as f
from switch_lab import new_lab
from switch_world import SWITCH, port_of


def test_flows_last_while_they_are_used_and_end_with_a_reset() -> None:
    subprocess.run(["modprobe", "tun"], check=True)
    with new_lab(replace(SWITCH, kind="private")) as lab:
        one, two = lab.plug(replace(port_of(1), acl=flows.POLICY)), lab.plug(port_of(2))
        flows.check_that_flows_last_while_they_are_used(lab, one, two)
        flows.check_that_a_reset_ends_its_flow(lab, one, two)


def test_no_tag_takes_the_short_way() -> None:
    subprocess.run(["modprobe", "tun"], check=True)
    with new_lab(SWITCH) as lab:
        one, two = lab.plug(replace(port_of(1), acl=flows.POLICY)), lab.plug(port_of(2))
        honest = f.ethernet(two.mac, one.mac, 0x0800, attacks.own_datagram(one, two))
        assert lab.deliver(one, two, honest) == [honest]
        for tag in (0, 1, 7):
            tagged = f.ethernet(two.mac, one.mac, 0x0800, attacks.own_datagram(one, two), tags=((0x8100, tag),))
            assert lab.deliver(one, two, tagged) == []
        assert lab.dropped(one)["frame"] == 3
