"""Switches in a real kernel: made, used, removed; a failure leaves nothing half-made."""

from __future__ import annotations

import asyncio
import socket
from dataclasses import replace
from pathlib import Path

import frames as f
import pytest
from switch_lab import INN_ID, Lab, in_namespace, run_in
from switch_world import GATEWAY, SWITCH, kernel_state, port_of, switch_directory

from innkeeper.model.problems import Conflict, Failed, NotFound
from innkeeper.network.policy import PortPolicy, SwitchPolicy
from innkeeper.network.ruleset import COUNTED
from innkeeper.network.switch import SwitchRunner

pytestmark = pytest.mark.root
_IP_FREEBIND = 15
FOREIGN_TABLE = "table inet others { chain forward { type filter hook forward priority 0; policy accept; }; }"


def test_a_switch_can_be_made_again_without_a_change(lab: Lab) -> None:
    ports = [port_of(1), port_of(2)]
    assert lab.do(lab.runner.ensure(SWITCH, ports)) != []
    before = kernel_state(lab.namespace)
    assert lab.do(lab.runner.ensure(SWITCH, ports)) == []
    assert lab.do(lab.runner.repair()).done == []
    assert kernel_state(lab.namespace) == before


def test_removing_leaves_nothing_and_others_untouched(lab: Lab) -> None:
    run_in(lab.namespace, "nft", FOREIGN_TABLE)
    run_in(lab.namespace, "ip", "link", "add", "virbr0", "type", "bridge")
    before = kernel_state(lab.namespace)
    bridge = "inbr-t3st2"
    second = SwitchPolicy("second", bridge, kind="internal", subnet="10.67.0.0/24")
    lab.do(lab.runner.ensure(second, [PortPolicy("intp-t3st7", "52:54:00:00:00:07", ("10.67.0.7",))]))
    pid = int((switch_directory(lab).parent / bridge / "dnsmasq.pid").read_text())
    assert lab.do(lab.runner.remove(bridge))
    assert kernel_state(lab.namespace) == before
    assert not Path(f"/proc/{pid}").exists()
    assert not (switch_directory(lab).parent / bridge).exists()
    assert lab.do(lab.runner.remove(bridge)) == []

    lab.do(lab.runner.remove_all())
    assert run_in(lab.namespace, "nft", "list", "tables") == "table inet others\n"
    assert "virbr0" in run_in(lab.namespace, "ip", "link")
    assert "in" not in [line.split(": ")[1][:2] for line in run_in(lab.namespace, "ip", "-o", "link").splitlines()]
    assert not switch_directory(lab).parent.exists()


def test_ports_come_and_go(lab: Lab) -> None:
    one = lab.plug(port_of(1))
    two = lab.plug(port_of(2))
    assert lab.deliver(one, two) == []
    empty = dict.fromkeys(COUNTED, 0)
    assert lab.dropped(one) == empty
    assert lab.do(lab.runner.all_counters())[one.port.tap] == empty
    lab.unplug(one)
    assert "intp-t3st1" not in kernel_state(lab.namespace)
    assert lab.do(lab.runner.remove_port("intp-t3st1")) == []
    with pytest.raises(NotFound, match="plugged into no switch"):
        lab.do(lab.runner.counters("intp-t3st1"))
    with pytest.raises(NotFound):
        lab.do(lab.runner.open_tap("intp-t3st1"))


def test_a_counter_goes_on_when_something_else_changes(lab: Lab) -> None:
    one, two = lab.plug(port_of(1)), lab.plug(port_of(2))
    assert lab.deliver(one, two, f.arp(one.mac, 2, one.mac, GATEWAY, two.mac, two.ip)) == []
    assert lab.dropped(one)["arp"] == 1
    lab.set_port(one, replace(one.port, guards=replace(one.port.guards, router=False)))
    lab.plug(port_of(3))
    assert lab.dropped(one)["arp"] == 1


def test_a_tap_belongs_to_the_uid_of_its_vm(lab: Lab) -> None:
    lab.do(lab.runner.add_port(SWITCH.bridge, replace(port_of(1), owner_uid=200_007)))
    assert "user 200007" in run_in(lab.namespace, "ip", "-d", "link", "show", "intp-t3st1")
    lab.do(lab.runner.add_port(SWITCH.bridge, port_of(2)))
    assert "user root" in run_in(lab.namespace, "ip", "-d", "link", "show", "intp-t3st2")


def test_a_tap_is_opened_once(lab: Lab) -> None:
    lab.plug(port_of(1))
    with pytest.raises(Conflict) as busy:
        lab.do(lab.runner.open_tap("intp-t3st1"))
    assert busy.value.code == "nic.tap_busy"


