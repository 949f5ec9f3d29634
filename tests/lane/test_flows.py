"""Flows of access control lists in Debian's full kernel, which is older than others the inn runs on."""

from __future__ import annotations

import subprocess
from dataclasses import replace

import flows
from switch_lab import new_lab
from switch_world import SWITCH, port_of


def test_flows_last_while_they_are_used_and_end_with_a_reset() -> None:
    subprocess.run(["modprobe", "tun"], check=True)
    with new_lab(replace(SWITCH, kind="private")) as lab:
        one, two = lab.plug(replace(port_of(1), acl=flows.POLICY)), lab.plug(port_of(2))
        flows.check_that_flows_last_while_they_are_used(lab, one, two)
        flows.check_that_a_reset_ends_its_flow(lab, one, two)
