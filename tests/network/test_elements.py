"""Elements changed in place, and the base chains that stand only while elements need them."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, strategies as st
from switch_lab import Lab, run_in
from switch_world import SWITCH, port_of

from innkeeper.network.elements import HOOK, NEEDED_BY, Elements, chains_of, hooks, split
from innkeeper.network.policy import PortPolicy
from innkeeper.network.ruleset import Element
from innkeeper.network.traffic import Meter, TrafficPolicy
from innkeeper.network.transaction import FAMILIES, Schema, compile_elements, elements_of

PLAIN, METERED, MARKED, BOTH = (
    TrafficPolicy(),
    TrafficPolicy(meters=(Meter("in", "0.0.0.0/0"),)),
    TrafficPolicy(dscp=46),
    TrafficPolicy(dscp=8, meters=(Meter("out", "::/0"),)),
)
CHANGES = st.lists(
    st.tuples(st.integers(1, 3), st.sampled_from([None, PLAIN, METERED, MARKED, BOTH])), min_size=1, max_size=12
)


@given(CHANGES)
def test_any_way_of_changes_leads_to_what_is_compiled_at_once(changes: list[tuple[int, TrafficPolicy | None]]) -> None:
    ports: dict[int, PortPolicy] = {}
    elements = Elements(compile_elements([(SWITCH, [])]))
    for number, traffic in changes:
        old = elements_of(SWITCH, ports[number]) if number in ports else frozenset()
        ports.pop(number, None)
        if traffic is not None:
            ports[number] = replace(port_of(number), traffic=traffic)
        new = elements_of(SWITCH, ports[number]) if number in ports else frozenset()
        gone, come = elements.difference(old, new)
        wanted = compile_elements([(SWITCH, ports.values())])
        assert elements.moved(gone, come) == wanted
        assert all(one in elements for one in gone) and not any(one in elements for one in come)
        elements.move(gone, come)
        assert elements.difference(frozenset(), frozenset()) == (frozenset(), frozenset())
        assert elements.moved(frozenset(), frozenset()) == wanted


def test_every_chain_that_may_be_absent_is_a_base_chain_of_the_schema_with_sets_that_stand() -> None:
    found = set()
    for family in FAMILIES:
        body, chains = split(Schema("t3st").text(family))
        assert chains.keys() == chains_of(family)
        assert all(" hook " in chain and chain not in body for chain in chains.values())
        for chain in chains:
            assert all(f"  set {name} " in body or f"  map {name} " in body for name in NEEDED_BY[chain]), chain
        found |= chains.keys()
    assert found == NEEDED_BY.keys()


def test_a_chain_is_needed_while_one_of_its_sets_has_an_element() -> None:
    assert hooks({"ports", "macs"}) == frozenset()
    assert hooks({"ports", "dscp_of"}) == {Element("bridge", HOOK, ("mark_from_ports",))}


@pytest.mark.root
def test_frames_pass_the_chains_of_meters_and_marks_while_a_port_has_them(lab: Lab) -> None:
    all_of_them = {name for name, needs in NEEDED_BY.items() if set(needs) & {"metered", "dscp_of"}}

    def stands() -> set[str]:
        listed = run_in(lab.namespace, "nft", "list", "table", "bridge", "inn_t3st")
        return {name for name in NEEDED_BY if f"chain {name} {{" in listed}

    one, two = lab.plug(port_of(1)), lab.plug(port_of(2))
    assert stands() == set()
    lab.set_port(one, replace(port_of(1), traffic=METERED))
    lab.set_port(two, replace(port_of(2), traffic=BOTH))
    assert stands() == all_of_them
    assert lab.deliver(one, two) == []
    lab.set_port(two, port_of(2))
    assert stands() == all_of_them - {"mark_from_ports"}
    run_in(lab.namespace, "nft", "delete", "chain", "bridge", "inn_t3st", "meter_between_ports")
    assert lab.do(lab.runner.repair()).done == ["set the rules of inn_t3st right"]
    run_in(lab.namespace, "nft", "flush", "chain", "bridge", "inn_t3st", "meter_between_ports")
    assert lab.do(lab.runner.repair()).done == ["load the rules of inn_t3st"]
    assert stands() == all_of_them - {"mark_from_ports"}
    lab.unplug(one)
    assert stands() == set()
    assert lab.do(lab.runner.repair()).done == []
