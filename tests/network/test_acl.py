"""Access control lists: which line decides, what is compiled of them, and what becomes of real frames."""

from __future__ import annotations

import re
import struct
from dataclasses import replace
from typing import Any

import flows
import frames as f
import pytest
from switch_lab import Guest, Lab, run_in
from switch_world import GATEWAY, port_of

from innkeeper.model.acl import AclEntry, AclLists, AclRule
from innkeeper.network.acl import AclPolicy, meters_of, policy_of
from innkeeper.network.acl_decision import Decision, Packet, decide
from innkeeper.network.acl_rules import BODY, acl_elements, body, body_of, members
from innkeeper.network.policy import GuardPolicy
from innkeeper.network.ruleset import Element
from innkeeper.network.traffic import Direction, Meter
from innkeeper.network.transaction import Schema, Uses, change, listing

SCHEMA = Schema("k3f9")
TCP, UDP = 6, 17


def entry(action: str, direction: str, **address: str) -> AclEntry:
    return AclEntry.model_validate({"action": action, "direction": direction, **address})


def rule(weight: int, action: str, direction: str, **members_: Any) -> AclRule:
    return AclRule.model_validate({"weight": weight, "action": action, "direction": direction, **members_})


def acl(*lines: AclEntry | AclRule) -> AclLists:
    return AclLists(
        entries=[line for line in lines if isinstance(line, AclEntry)],
        rules=[line for line in lines if isinstance(line, AclRule)],
    )


def of(*lines: AclEntry | AclRule) -> AclPolicy:
    return policy_of([("", acl(*lines))])


def tcp(source: str, target: str, source_port: int = 40_000, target_port: int = 443) -> Packet:
    return Packet(source, target, TCP, source_port, target_port)


def verdict(policy: AclPolicy, direction: Direction, packet: Packet) -> bool:
    return decide(policy, direction, packet).allowed


VM, PEER, OTHER = "10.66.0.11", "10.66.0.12", "192.0.2.1"


# --- which line decides ----------------------------------------------------------------------------------------------


def test_what_no_line_matches_passes() -> None:
    assert decide(AclPolicy(), "in", tcp(PEER, VM)) == Decision(True, "none", "no line matches, so it passes")
    assert verdict(of(entry("deny", "in", remote="192.0.2.0/24")), "in", tcp(PEER, VM))
    assert verdict(of(entry("deny", "out", remote="any")), "in", tcp(PEER, VM))


def test_the_longest_prefix_of_the_direction_decides() -> None:
    policy = of(
        entry("deny", "in", remote="any"),
        entry("allow", "in", remote="10.0.0.0/8"),
        entry("deny", "in", remote="10.66.0.12"),
    )
    assert verdict(policy, "in", tcp("10.66.0.13", VM))
    decided = decide(policy, "in", tcp(PEER, VM))
    assert (decided.allowed, decided.stage, decided.line) == (False, "port acl", "deny in remote 10.66.0.12/32")
    assert not verdict(policy, "in", tcp(OTHER, VM))
    assert not verdict(policy, "in", Packet("2001:db8::1", "2001:db8::2", UDP, 5, 6))


def test_local_is_the_vms_side_and_a_mac_is_longer_than_any_prefix() -> None:
    policy = of(entry("deny", "out", local="10.66.0.11"), entry("allow", "out", remote="52:54:00:00:00:02"))
    there = replace(tcp(VM, PEER), source_mac="52:54:00:00:00:01", target_mac="52:54:00:00:00:02")
    assert verdict(policy, "out", there)
    assert not verdict(policy, "out", replace(there, target_mac="52:54:00:00:00:03"))
    assert verdict(of(entry("deny", "in", local="10.66.0.11")), "in", tcp(VM, PEER))


def test_of_equals_the_ports_own_line_decides_and_then_denial() -> None:
    deny, allow = acl(entry("deny", "in", remote="10.66.0.12")), acl(entry("allow", "in", remote="10.66.0.12"))
    assert verdict(policy_of([("", allow), ("strict", deny)]), "in", tcp(PEER, VM))
    decided = decide(policy_of([("", deny), ("easy", allow)]), "in", tcp(PEER, VM))
    assert not decided.allowed
    ties = of(entry("allow", "in", local="10.66.0.11"), entry("deny", "in", remote="10.66.0.12"))
    assert not verdict(ties, "in", tcp(PEER, VM))
    same = [("", acl(rule(5, "allow", "in"))), ("strict", acl(rule(5, "deny", "in")))]
    assert verdict(policy_of(same), "in", tcp(PEER, VM)) and not verdict(policy_of(same[::-1]), "in", tcp(PEER, VM))


