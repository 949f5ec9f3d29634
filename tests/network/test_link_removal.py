"""Many links removed in one step, and no other with them."""

from __future__ import annotations

from dataclasses import replace

import pytest
from switch_lab import Lab, in_namespace, new_namespace, run_in
from switch_world import SWITCH, kernel_state, port_of

from innkeeper.network.link_removal import remove_together
from innkeeper.network.traffic import TrafficPolicy

pytestmark = pytest.mark.root


def links(namespace: str) -> dict[str, int]:
    shown = (line.split(": ") for line in run_in(namespace, "ip", "-o", "link", "show").splitlines())
    return {name: int(index) for index, name, *_ in shown}


def test_just_those_links_are_removed() -> None:
    with new_namespace("links") as namespace:
        for number in range(40):
            run_in(namespace, "ip", "link", "add", f"ifb-{number}", "type", "ifb")
        run_in(namespace, "ip", "link", "set", "ifb-7", "group", "7")
        standing = links(namespace)
        leaving = {f"ifb-{number}" for number in range(0, 40, 2)}
        run_in(namespace, "ip", "link", "del", "ifb-4")  # what is gone already is no hindrance
        in_namespace(namespace, lambda: remove_together(standing[name] for name in leaving))
        assert links(namespace).keys() == standing.keys() - leaving
        in_namespace(namespace, lambda: remove_together([standing["ifb-4"]]))
        in_namespace(namespace, lambda: remove_together([]))
        assert links(namespace).keys() == standing.keys() - leaving


def test_a_switch_loses_some_of_its_ports_with_their_limiters(lab: Lab) -> None:
    bounded = TrafficPolicy(max_out_bits_per_s=1_000_000, max_in_bits_per_s=1_000_000)
    ports = [replace(port_of(number), traffic=bounded) for number in range(1, 6)]
    lab.do(lab.runner.ensure(SWITCH, ports[:2]))
    before = kernel_state(lab.namespace)
    lab.do(lab.runner.ensure(SWITCH, ports))
    assert len([name for name in links(lab.namespace) if name.startswith(("intp-", "inif-"))]) == 10
    done = lab.do(lab.runner.ensure(SWITCH, ports[:2]))
    assert done[:3] == [f"remove tap {port.tap}" for port in ports[2:]]
    assert kernel_state(lab.namespace) == before
    one, two = (lab.open(port) for port in ports[:2])
    assert lab.deliver(one, two) == []
