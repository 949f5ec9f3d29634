"""Guests behind Docker's rules, real iptables and bridged frames that pass them: cut off, let pass with consent."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from switch_lab import Lab, Machine, new_machine, new_namespace, run_in
from switch_world import GATEWAY, SWITCH, port_of

from innkeeper.network.docker import chain_rules, jump
from innkeeper.network.foreign import findings

pytestmark = pytest.mark.root
BRIDGED = Path("/proc/sys/net/bridge/bridge-nf-call-iptables")
OUTSIDE, OUTSIDE_HOST = "192.0.2.2", "192.0.2.1"


@pytest.fixture
def world(lab: Lab) -> Iterator[tuple[Lab, Machine, Machine, str]]:
    """Two guests, a network outside, and the rules that Docker makes."""
    if shutil.which("iptables") is None:
        pytest.skip("iptables is not installed")
    with (
        new_namespace("outside") as outside,
        new_machine("guest1", lab.plug(port_of(1))) as one,
        new_machine("guest2", lab.plug(port_of(2))) as two,
    ):
        run_in(lab.namespace, "ip", "link", "add", "up0", "type", "veth", "peer", "name", "out0", "netns", outside)
        run_in(lab.namespace, "ip", "addr", "add", f"{OUTSIDE_HOST}/24", "dev", "up0")
        run_in(lab.namespace, "ip", "link", "set", "up0", "up")
        run_in(outside, "ip", "addr", "add", f"{OUTSIDE}/24", "dev", "out0")
        run_in(outside, "ip", "link", "set", "out0", "up")
        one.give_address(GATEWAY)
        two.give_address(GATEWAY)
        for tool in ("iptables", "ip6tables"):
            for rule in ("-P FORWARD DROP", "-N DOCKER-USER", "-A FORWARD -j DOCKER-USER", "-A DOCKER-USER -j RETURN"):
                run_in(lab.namespace, tool, *rule.split())
        run_in(lab.namespace, "iptables", "-A", "FORWARD", "-o", "docker0", "-j", "ACCEPT")
        yield lab, one, two, outside


def answers(machine: Machine, address: str) -> bool:
    return "1 received" in run_in(machine.namespace, "ping", "-c", "1", "-W", "1", address, check=False)


def docker_rules(lab: Lab) -> list[str]:
    return [
        line
        for tool in ("iptables", "ip6tables")
        for line in run_in(lab.namespace, tool, "-S").splitlines()
        if "INNKEEPER" in line or "DOCKER" in line
    ]


def complaints(lab: Lab) -> set[str]:
    ruleset = json.loads(run_in(lab.namespace, "nft", "-j", "list", "ruleset"))["nftables"]
    return {one.detail for one in findings(ruleset, [SWITCH.bridge], nat=True, bridge_netfilter=True)}


def test_with_consent_guests_pass(world: tuple[Lab, Machine, Machine, str]) -> None:
    lab, one, two, _ = world
    assert not answers(one, OUTSIDE)
    what = f"traffic of guests on {SWITCH.bridge} to the outside"
    assert f"Docker: ip filter FORWARD drops {what} (its policy)" in complaints(lab)
    if BRIDGED.exists():
        assert not answers(one, two.guest.ip), "with br_netfilter even neighbours are cut off"

    done = lab.do(lab.runner.allow_docker(True))
    assert len(done) == 2
    assert lab.do(lab.runner.allow_docker(True)) == []
    assert answers(one, OUTSIDE) and answers(one, two.guest.ip)
    assert complaints(lab) == set()
    assert docker_rules(lab).count(jump("t3st")) == 2, "one for IPv4, one for IPv6"

    run_in(lab.namespace, "iptables", "-F", "DOCKER-USER")
    assert lab.do(lab.runner.repair()).done == ["let guests pass Docker's rules (iptables DOCKER-USER)"]
    assert answers(one, OUTSIDE)
    run_in(lab.namespace, "iptables", "-A", "DOCKER-USER", "-j", "RETURN")


def test_at_stop_nothing_is_left(lab: Lab) -> None:
    for tool in ("iptables", "ip6tables"):
        run_in(lab.namespace, tool, "-N", "DOCKER-USER")
    before = docker_rules(lab)
    lab.do(lab.runner.allow_docker(True))
    assert docker_rules(lab) != before
    lab.do(lab.runner.remove_all())
    assert docker_rules(lab) == before


def test_consent_is_taken_back(world: tuple[Lab, Machine, Machine, str]) -> None:
    lab, one, _, _ = world
    before = docker_rules(lab)
    lab.do(lab.runner.allow_docker(True))
    assert len(lab.do(lab.runner.allow_docker(False))) == 2
    assert docker_rules(lab) == before
    assert not answers(one, OUTSIDE)


def test_containers_stay_apart_from_guests() -> None:
    rules = chain_rules("k3f9")
    for guests in ("inbr-k3f9+", "intu-k3f9+"):
        accept = rules.index(f"-A INNKEEPER-k3f9 -i {guests} -j ACCEPT")
        assert all(
            rules.index(f"-A INNKEEPER-k3f9 -i {guests} -o {name} -j RETURN") < accept for name in ("docker+", "br-+")
        )


def test_without_docker_nothing_is_done(lab: Lab) -> None:
    assert lab.do(lab.runner.allow_docker(True)) == []
    assert lab.do(lab.runner.repair()).done == []