def test_the_largest_weight_that_matches_decides() -> None:
    policy = of(
        rule(1, "deny", "in"),
        rule(10, "allow", "in", protocol="tcp", local_ports="400-500"),
        rule(20, "deny", "in", remote="10.66.0.13", protocol="tcp", local_ports="443"),
    )
    assert verdict(policy, "in", tcp(PEER, VM))
    assert not verdict(policy, "in", tcp("10.66.0.13", VM))
    assert verdict(policy, "in", tcp("10.66.0.13", VM, target_port=444))
    assert not verdict(policy, "in", tcp(PEER, VM, target_port=501))
    assert not verdict(policy, "in", Packet(PEER, VM, UDP, 40_000, 443))
    later = Packet(PEER, VM, TCP, fragment=True)
    assert decide(policy, "in", later).line == "weight 1: deny in any"


def test_what_a_rule_that_logs_decides_is_logged() -> None:
    policy = of(rule(9, "allow", "in", remote=PEER, log=True, stateful=True), rule(1, "deny", "in", log=True))
    first = decide(policy, "in", tcp(PEER, VM))
    assert first.allowed and first.logged
    later = decide(policy, "in", tcp(PEER, VM), first.flows)
    assert later.allowed and not later.logged, "it is of a flow"
    assert decide(policy, "in", tcp(OTHER, VM)).logged
    assert not decide(policy, "out", tcp(VM, OTHER)).logged


def test_both_lists_must_let_a_packet_pass() -> None:
    policy = of(entry("allow", "in", remote="any"), rule(1, "deny", "in", protocol="tcp"))
    assert not verdict(policy, "in", tcp(PEER, VM)) and verdict(policy, "in", Packet(PEER, VM, UDP, 1, 2))
    policy = of(entry("deny", "in", remote="any"), rule(1, "allow", "in", protocol="tcp"))
    assert not verdict(policy, "in", tcp(PEER, VM))


def test_a_flow_passes_both_ways_until_it_is_idle_or_reset() -> None:
    policy = of(rule(10, "allow", "out", stateful=True, idle_timeout_s=60), rule(1, "deny", "in"))
    there, back = tcp(VM, PEER), tcp(PEER, VM, 443, 40_000)
    assert not verdict(policy, "in", back)
    flows = decide(policy, "out", there, now_s=100).flows
    answer = decide(policy, "in", back, flows, now_s=159)
    assert (answer.allowed, answer.stage) == (True, "flow")
    assert decide(policy, "in", back, answer.flows, now_s=218).allowed
    assert not decide(policy, "in", back, answer.flows, now_s=219).allowed
    assert not decide(policy, "in", replace(back, source_port=444), flows, now_s=101).allowed
    reset = decide(policy, "in", replace(back, reset=True), flows, now_s=101)
    assert reset.allowed and not decide(policy, "in", back, reset.flows, now_s=102).allowed
    assert decide(policy, "out", replace(there, reset=True)).flows == {}


def test_of_echo_only_replies_come_back() -> None:
    policy = of(rule(10, "allow", "out", protocol="icmp", stateful=True), rule(1, "deny", "in"))
    flows = decide(policy, "out", Packet(VM, PEER, 1, icmp_type=8, echo_id=7)).flows
    assert decide(policy, "in", Packet(PEER, VM, 1, icmp_type=0, echo_id=7), flows).allowed
    assert not decide(policy, "in", Packet(PEER, VM, 1, icmp_type=8, echo_id=7), flows).allowed
    assert not decide(policy, "in", Packet(PEER, VM, 1, icmp_type=0, echo_id=8), flows).allowed


