"""Switches in a real kernel: damage is found and repaired, a later daemon takes them over, two inns share a kernel."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import frames as f
import pytest
from switch_lab import INN_ID, Lab, run_in
from switch_world import GATEWAY, SWITCH, dnsmasq_pid, kernel_state, port_of, until

from innkeeper.network.plan import Standing
from innkeeper.network.policy import SwitchPolicy
from innkeeper.network.switch import SwitchRunner

pytestmark = pytest.mark.root


def _break_flush(lab: Lab) -> None:
    run_in(lab.namespace, "nft", "flush", "ruleset")


def _break_rule(lab: Lab) -> None:
    run_in(lab.namespace, "nft", "flush", "chain", "bridge", "inn_t3st", "from_arp")


def _break_added_rule(lab: Lab) -> None:
    run_in(lab.namespace, "nft", "insert", "rule", "bridge", "inn_t3st", "prerouting", "accept")


def _break_element(lab: Lab) -> None:
    run_in(lab.namespace, "nft", "delete", "element", "bridge", "inn_t3st", "guard_arp", "{ intp-t3st1 }")
    run_in(lab.namespace, "nft", "add", "element", "bridge", "inn_t3st", "addresses4", "{ intp-t3st1 . 10.66.0.1 }")
    run_in(lab.namespace, "nft", "flush", "set", "inet", "inn_t3st", "nat_subnets")


def _break_links(lab: Lab) -> None:
    run_in(lab.namespace, "ip", "link", "del", "intp-t3st2")
    run_in(lab.namespace, "ip", "link", "set", "intp-t3st1", "nomaster")
    run_in(lab.namespace, "ip", "addr", "flush", "dev", SWITCH.bridge)
    run_in(lab.namespace, "ip", "link", "add", "inbr-t3st9", "type", "bridge")


def _break_bridge(lab: Lab) -> None:
    run_in(lab.namespace, "ip", "link", "del", SWITCH.bridge)


def _break_dhcp(lab: Lab) -> None:
    pid = dnsmasq_pid(lab)
    os.kill(pid, signal.SIGKILL)
    assert until(lambda: not Path(f"/proc/{pid}/cmdline").exists() or not Path(f"/proc/{pid}/cmdline").read_bytes())


@pytest.mark.parametrize(
    "damage",
    [_break_flush, _break_rule, _break_added_rule, _break_element, _break_links, _break_bridge, _break_dhcp],
    ids=lambda damage: damage.__name__.removeprefix("_break_"),
)
def test_damage_is_found_and_repaired(lab: Lab, damage: Callable[[Lab], None]) -> None:
    lab.do(lab.runner.ensure(SWITCH, [port_of(1), port_of(2)]))
    before = sorted(kernel_state(lab.namespace).splitlines())
    damage(lab)
    report = lab.do(lab.runner.repair())
    assert report.done != [] and report.problems == {}
    assert lab.do(lab.runner.repair()).done == []
    assert sorted(kernel_state(lab.namespace).splitlines()) == before
    assert Path(f"/proc/{dnsmasq_pid(lab)}").exists()
    one, two = lab.open(port_of(1)), lab.open(port_of(2))
    assert lab.deliver(one, two, f.arp(one.mac, 2, one.mac, GATEWAY, two.mac, two.ip)) == []


def test_a_change_repairs_flushed_rules_on_its_way(lab: Lab) -> None:
    lab.plug(port_of(1))
    _break_flush(lab)
    lab.plug(port_of(2))
    assert lab.do(lab.runner.repair()).done == []


def test_what_fails_for_one_switch_does_not_keep_the_others_from_being_repaired(lab: Lab) -> None:
    second = SwitchPolicy("second", "inbr-t3st2", kind="private")
    lab.do(lab.runner.ensure(second))
    run_in(lab.namespace, "ip", "link", "del", SWITCH.bridge)
    run_in(lab.namespace, "ip", "link", "del", second.bridge)
    run_in(lab.namespace, "ip", "link", "add", SWITCH.bridge, "type", "veth", "peer", "name", "other")
    report = lab.do(lab.runner.repair())
    assert report.problems["lan"].code == "switch.device_taken"
    assert "make bridge inbr-t3st2" in report.done
    run_in(lab.namespace, "ip", "link", "del", SWITCH.bridge)


def test_a_later_daemon_takes_over_without_a_change(lab: Lab) -> None:
    one, two = lab.plug(port_of(1)), lab.plug(port_of(2))
    lab.deliver(one, two, f.arp(one.mac, 2, one.mac, GATEWAY, two.mac, two.ip))
    before, pid, counted = kernel_state(lab.namespace), dnsmasq_pid(lab), lab.dropped(one)
    desired = lab.runner.standing(SWITCH.bridge)
    assert desired is not None

    async def take_over() -> tuple[list[str], dict[str, int]]:
        later = SwitchRunner(INN_ID, lab.runner._directory, namespace=lab.namespace)
        try:
            return (await later.start([desired])).done, await later.counters(one.port.tap)
        finally:
            await later.close()

    assert lab.do(take_over()) == ([], counted)
    assert counted["arp"] == 1
    assert (kernel_state(lab.namespace), dnsmasq_pid(lab)) == (before, pid)


def test_a_later_daemon_removes_what_belongs_to_nothing(lab: Lab) -> None:
    lab.do(lab.runner.add_port(SWITCH.bridge, port_of(1)))
    pid = dnsmasq_pid(lab)

    async def take_over() -> None:
        later = SwitchRunner(INN_ID, lab.runner._directory, namespace=lab.namespace)
        try:
            await later.start([])
        finally:
            await later.close()

    lab.do(take_over())
    assert SWITCH.bridge not in kernel_state(lab.namespace) and "intp-t3st1" not in kernel_state(lab.namespace)
    assert until(lambda: not Path(f"/proc/{pid}/cmdline").exists() or not Path(f"/proc/{pid}/cmdline").read_bytes())


def test_two_inns_share_a_namespace(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> None:
    one = lab.plug(port_of(1))
    before = kernel_state(lab.namespace)
    other_directory = lab.runner._directory.parent / "other"

    async def live_beside() -> str:
        other = SwitchRunner("0ther"[:4], other_directory, namespace=lab.namespace)
        try:
            await other.start([Standing(SwitchPolicy("lan", "inbr-0the1", subnet="10.68.0.0/24"))])
            await other.add_port("inbr-0the1", replace(port_of(2), tap="intp-0the1", ipv4=("10.68.0.2",)))
            return await asyncio.to_thread(kernel_state, lab.namespace)
        finally:
            await other.remove_all()
            await other.close()

    beside = lab.do(live_beside())
    assert "inn_0the" in beside and "intp-0the1" in beside
    assert kernel_state(lab.namespace) == before
    assert lab.do(lab.runner.repair()).done == []
    assert lab.dropped(one)["frame"] == 0
