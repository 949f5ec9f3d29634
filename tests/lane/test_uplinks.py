"""Uplinks that need more of the kernel: teams of cards in each mode, and VLAN devices."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from host_lab import BRIDGE, MAC, SETUP, WORLD4, WORLD6, Host, new_host, until
from switch_lab import INN_ID, new_namespace, run_in

from innkeeper.model.uplink import TeamMode
from innkeeper.network.policy import SwitchPolicy
from innkeeper.network.switch import SwitchRunner
from innkeeper.network.uplink_policy import UplinkPolicy
from innkeeper.network.uplinks import has_bonding

TEAM = f"inbd-{INN_ID}1"
OUTSIDE = {
    "active-backup": "out type bridge",
    "balance-xor": "out type bond mode balance-xor miimon 100",
    "802.3ad": "out type bond mode 802.3ad miimon 100 lacp_rate fast",
}
"""What the two cards lead to."""


def external(host: Host, *devices: str, team: TeamMode | None = None) -> SwitchPolicy:
    first = host.facts(devices[0])
    via = "team" if team else "card"
    uplink = UplinkPolicy(devices, via=via, team=team, mac=first.mac, network=first.network)
    return SwitchPolicy("lan", BRIDGE, kind="external", mtu=first.mtu, uplink=uplink)


@contextmanager
def two_cards(mode: TeamMode) -> Iterator[Host]:
    """A host with two cards, of which eth0 has its network, and the world behind them."""
    with (
        tempfile.TemporaryDirectory(prefix="inn-lab-") as folder,
        new_namespace("host") as namespace,
        new_namespace("world") as world,
    ):
        Path(folder).chmod(0o755)
        subprocess.run(["modprobe", "-a", "bonding", "bridge", "veth"], check=True)
        for each in (namespace, world):
            for setting in ("accept_dad", "dad_transmits"):
                run_in(each, "sysctl", "-qw", f"net.ipv6.conf.default.{setting}=0")
        run_in(world, "ip", "link", "add", *OUTSIDE[mode].split())
        for number, mac in enumerate((MAC, "02:00:00:00:00:11")):
            far = f"out{number}"
            words = f"link add eth{number} address {mac} type veth peer name {far} netns {world}"
            run_in(namespace, "ip", *words.split())
            run_in(world, "ip", "link", "set", far, "master", "out")
            run_in(world, "ip", "link", "set", far, "up")
        for command in ("link set out up", f"addr add {WORLD4}/24 dev out", f"addr add {WORLD6}/64 dev out nodad"):
            run_in(world, "ip", *command.split())
        for command in ("addr add 198.51.100.1/32 dev lo", "addr add 2001:db8:1::1/128 dev lo"):
            run_in(world, "ip", *command.split())
        for command in SETUP:
            run_in(namespace, "ip", *command.split())
        directory = Path(folder) / "switches"
        host = Host(namespace, world, directory, SwitchRunner(INN_ID, directory, namespace=namespace))
        host.do(host.runner.start([]))
        try:
            yield host
        finally:
            host.close()


@pytest.mark.parametrize("mode", list(OUTSIDE))
def test_a_team_carries_the_host_and_bears_the_loss_of_a_card(mode: TeamMode) -> None:
    with two_cards(mode) as host:
        before, policy = host.network(), external(host, "eth0", "eth1", team=mode)
        done = host.do(host.runner.ensure(policy))
        assert f"make team {TEAM} ({mode})" in done
        assert f"bond mode {mode}" in host.ip(f"-d link show {TEAM}")
        members = host.ip(f"link show master {TEAM}")
        assert "eth0" in members and "eth1" in members
        assert host.network() == {BRIDGE: before["eth0"]}
        assert f"ether {MAC}" in host.ip(f"link show {BRIDGE}")
        assert until(host.reaches)
        assert host.do(host.runner.ensure(policy)) == [] and host.do(host.runner.repair()).problems == {}
        for lost, other in (("out0", "out1"), ("out1", "out0")):
            run_in(host.world, "ip", "link", "set", other, "up")
            run_in(host.world, "ip", "link", "set", lost, "down")
            assert until(host.reaches), f"without {lost}"
        run_in(host.world, "ip", "link", "set", "out1", "up")
        host.ip("link set eth0 nomaster")
        assert host.do(host.runner.repair()).done != []
        assert "eth0" in host.ip(f"link show master {TEAM}") and until(host.reaches)
        host.do(host.runner.remove(BRIDGE))
        assert host.network() == before
        assert mode != "active-backup" or until(host.reaches)  # the others' far ends go on as two cards of one team
        assert TEAM not in host.ip("link") and "master" not in host.ip("link show eth1")


def test_a_vlan_device_is_an_uplink() -> None:
    with new_host() as host:
        host.ip("link add link eth0 name eth0.7 type vlan id 7")
        run_in(host.world, "ip", "link", "add", "link", "out", "name", "out.7", "type", "vlan", "id", "7")
        for command in ("link set out.7 up", "addr add 192.0.3.1/24 dev out.7", "addr add 2001:db8:7::1/64 dev out.7"):
            run_in(host.world, "ip", *command.split())
        for command in ("link set eth0.7 up", "addr add 192.0.3.10/24 dev eth0.7"):
            host.ip(command)
        before = host.network()
        host.do(host.runner.ensure(external(host, "eth0.7")))
        assert host.network() == {BRIDGE: before["eth0.7"], "eth0": before["eth0"]}
        assert until(lambda: "1 received" in run_in(host.namespace, "ping", "-c1", "-W1", "192.0.3.1", check=False))
        assert host.reaches(), "untagged, the card is the host's own as ever"
        host.do(host.runner.remove(BRIDGE))
        assert host.network() == before


def test_vlan_devices_on_a_card_that_is_an_uplink_go_on() -> None:
    with new_host() as host:
        host.ip("link add link eth0 name eth0.7 type vlan id 7")
        run_in(host.world, "ip", "link", "add", "link", "out", "name", "out.7", "type", "vlan", "id", "7")
        for command in ("link set out.7 up", "addr add 192.0.3.1/24 dev out.7"):
            run_in(host.world, "ip", *command.split())
        for command in ("link set eth0.7 up", "addr add 192.0.3.10/24 dev eth0.7"):
            host.ip(command)
        before = host.network()
        host.do(host.runner.ensure(external(host, "eth0")))
        assert host.network() == {BRIDGE: before["eth0"], "eth0.7": before["eth0.7"]}
        assert host.reaches()
        assert until(lambda: "1 received" in run_in(host.namespace, "ping", "-c1", "-W1", "192.0.3.1", check=False))


def test_the_kernel_can_make_teams() -> None:
    assert has_bonding()