def test_discovery_and_dhcp_are_exempt() -> None:
    for policy in (of(rule(1, "deny", "out"), rule(1, "deny", "in")), of(entry("deny", "out", local="any"))):
        solicitation = Packet("fe80::1", "ff02::1:ff00:2", 58, icmp_type=135, hop_limit=255)
        assert decide(policy, "out", solicitation).stage == "exempt"
        assert not verdict(policy, "out", replace(solicitation, hop_limit=254))
        assert verdict(policy, "out", Packet("0.0.0.0", "255.255.255.255", UDP, 68, 67))
        assert not verdict(policy, "out", Packet(VM, OTHER, UDP, 68, 67))
    assert verdict(of(rule(1, "deny", "in")), "in", Packet(GATEWAY, VM, UDP, 67, 68))
    assert not verdict(of(entry("deny", "out", remote="any")), "out", tcp(VM, PEER))


def test_meters_of_lists() -> None:
    lists = acl(entry("meter", "in", remote="any"), entry("meter", "out", remote="10.0.0.0/8"))
    assert meters_of([("", lists)]) == (Meter("in", "0.0.0.0/0"), Meter("in", "::/0"), Meter("out", "10.0.0.0/8"))
    assert not policy_of([("", lists)])


# --- compiling -------------------------------------------------------------------------------------------------------

STATEFUL = of(
    entry("deny", "in", remote="192.0.2.0/24"),
    rule(100, "allow", "out", stateful=True),
    rule(10, "allow", "in", protocol="tcp", local_ports="22", stateful=True, idle_timeout_s=60),
    rule(1, "deny", "in"),
)
ECHOES = of(
    rule(5, "allow", "out", protocol="icmp", stateful=True),
    rule(6, "allow", "out", protocol="icmpv6", stateful=True),
    rule(1, "deny", "in"),
)


def test_a_port_without_lists_has_no_elements_and_one_with_lists_a_handful() -> None:
    assert acl_elements(port_of(1)) == frozenset()
    one, two = (acl_elements(replace(port_of(number), acl=STATEFUL)) for number in (1, 2))
    assert len(one) == 9 and {each.container for each in one & two} == {BODY}
    assert {body_of(each) for each in one if each.container in ("acl_in", "acl_out")} == {STATEFUL.digest}
    only_in = acl_elements(replace(port_of(1), acl=of(entry("deny", "in", remote="any"))))
    assert {each.container for each in only_in} == {BODY, "acl_in", "acl_denied_in"}


def test_no_concatenation_is_longer_than_nft_can_do() -> None:
    text = body(STATEFUL).value[0]
    keys = re.findall(r"(?:\{|typeof) (\w+ \. [^};]+)", text)
    assert keys and max(key.count(" . ") for key in keys) == 4


def test_every_match_of_icmp_holds_behind_a_tag() -> None:
    text = SCHEMA.text("bridge").replace("\\\n", "") + body(ECHOES).value[0]
    chains = re.findall(r"chain (acl_\w+) \{(.*?)\n  \}", text, re.DOTALL)
    matches = [line for _, rules in chains for line in rules.splitlines() if re.search(r"icmp(v6)? (type|id)", line)]
    assert len(matches) >= 10
    for line in matches:
        assert re.match(r"\s*meta protocol (ip icmp|ip6 icmpv6) ", line), line


def test_a_body_is_made_with_its_first_use_and_goes_with_its_last() -> None:
    one, two = (acl_elements(replace(port_of(number), acl=STATEFUL)) for number in (1, 2))
    uses, none = Uses(()), frozenset[Element]()
    made, kept = body(STATEFUL), []
    for gone, come in ((none, one), (none, two), (one, none), (two, none)):
        settled = uses.settle(gone, come)
        kept.append((made in settled[0], made in settled[1]))
        uses.follow(*settled)
    assert kept == [(False, True), (False, False), (False, False), (True, False)]
    assert Uses(one | two).settle(one, none)[0] == one - {made}
    both = Uses(one).settle(one, acl_elements(replace(port_of(1), acl=of(entry("deny", "in", remote="any")))))
    assert made in both[0] and any(each.container == BODY for each in both[1])


