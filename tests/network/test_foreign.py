"""Whose rules beside the inn's drop its traffic, judged from listings as nft gives them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from switch_lab import new_namespace, run_in

from innkeeper.network.docker import CHAIN_PREFIX, chain_rules
from innkeeper.network.foreign import Finding, findings
from innkeeper.network.nft import refusal
from innkeeper.network.overlay import OverlayPolicy
from innkeeper.network.tenant import uplink_of

BRIDGE = "inbr-k3f91"


def _chain(name: str, hook: str | None = None, policy: str = "accept", table: str = "filter") -> dict[str, Any]:
    base = {"type": "filter", "hook": hook, "prio": 0, "policy": policy} if hook else {}
    return {"chain": {"family": "ip", "table": table, "name": name, **base}}


def _rule(chain: str, *expr: dict[str, Any], table: str = "filter") -> dict[str, Any]:
    return {"rule": {"family": "ip", "table": table, "chain": chain, "expr": list(expr)}}


def _device(key: str, right: Any, op: str = "==") -> dict[str, Any]:
    return {"match": {"op": op, "left": {"meta": {"key": key}}, "right": right}}


ACCEPT, DROP, RETURN = {"accept": None}, {"drop": None}, {"return": None}
ESTABLISHED = {"match": {"op": "in", "left": {"ct": {"key": "state"}}, "right": ["established", "related"]}}
DOCKER = [
    _chain("FORWARD", "forward", "drop"),
    _chain("DOCKER-USER"),
    _chain("DOCKER"),
    _rule("FORWARD", {"jump": {"target": "DOCKER-USER"}}),
    _rule("FORWARD", _device("oifname", "docker0"), {"xt": None}, ACCEPT),
    _rule("FORWARD", _device("oifname", "docker0"), {"jump": {"target": "DOCKER"}}),
    _rule("FORWARD", _device("iifname", "docker0"), ACCEPT),
    _rule("DOCKER-USER", {"counter": {"packets": 0, "bytes": 0}}, RETURN),
]


def _judge(ruleset: list[dict[str, Any]], *, nat: bool = True, bridged: bool = False) -> list[Finding]:
    return findings(ruleset, [BRIDGE], nat=nat, bridge_netfilter=bridged)


CONSENT = [
    _chain(CHAIN_PREFIX + "k3f9"),
    _rule("DOCKER-USER", {"xt": {"type": "match", "name": "comment"}}, {"jump": {"target": CHAIN_PREFIX + "k3f9"}}),
]


def _consented(rule: str) -> dict[str, Any]:
    """A rule of the inn's chain, as nft lists what iptables made of it."""
    _, chain, *words = rule.split()
    said = dict(zip(words[::2], words[1::2], strict=True)) if "-m" not in words else {"-o": words[1], "-j": words[-1]}
    devices = [
        _device(key, said[option].replace("+", "*"))
        for option, key in (("-i", "iifname"), ("-o", "oifname"))
        if option in said
    ]
    state = [{"xt": {"type": "match", "name": "conntrack"}}] if "-m" in words else []
    return _rule(chain, *devices, *state, {said["-j"].lower(): None})


def test_with_consent_docker_drops_nothing_of_bridges_nor_of_tenants_uplinks() -> None:
    uplink = uplink_of(BRIDGE, OverlayPolicy(5001, "192.0.2.1", domain=1)).device
    rules = [_consented(rule) for rule in chain_rules("k3f9")[1:]]
    for way in (BRIDGE, uplink):
        assert findings(DOCKER, [way], nat=True, bridge_netfilter=False)
        ruleset = [*DOCKER[:-1], *CONSENT, DOCKER[-1], *rules]
        assert findings(ruleset, [way], nat=True, bridge_netfilter=True) == []


def test_an_empty_host_drops_nothing() -> None:
    assert _judge([]) == []
    assert _judge([_chain("FORWARD", "forward"), _chain("INPUT", "input")], bridged=True) == []


def test_dockers_forward_policy_is_named() -> None:
    found = _judge(DOCKER)
    assert {(one.owner, one.chain, one.certain) for one in found} == {("Docker", "FORWARD", True)}
    assert [one.what for one in found] == [
        f"traffic of guests on {BRIDGE} to the outside",
        f"answers from the outside to guests on {BRIDGE}",
    ]
    assert "inn host set --allow-docker" in found[0].remedy


def test_where_bridged_frames_pass_ip_hooks_even_neighbours_are_cut_off() -> None:
    assert any("between guests" in one.what for one in _judge(DOCKER, nat=False, bridged=True))
    assert _judge(DOCKER, nat=False, bridged=False) == []


