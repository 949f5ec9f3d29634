"""The compiler of rules: golden text, and that every way to the same policies leads to the same rules."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from innkeeper.model.acl import AclEntry, AclLists, AclRule
from innkeeper.model.guards import GUARD_NAMES
from innkeeper.model.host_firewall import HostFirewall
from innkeeper.network.acl import policy_of
from innkeeper.network.host_firewall import Surroundings, firewall_elements
from innkeeper.network.nat import switch_elements
from innkeeper.network.overlay import OverlayPolicy, Record
from innkeeper.network.policy import Forward, GuardPolicy, PortPolicy, SwitchPolicy
from innkeeper.network.ruleset import COUNTED, RATES, Element, port_elements
from innkeeper.network.traffic import Meter, TrafficPolicy
from innkeeper.network.transaction import (
    Schema,
    change,
    compile_elements,
    listing,
    read_counters,
    read_elements,
    remove,
    replace as replace_all,
    schema_stands,
)
from innkeeper.network.uplink_policy import UplinkPolicy
from innkeeper.network.vlan_policy import VlanPolicy
from innkeeper.network.ways import way_elements

GOLDEN = Path(__file__).parent / "golden" / "inn.nft"
SCHEMA = Schema("k3f9")
LAN = SwitchPolicy(
    "lan",
    "inbr-k3f91",
    subnet="10.77.0.0/24",
    forwards=(Forward("tcp", 8080, "10.77.0.2", 80), Forward("udp", 53, "10.77.0.2", 53, host_address="192.0.2.1")),
    host_services=("tcp/3142", "tcp/22@10.77.0.0/28", "tcp/22@10.77.0.16/28", "udp/123@fe80::/10"),
)
WEB = PortPolicy("intp-k3f91", "52:54:3f:a1:00:01", ("10.77.0.2", "10.77.0.9"), ("2001:db8::2",), hostname="web")
OPEN = PortPolicy("intp-k3f92", "52:54:3f:a1:00:02", ("10.77.0.3",), guards=GuardPolicy(arp=False, router=False))
APART = SwitchPolicy("apart", "inbr-k3f92", kind="private")
UNKNOWN = PortPolicy("intp-k3f93", "52:54:3f:a1:00:03")
INSIDE = SwitchPolicy("inside", "inbr-k3f93", kind="internal", subnet="10.78.0.0/24")
METERED = PortPolicy(
    "intp-k3f94",
    "52:54:3f:a1:00:04",
    ("10.77.0.4",),
    traffic=TrafficPolicy(dscp=46, meters=(Meter("in", "0.0.0.0/0"), Meter("in", "10.0.0.0/8"), Meter("out", "::/0"))),
)
OUTSIDE = SwitchPolicy("outside", "inbr-k3f94", kind="external", uplink=UplinkPolicy(("eth0",)))
THERE = PortPolicy("intp-k3f95", "52:54:3f:a1:00:05", learns=True)
DENIED = AclRule(weight=3, action="deny", direction="in", protocol="udp", log=True)
ALLOWED = AclRule(weight=9, action="allow", direction="out", protocol="tcp", stateful=True)
LISTED = PortPolicy(
    "intp-k3f9l",
    "52:54:3f:a1:00:4c",
    ("10.78.0.2",),
    acl=policy_of(
        [
            ("", AclLists(entries=[AclEntry(action="deny", direction="in", remote="192.0.2.0/24")])),
            ("web", AclLists(rules=[ALLOWED, DENIED])),
        ]
    ),
)
OVERLAY = OverlayPolicy(
    5001,
    "192.0.2.1",
    records=(
        Record("10.5.0.7", "52:54:3f:a1:00:07", "192.0.2.2"),
        Record("10.5.0.8", "52:54:3f:a1:00:08", "192.0.2.1"),
    ),
)
VIRTUAL = SwitchPolicy("red", "inbr-k3f95", kind="virtual", subnet="10.5.0.0/24", overlay=OVERLAY)
TENANT = PortPolicy("intp-k3f96", "52:54:3f:a1:00:08", ("10.5.0.8",))
TAGGED = SwitchPolicy("tagged", "inbr-k3f96", kind="internal", subnet="10.79.0.0/24", vlans=True)
ALONE = PortPolicy(
    "intp-k3f97", "52:54:3f:a1:00:09", ("10.79.0.5",), vlan=VlanPolicy("isolated", 1, others=((101, 101),))
)
SHARED = PortPolicy("intp-k3f98", "52:54:3f:a1:00:0a", vlan=VlanPolicy("promiscuous", 1, others=((101, 103),)))
INN = [(LAN, [WEB, OPEN, METERED]), (APART, [UNKNOWN]), (INSIDE, [LISTED]), (OUTSIDE, [THERE]), (VIRTUAL, [TENANT])]
INN.append((TAGGED, [ALONE, SHARED]))
FIREWALL = firewall_elements(
    "standing",
    HostFirewall(enabled=True, management=["eth1", "192.0.2.0/28"], allow=["tcp/22@198.51.100.0/24", "tcp/443%eth0"]),
    Surroundings({"eth0": ("inbr-k3f94", "eth0")}, frozenset({"192.0.2.2"})),
)


def test_the_rules_of_an_inn_are_the_golden_ones() -> None:
    assert replace_all(SCHEMA, compile_elements(INN, FIREWALL)) == GOLDEN.read_text()


def test_no_concatenation_is_longer_than_nft_can_do() -> None:
    for line in replace_all(SCHEMA, compile_elements(INN)).splitlines():
        assert all(part.count(" . ") <= 4 for part in re.split(r"[:,@]", line)), line


def test_every_rule_says_why_in_words_of_its_own() -> None:
    for family in ("bridge", "inet"):
        rules = SCHEMA.rules(family)
        written = [line for line in SCHEMA.text(family).replace("\\\n", "").splitlines() if _is_rule(line)]
        assert len(rules) == len(written)
        assert len({chain for chain, _ in rules}) > 3


def _is_rule(line: str) -> bool:
    return line.startswith("    ") and not line.strip().startswith("type ")


# --- a port ----------------------------------------------------------------------------------------------------------


def _containers(port: PortPolicy, switch: SwitchPolicy = LAN) -> set[str]:
    return {element.container for element in port_elements(switch, port)}


def test_each_guard_is_its_own_sets() -> None:
    for guard in GUARD_NAMES:
        off = replace(WEB, guards=replace(GuardPolicy(), **{guard: False}))
        gone = port_elements(LAN, WEB) - port_elements(LAN, off)
        rates = {element for element in gone if element.container in RATES}
        assert gone - rates == {Element("bridge", container, (WEB.tap,)) for container in COUNTED[guard]}
        assert bool(rates) == (guard == "storm")


def test_what_a_port_may_use_besides_is_known() -> None:
    router = replace(WEB, extra=("10.77.0.200", "2001:db8::200"), extra_macs=("00:00:5e:00:01:07",))
    more = port_elements(LAN, router) - port_elements(LAN, WEB)
    assert Element("bridge", "macs", (WEB.tap, "00:00:5e:00:01:07")) in more
    assert Element("bridge", "arp4", (WEB.tap, "00:00:5e:00:01:07", "10.77.0.2")) in more
    assert Element("bridge", "addresses4", (WEB.tap, "10.77.0.200")) in more
    assert Element("bridge", "addresses6", (WEB.tap, "2001:db8::200")) in more


def test_an_extra_address_alone_locks_nobody_out() -> None:
    assert {"guard_ip4", "guard_arp"}.isdisjoint(_containers(replace(UNKNOWN, extra=("10.77.0.200",))))


def test_allowed_ethertypes_and_rates_are_the_ports_own() -> None:
    port = replace(WEB, guards=GuardPolicy(ethertypes=(0x88CC,), broadcast_per_s=50))
    assert Element("bridge", "ethertypes", (WEB.tap, "0x88cc")) in port_elements(LAN, port)
    assert Element("bridge", "storm_broadcast", (WEB.tap,), ("50",)) in port_elements(LAN, port)


def test_without_an_address_ipv4_is_left_alone() -> None:
    assert {"guard_ip4", "guard_arp"}.isdisjoint(_containers(UNKNOWN))
    assert {"guard_mac", "guard_dhcp", "guard_router", "guard_ip6", "guard_nd"} <= _containers(UNKNOWN)


def test_the_link_local_address_is_known() -> None:
    assert WEB.link_local == "fe80::5054:3fff:fea1:1"
    assert Element("bridge", "addresses6", (WEB.tap, WEB.link_local)) in port_elements(LAN, WEB)


def test_a_port_with_lists_of_what_it_sends_has_a_way_of_its_own_unless_its_switch_has_vlans() -> None:
    plain, listed = (way_elements(port, has_vlans=False) for port in (WEB, LISTED))
    assert Element("bridge", "ports", (WEB.tap,), ("continue",)) in plain
    assert Element("bridge", "short_way", (WEB.tap, "0x52543fa100010800", "0xa4d0002"), ("continue",)) in plain
    ways = {each.container: each.value[0] for each in listed if each.container in ("ports", "short_way", "acl_out")}
    digest = LISTED.acl.digest
    assert ways == {"ports": f"goto acl_guarded_{digest}", "short_way": f"goto acl_own_{digest}"}
    later = way_elements(LISTED, has_vlans=True)
    ways = {each.container: each.value[0] for each in later if each.container in ("ports", "short_way", "acl_out")}
    assert ways == {"ports": "continue", "short_way": "continue", "acl_out": f"goto acl_out_{digest}"}
    assert not [each for each in way_elements(UNKNOWN, has_vlans=False) if each.container == "short_way"]


def test_only_ports_of_private_switches_are_apart_from_the_host() -> None:
    assert "private_ports" in _containers(UNKNOWN, APART)
    assert "private_ports" not in _containers(UNKNOWN, INSIDE)


def test_only_nat_switches_are_translated() -> None:
    of_host = {"gateways", "gateway_addresses"}
    assert {element.container for element in switch_elements(INSIDE)} == {"bridges", "within"} | of_host
    assert {"nat_subnets", "nat_bridges", "forwards", "forwards_at"} <= {e.container for e in switch_elements(LAN)}


# --- transactions ----------------------------------------------------------------------------------------------------

_octet = st.integers(0, 255)
_guards = st.builds(
    GuardPolicy, *[st.booleans()] * 8, broadcast_per_s=st.integers(1, 9), ethertypes=st.sampled_from([(), (0x88CC,)])
)
_addresses4 = st.lists(st.builds("10.77.{}.{}".format, _octet, st.integers(2, 250)), max_size=3, unique=True)
_addresses6 = st.lists(st.builds("2001:db8::{:x}".format, st.integers(1, 0xFFFF)), max_size=2, unique=True)


def _ports(number: int) -> st.SearchStrategy[PortPolicy]:
    return st.builds(
        PortPolicy,
        tap=st.just(f"intp-k3f9{number}"),
        mac=st.builds("52:54:00:00:{:02x}:{:02x}".format, _octet, _octet),
        ipv4=_addresses4.map(tuple),
        ipv6=_addresses6.map(tuple),
        guards=_guards,
    )


_plugs = st.tuples(st.integers(1, 4), st.integers(1, 2)).flatmap(
    lambda numbers: st.tuples(
        st.just(f"inbr-k3f9{numbers[1]}"), st.one_of(st.none(), _ports(numbers[0])), st.just(numbers[0])
    )
)
_SWITCHES = {"inbr-k3f91": LAN, "inbr-k3f92": APART}


def _apply(text: str, held: set[tuple[str, str, str]]) -> None:
    """A model of nft: add and delete elements, refusing what nft refuses."""
    for line in text.splitlines():
        verb, family, table, container, members = re.fullmatch(
            r"(add|delete) element (\w+) (\w+) (\w+) \{ (.*) \}", line
        ).groups()  # type: ignore[union-attr]
        assert table == SCHEMA.table
        for member in (one.partition(" limit ")[0] for one in members.split(", ")):
            if verb == "add":
                held.add((family, container, member))
            else:
                held.remove((family, container, member))


@given(st.lists(_plugs, max_size=12))
def test_changes_one_by_one_lead_where_compiling_everything_leads(
    plugs: list[tuple[str, PortPolicy | None, int]],
) -> None:
    held: set[tuple[str, str, str]] = set()
    ports: dict[str, tuple[str, PortPolicy]] = {}
    for bridge, port, number in plugs:
        tap = f"intp-k3f9{number}"
        before = port_elements(_SWITCHES[ports[tap][0]], ports[tap][1]) if tap in ports else frozenset()
        after = port_elements(_SWITCHES[bridge], port) if port else frozenset()
        _apply(change(SCHEMA, before, after), held)
        ports.pop(tap, None)
        if port:
            ports[tap] = (bridge, port)
    everything = frozenset().union(*(port_elements(_SWITCHES[bridge], port) for bridge, port in ports.values()))
    whole: set[tuple[str, str, str]] = set()
    _apply(change(SCHEMA, frozenset(), everything), whole)
    assert held == whole


@given(st.permutations(INN), st.permutations([WEB, OPEN, METERED]))
def test_compiling_does_not_depend_on_order(
    inn: list[tuple[SwitchPolicy, list[PortPolicy]]], ports: list[PortPolicy]
) -> None:
    shuffled = [(switch, ports if switch is LAN else others) for switch, others in inn]
    assert replace_all(SCHEMA, compile_elements(shuffled)) == replace_all(SCHEMA, compile_elements(INN))


def test_nothing_to_change_is_no_text() -> None:
    elements = compile_elements(INN)
    assert change(SCHEMA, elements, elements) == ""


def test_a_forward_that_moves_is_deleted_before_it_is_added() -> None:
    moved = replace(LAN, forwards=(replace(LAN.forwards[0], address="10.77.0.3"),))
    text = change(SCHEMA, switch_elements(LAN), switch_elements(moved))
    assert text.index("delete element inet inn_k3f9 forwards {") < text.index("add element inet inn_k3f9 forwards {")


def test_removal_takes_both_tables_and_may_be_repeated() -> None:
    assert remove(SCHEMA).splitlines() == [
        "add table bridge inn_k3f9",
        "delete table bridge inn_k3f9",
        "add table inet inn_k3f9",
        "delete table inet inn_k3f9",
    ]


def test_the_listing_is_for_people() -> None:
    assert "inet forwards: 6 . 8080 : 10.77.0.2 . 80" in listing(compile_elements(INN))


# --- reading back ----------------------------------------------------------------------------------------------------


def test_elements_are_read_from_what_nft_lists() -> None:
    listed = [
        {"map": {"name": "ports", "elem": [["intp-k3f91", {"continue": None}]]}},
        {
            "set": {
                "name": "guard_mac",
                "elem": [{"elem": {"val": "intp-k3f91", "counter": {"packets": 3, "bytes": 9}}}],
            }
        },
        {"set": {"name": "nd_link", "elem": [{"concat": ["intp-k3f91", 0x52543FA10001]}]}},
        {"set": {"name": "nd_target", "elem": [{"concat": ["intp-k3f91", "0xfe800000000000000000000000000001"]}]}},
        {"set": {"name": "empty"}},
        {"map": {"name": "forwards", "elem": [[{"concat": [6, 80]}, {"concat": ["10.0.0.2", 8080]}]]}},
        {"set": {"name": "nat_subnets", "elem": [{"prefix": {"addr": "10.77.0.0", "len": 24}}]}},
    ]
    assert read_elements("bridge", listed) == {
        Element("bridge", "ports", ("intp-k3f91",), ("continue",)),
        Element("bridge", "guard_mac", ("intp-k3f91",)),
        Element("bridge", "nd_link", ("intp-k3f91", "0x52543fa10001")),
        Element("bridge", "nd_target", ("intp-k3f91", "0xfe800000000000000000000000000001")),
        Element("bridge", "forwards", ("6", "80"), ("10.0.0.2", "8080")),
        Element("bridge", "nat_subnets", ("10.77.0.0/24",)),
    }
    assert read_counters(listed) == {"intp-k3f91": {**dict.fromkeys(COUNTED, 0), "mac": 3}}


def _listed(family: str) -> list[dict[str, dict[str, str]]]:
    text = SCHEMA.body(family) + "".join(SCHEMA.hooks(family).values())
    chains = [{"chain": {"name": name}} for name in re.findall(r"^  chain (\w+)", text, re.MULTILINE)]
    return chains + [{"rule": {"chain": chain, "comment": comment}} for chain, comment in SCHEMA.rules(family)]


@pytest.mark.parametrize("family", ["bridge", "inet"])
def test_a_schema_stands_only_whole_and_unchanged(family: str) -> None:
    listed = _listed(family)
    assert schema_stands(SCHEMA, family, listed)
    for missing in range(len(listed)):
        assert not schema_stands(SCHEMA, family, listed[:missing] + listed[missing + 1 :])
    assert not schema_stands(SCHEMA, family, [*listed, {"rule": {"chain": "forward", "expr": "accept"}}])
    assert not schema_stands(SCHEMA, family, [*listed, {"chain": {"name": "schema_of_another_version"}}])