def test_chains_stand_before_elements_lead_to_them_and_go_after() -> None:
    one = acl_elements(replace(port_of(1), acl=STATEFUL))
    made, gone = change(SCHEMA, frozenset(), one), change(SCHEMA, one, frozenset())
    name = members([body(STATEFUL)], "chain")[-1]
    assert made.index(f"chain {name} {{") < made.index("add element bridge inn_k3f9 acl_in")
    assert gone.index("delete element bridge inn_k3f9 acl_in") < gone.index(f"flush chain bridge inn_k3f9 {name}")
    assert gone.index("flush chain") < gone.index("delete chain") < gone.index("delete set")
    assert all(f"delete set bridge inn_k3f9 {each}\n" in gone for each in members([body(STATEFUL)], "set"))


def test_the_listing_shows_rules() -> None:
    shown = listing(acl_elements(replace(port_of(1), acl=of(entry("deny", "in", remote="192.0.2.0/24")))))
    assert any("ip saddr 192.0.2.0/24 oifname @acl_denied_in" in line for line in shown)


def test_a_rule_that_logs_names_itself_and_only_its_chain_logs() -> None:
    policy = policy_of([("web", acl(rule(9, "allow", "in", log=True), rule(1, "deny", "in")))])
    port = replace(port_of(1), acl=policy)
    made = change(SCHEMA, frozenset(), acl_elements(port))
    (line,) = [line for line in made.splitlines() if " group " in line]
    assert f'log prefix "acl in/9 allow web" group {SCHEMA.log_group} snaplen' in line
    assert {"acl_log_in", "acl_logged_in"} <= {element.container for element in acl_elements(port)}
    without = change(replace(SCHEMA, logs=False), frozenset(), acl_elements(port))
    assert "prefix" not in without
    assert re.findall(r'comment ".*"', without) == re.findall(r'comment ".*"', made), "it is known as the same"
    assert len({Schema(name).log_group for name in ("a", "b", "c")}) == 3


# --- real frames -----------------------------------------------------------------------------------------------------


def datagram(lab: Lab, sender: Guest, receiver: Guest, ports: tuple[int, int], word: bytes) -> bytes:
    body_ = f.udp(sender.ip, receiver.ip, *ports, word)
    return f.ethernet(receiver.mac, sender.mac, 0x0800, f.ipv4(sender.ip, receiver.ip, UDP, body_))


def passes(lab: Lab, sender: Guest, receiver: Guest, ports: tuple[int, int] = (5000, 6000)) -> bool:
    """Whether a datagram arrives; an ARP request, which no ACL stops, comes after it."""
    word = b"word %d" % lab._marks
    lab._marks += 1
    request = f.arp(sender.mac, 1, sender.mac, sender.ip, "00:00:00:00:00:00", receiver.ip)
    receiver.drain()
    sender.send(datagram(lab, sender, receiver, ports, word), request)
    return any(word in frame for frame in receiver.wait_for(request[:42]))


@pytest.mark.root
def test_flows_and_denials_of_a_port(lab: Lab) -> None:
    one, two, three = (lab.plug(port_of(number)) for number in (1, 2, 3))
    assert passes(lab, two, one)
    lab.set_port(one, replace(one.port, acl=STATEFUL))
    assert lab.do(lab.runner.repair()).done == [], "the kernel lists them as they were given"
    assert not passes(lab, two, one, (6000, 5000))
    assert passes(lab, one, two) and passes(lab, two, one, (6000, 5000))
    assert not passes(lab, three, one, (6000, 5000)) and not passes(lab, two, one, (6000, 5001))
    assert lab.do(lab.runner.repair()).done == [], "flows are not drift"
    assert lab.dropped(one)["acl"] >= 3
    # another port with the same lists has flows of its own
    lab.set_port(three, replace(three.port, acl=STATEFUL))
    assert not passes(lab, two, three, (6000, 5000)) and passes(lab, two, one, (6000, 5000))
    lab.unplug(three)
    assert passes(lab, two, one, (6000, 5000))
    lab.set_port(one, replace(one.port, acl=AclPolicy()))
    assert passes(lab, two, one, (6000, 5001))
    assert STATEFUL.digest not in run_in(lab.namespace, "nft", "list", "table", "bridge", "inn_t3st")


@pytest.mark.root
def test_flows_last_while_they_are_used_and_end_with_a_reset(lab: Lab) -> None:
    one, two = lab.plug(replace(port_of(1), acl=flows.POLICY)), lab.plug(port_of(2))
    flows.check_that_flows_last_while_they_are_used(lab, one, two)
    flows.check_that_a_reset_ends_its_flow(lab, one, two)