# --- failures leave nothing half-made ---------------------------------------------------------------------------------


def test_a_refused_transaction_names_the_rule_and_changes_nothing(lab: Lab) -> None:
    lab.plug(port_of(1))
    kernel = lab.runner._open
    before = kernel_state(lab.namespace)
    text = "add element bridge inn_t3st ports { intp-t3st5 }\nadd element bridge inn_t3st nowhere { intp-t3st5 }\n"
    with pytest.raises(Failed) as refused:
        lab.do(lab.runner._thread.call(kernel._nft.apply, text))
    assert refused.value.code == "nft.refused"
    assert refused.value.cause == "add element bridge inn_t3st nowhere { intp-t3st5 }"
    assert kernel_state(lab.namespace) == before


def test_a_new_switch_that_fails_leaves_nothing(lab: Lab) -> None:
    run_in(lab.namespace, "ip", "link", "add", "intp-t3st7", "type", "bridge")
    before = kernel_state(lab.namespace)
    second = SwitchPolicy("second", "inbr-t3st2", kind="internal", subnet="10.67.0.0/24")
    with pytest.raises(Conflict) as taken:
        lab.do(lab.runner.ensure(second, [PortPolicy("intp-t3st7", "52:54:00:00:00:07", ("10.67.0.7",))]))
    assert taken.value.code == "nic.device_taken"
    assert kernel_state(lab.namespace) == before
    assert lab.runner.standing("inbr-t3st2") is None


def test_a_switch_whose_change_fails_is_as_before(lab: Lab) -> None:
    lab.plug(port_of(1))
    before = kernel_state(lab.namespace)
    run_in(lab.namespace, "ip", "link", "add", "intp-t3st7", "type", "bridge")
    with pytest.raises(Conflict):
        lab.do(lab.runner.ensure(SWITCH, [port_of(1), replace(port_of(2), tap="intp-t3st7")]))
    run_in(lab.namespace, "ip", "link", "del", "intp-t3st7")
    assert kernel_state(lab.namespace) == before
    with pytest.raises(Conflict):  # the tap is open, so it cannot be given away
        lab.do(lab.runner.update_port(replace(port_of(1), owner_uid=200_001, ipv4=("10.66.0.99",))))
    assert kernel_state(lab.namespace) == before


def test_a_port_whose_dhcp_fails_leaves_nothing(lab: Lab) -> None:
    lab.plug(port_of(1))
    before = kernel_state(lab.namespace)
    hosts = switch_directory(lab) / "hosts"
    hosts.unlink()
    hosts.mkdir()
    with pytest.raises(Failed) as failed:
        lab.do(lab.runner.add_port(SWITCH.bridge, port_of(2)))
    assert failed.value.code == "switch.directory"
    hosts.rmdir()
    assert kernel_state(lab.namespace) == before
    assert lab.do(lab.runner.repair()).problems == {}


def test_dhcp_that_cannot_start_says_why(lab: Lab) -> None:
    second = SwitchPolicy("second", "inbr-t3st2", kind="internal", subnet="10.67.0.0/24")

    def take_port() -> socket.socket:
        taken = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        taken.setsockopt(socket.IPPROTO_IP, _IP_FREEBIND, 1)
        taken.bind(("10.67.0.1", 53))
        return taken

    with in_namespace(lab.namespace, take_port):
        with pytest.raises(Failed) as failed:
            lab.do(lab.runner.ensure(second))
    assert failed.value.code == "switch.dhcp_failed"
    assert "Address already in use" in (failed.value.cause or "")
    assert "inbr-t3st2" not in kernel_state(lab.namespace)


def test_a_missing_library_or_namespace_is_named(tmp_path: Path) -> None:
    runner = SwitchRunner(INN_ID, tmp_path, namespace="inn-that-is-not-there")
    with pytest.raises(Failed) as missing:
        asyncio.run(runner.start([]))
    assert missing.value.code == "network.namespace"
    asyncio.run(runner.close())


def test_a_directory_that_dnsmasq_cannot_reach_is_named(lab: Lab) -> None:
    second = SwitchPolicy("second", "inbr-t3st2", kind="internal", subnet="10.67.0.0/24")
    top = lab.runner._directory.parent
    top.chmod(0o700)
    try:
        with pytest.raises(Failed) as closed:
            lab.do(lab.runner.ensure(second))
    finally:
        top.chmod(0o755)
    assert closed.value.code == "switch.directory"
    assert str(top) in (closed.value.cause or "")
    assert "inbr-t3st2" not in kernel_state(lab.namespace)