def test_on_a_private_or_external_switch_only_what_passes_within_it_can_be_dropped() -> None:
    assert findings(DOCKER, [], guests_only=[BRIDGE], nat=True, bridge_netfilter=False) == []
    found = findings(DOCKER, [], guests_only=[BRIDGE], nat=True, bridge_netfilter=True)
    assert [one.what for one in found] == [f"traffic between guests on {BRIDGE}"]


def test_an_accept_in_docker_user_helps() -> None:
    helped = [
        *DOCKER[:-1],
        _rule("DOCKER-USER", _device("iifname", "inbr-*"), ACCEPT),
        _rule("DOCKER-USER", _device("oifname", "inbr-*"), ACCEPT),
        DOCKER[-1],
    ]
    assert _judge(helped, bridged=True) == []


def test_answers_are_known_to_be_answers() -> None:
    ruleset = [_chain("FORWARD", "forward", "drop"), _rule("FORWARD", ESTABLISHED, ACCEPT)]
    assert [one.what for one in _judge(ruleset)] == [f"traffic of guests on {BRIDGE} to the outside"]


def test_a_rule_that_may_accept_makes_it_uncertain() -> None:
    port = {"match": {"op": "==", "left": {"payload": {"protocol": "udp", "field": "dport"}}, "right": 67}}
    ruleset = [_chain("INPUT", "input", "drop", "mine"), _rule("INPUT", port, ACCEPT, table="mine")]
    (found,) = _judge(ruleset)
    assert not found.certain
    assert found.detail == f"other rules: ip mine INPUT may drop DHCP and DNS requests on {BRIDGE} (its policy)"


def test_a_last_rule_that_drops_everything_is_seen() -> None:
    reject = {"reject": {"type": "icmp", "expr": "host-prohibited"}}
    ruleset = [_chain("INPUT", "input"), _rule("INPUT", _device("iifname", "lo"), ACCEPT), _rule("INPUT", reject)]
    ruleset[-1]["rule"]["handle"] = 7
    assert [(one.certain, one.rule) for one in _judge(ruleset)] == [(True, "rule 7 of chain INPUT")]


def test_a_named_set_of_devices_is_followed() -> None:
    ruleset = [
        _chain("FORWARD", "forward", "drop"),
        {"set": {"family": "ip", "table": "filter", "name": "lans", "elem": [BRIDGE]}},
        _rule("FORWARD", _device("iifname", "@lans"), ACCEPT),
        _rule("FORWARD", _device("oifname", "@lans"), ACCEPT),
    ]
    assert _judge(ruleset) == []


def test_an_inns_own_tables_are_not_foreign() -> None:
    assert _judge([_chain("forward", "forward", "drop", "inn_zzzz")]) == []


def test_a_loop_of_jumps_ends() -> None:
    ruleset = [
        _chain("FORWARD", "forward"),
        _chain("a"),
        _rule("FORWARD", {"jump": {"target": "a"}}),
        _rule("a", {"jump": {"target": "a"}}),
    ]
    assert _judge(ruleset) == []


@pytest.mark.root
def test_what_nft_really_lists_is_understood() -> None:
    rules = """
        table ip filter {
          chain DOCKER-USER { return; }
          chain FORWARD {
            type filter hook forward priority 0; policy drop;
            jump DOCKER-USER
            iifname "docker0" accept
            ct state established,related accept
          }
          chain INPUT {
            type filter hook input priority 0; policy accept;
            iifname { "lo", "eth0" } accept
            reject with icmp type host-prohibited
          }
        }
    """
    with new_namespace("foreign") as namespace:
        run_in(namespace, "nft", rules)
        listed = json.loads(run_in(namespace, "nft", "-j", "list", "ruleset"))["nftables"]
    assert {(one.chain, one.what, one.certain, one.owner) for one in _judge(listed)} == {
        ("FORWARD", f"traffic of guests on {BRIDGE} to the outside", True, "Docker"),
        ("INPUT", f"DHCP and DNS requests on {BRIDGE}", True, "other rules"),
    }


# --- errors of nft ---------------------------------------------------------------------------------------------------


def test_a_refusal_names_the_line() -> None:
    text = "add table x\nadd rule bridge x y drop\n"
    problem = refusal(text, "/proc/self/fd/9:2:10-11: Error: No such file or directory\nadd rule bridge x y drop\n")
    assert problem.code == "nft.refused"
    assert problem.detail == "nftables refused the change: No such file or directory"
    assert problem.cause == "add rule bridge x y drop"


def test_a_refusal_without_a_line_is_told_whole() -> None:
    assert refusal("x", "netlink: Error: cache initialization failed: Operation not permitted").cause is not None