@pytest.mark.root
def test_many_ports_change_in_one_transaction_or_not_at_all(lab: Lab) -> None:
    one, two, three = (lab.plug(port_of(number)) for number in (1, 2, 3))
    closed = of(rule(1, "deny", "in"))
    lab.do(lab.runner.update_rules([replace(guest.port, acl=closed) for guest in (one, two)]))
    assert not passes(lab, three, one) and not passes(lab, three, two)
    lab.do(lab.runner.update_rules([one.port, two.port, replace(port_of(9), acl=closed)]))
    assert passes(lab, three, one) and passes(lab, three, two)
    assert lab.do(lab.runner.repair()).done == []


@pytest.mark.root
def test_what_somebody_does_to_the_chains_is_put_right(lab: Lab) -> None:
    one, two = (lab.plug(replace(port_of(number), acl=STATEFUL)) for number in (1, 2))
    chain = f"acl_in_{STATEFUL.digest}"
    for command in ("flush chain bridge inn_t3st", "add rule bridge inn_t3st"):
        run_in(lab.namespace, "nft", f"{command} {chain}" + (" accept" if "add" in command else ""))
        assert lab.do(lab.runner.repair()).done == ["load the rules of inn_t3st"]
        assert not passes(lab, two, one)
    run_in(lab.namespace, "nft", f"delete element bridge inn_t3st acl_in {{ {one.port.tap} }}")
    lab.set_port(one, replace(one.port, acl=AclPolicy()))
    assert lab.do(lab.runner.repair()).done == []
    assert not passes(lab, one, two)


@pytest.mark.root
def test_new_flows_of_a_port_are_bounded(lab: Lab) -> None:
    one, two = lab.plug(replace(port_of(1), acl=STATEFUL)), lab.plug(port_of(2))
    for port in range(10_000, 17_000):
        one.send(datagram(lab, one, two, (port, 9), b"many"))
    assert lab.dropped(one)["flows"] > 0


@pytest.mark.root
def test_flows_of_echo_and_discovery_pass_behind_a_tag(lab: Lab) -> None:
    unguarded = GuardPolicy(False, False, False, False, False, False, False, False)
    one, two = (lab.plug(replace(port_of(number), guards=unguarded)) for number in (1, 2))
    lab.set_port(one, replace(one.port, acl=ECHOES))

    def arrives(sender: Guest, receiver: Guest, kind: int, payload: bytes, word: bytes) -> bool:
        frame = f.ethernet(receiver.mac, sender.mac, kind, payload)
        end = f.arp(sender.mac, 1, sender.mac, sender.ip, "00:00:00:00:00:00", receiver.ip)
        receiver.drain()
        sender.send(frame[:12] + b"\x81\x00\x00\x0a" + frame[12:], end)
        return any(word in each for each in receiver.wait_for(end[:42]))

    def echo(sender: Guest, receiver: Guest, kind: int, identifier: int) -> bool:
        word = b"echo %d of %d;" % (kind, identifier)
        if kind in (128, 129):
            addresses = (sender.link_local, receiver.link_local)
            said = f.icmpv6(*addresses, kind, 0, struct.pack("!HH", identifier, 1) + word)
            return arrives(sender, receiver, 0x86DD, f.ipv6(*addresses, 58, said), word)
        packet = f.ipv4(sender.ip, receiver.ip, 1, f.icmp(kind, 0, struct.pack("!HH", identifier, 1) + word))
        return arrives(sender, receiver, 0x0800, packet, word)

    for request, reply in ((8, 0), (128, 129)):
        assert not echo(two, one, reply, 7), "nobody asked"
        assert echo(one, two, request, 7) and echo(two, one, reply, 7)
        assert not echo(two, one, reply, 8) and not echo(two, one, request, 7)
    target = f.ip(one.link_local)
    solicits = f.icmpv6(two.link_local, one.link_local, 135, 0, bytes(4) + target)
    packet = f.ipv6(two.link_local, one.link_local, 58, solicits, hop_limit=255)
    assert arrives(two, one, 0x86DD, packet, solicits), "discovery is exempt"
    assert lab.do(lab.runner.repair()).done == []
