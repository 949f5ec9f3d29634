"""Do others' rules drop the switches' traffic? Reads a ruleset as ``nft -j list ruleset`` gives it. Pure.

Every base chain of a hook must let a frame pass, so an accept of the inn's does not help against a drop of somebody
else's. Rules are followed for a packet of which only the devices are known, and whether its connection is new: a match
on anything else may or may not hold.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from fnmatch import fnmatchcase
from typing import Any

from innkeeper.network.docker import CHAIN_PREFIX
from innkeeper.network.nft import Object

_FAMILIES = ("ip", "ip6", "inet")
_DEPTH = 16
_OUTSIDE = "\0outside"


@dataclass(frozen=True, slots=True)
class Packet:
    """A packet of which the devices are known; ``None`` for a device means that the hook has none."""

    what: str
    hook: str
    in_device: str | None
    out_device: str | None
    state: str = "new"


@dataclass(frozen=True, slots=True)
class Finding:
    """A foreign base chain that drops (or, not ``certain``, may drop) what ``what`` says."""

    family: str
    table: str
    chain: str
    what: str
    certain: bool
    owner: str
    rule: str
    """Which rule drops it: its chain and handle, or that it is the chain's policy."""

    @property
    def detail(self) -> str:
        verb = "drops" if self.certain else "may drop"
        return f"{self.owner}: {self.family} {self.table} {self.chain} {verb} {self.what} ({self.rule})"

    @property
    def remedy(self) -> str:
        if self.owner == "Docker":
            return "consent to one rule of the inn's in DOCKER-USER: inn host set --allow-docker"
        if self.owner == "firewalld":
            return "put the bridge into a zone that accepts: firewall-cmd --zone=trusted --change-interface=BRIDGE"
        if self.owner == "ufw":
            return "let it pass: ufw allow in on BRIDGE; ufw route allow in on BRIDGE; ufw route allow out on BRIDGE"
        return f"accept devices inbr-* in {self.family} {self.table} {self.chain}"


class _Verdict(Enum):
    ACCEPT = "accept"
    DROP = "drop"
    MAYBE = "maybe"
    ON = "on"
    """No verdict: the next rule decides."""


def findings(
    ruleset: Sequence[Object],
    bridges: Iterable[str],
    *,
    nat: bool,
    bridge_netfilter: bool,
    guests_only: Iterable[str] = (),
    own: str = "inn_",
) -> list[Finding]:
    """What foreign chains do to traffic of ``bridges``.

    ``guests_only``: bridges where the host serves nothing and routes nothing (private and external switches): only what
    passes within them can be dropped. ``nat``: guests go out through the host. ``bridge_netfilter``: frames within a
    bridge pass the IP hooks too (``net.bridge.bridge-nf-call-iptables`` is 1). Tables whose names begin with ``own``
    are the inns' own.
    """
    chains, rules, sets = _index(ruleset)
    found, bridges = [], list(bridges)
    for bridge in bridges:
        packets = [Packet(f"DHCP and DNS requests on {bridge}", "input", bridge, None)]
        if nat:
            packets += [
                Packet(f"traffic of guests on {bridge} to the outside", "forward", bridge, _OUTSIDE),
                Packet(f"answers from the outside to guests on {bridge}", "forward", _OUTSIDE, bridge, "established"),
            ]
        found += _against(packets, chains, rules, sets, own)
    if bridge_netfilter:
        within = [Packet(f"traffic between guests on {one}", "forward", one, one) for one in (*bridges, *guests_only)]
        found += _against(within, chains, rules, sets, own)
    return found


def _against(
    packets: Sequence[Packet],
    chains: Sequence[Object],
    rules: Mapping[tuple[str, str, str], list[Object]],
    sets: Mapping[Any, list[Any]],
    own: str,
) -> list[Finding]:
    found = []
    for chain in chains:
        if chain["family"] not in _FAMILIES or chain["table"].startswith(own) or chain.get("type") != "filter":
            continue
        for packet in packets:
            if chain.get("hook") == packet.hook:
                finding = _judge(chain, packet, rules, sets)
                found += [finding] if finding else []
    return found


def _judge(
    chain: Object, packet: Packet, rules: Mapping[tuple[str, str, str], list[Object]], sets: Mapping[Any, list[Any]]
) -> Finding | None:
    dropping: list[str] = []
    verdict = _walk(chain, chain["name"], packet, rules, sets, 0, dropping)
    if verdict is _Verdict.ON:
        verdict = _Verdict.DROP if chain.get("policy") == "drop" else _Verdict.ACCEPT
    if verdict is _Verdict.ACCEPT or (verdict is _Verdict.MAYBE and chain.get("policy") != "drop"):
        return None
    certain = verdict is _Verdict.DROP
    rule = dropping[0] if dropping else "its policy"
    return Finding(chain["family"], chain["table"], chain["name"], packet.what, certain, _owner(chain, rules), rule)


def _walk(
    chain: Object,
    name: str,
    packet: Packet,
    rules: Mapping[tuple[str, str, str], list[Object]],
    sets: Mapping[Any, list[Any]],
    depth: int,
    dropping: list[str],
) -> _Verdict:
    """How the chain ends for the packet; MAYBE once an undecidable rule could have accepted.

    Rules that drop it for sure are added to ``dropping``.
    """
    maybe = False
    place = (chain["family"], chain["table"])
    for rule in rules.get((*place, name), ()) if depth < _DEPTH else ():
        holds = _holds(rule, packet, place, sets)
        if holds is False:
            continue
        verdict = _Verdict.ON
        for statement in rule["expr"]:
            if target := statement.get("jump") or statement.get("goto"):
                verdict = _walk(chain, target["target"], packet, rules, sets, depth + 1, dropping)
                if verdict is _Verdict.ON and "goto" in statement and holds:
                    return _Verdict.MAYBE if maybe else _Verdict.ON
            elif "accept" in statement:
                verdict = _Verdict.ACCEPT
            elif "drop" in statement or "reject" in statement:
                verdict = _Verdict.DROP
                dropping += [f"rule {rule.get('handle', '?')} of chain {name}"] if holds else []
            elif "return" in statement and holds:
                return _Verdict.MAYBE if maybe else _Verdict.ON
        if verdict is _Verdict.MAYBE or (verdict is _Verdict.ACCEPT and holds is None):
            maybe = True
        elif verdict in (_Verdict.ACCEPT, _Verdict.DROP) and holds:
            return _Verdict.MAYBE if maybe and verdict is _Verdict.DROP else verdict
    return _Verdict.MAYBE if maybe else _Verdict.ON


def _holds(rule: Object, packet: Packet, place: tuple[str, str], sets: Mapping[Any, list[Any]]) -> bool | None:
    """Whether the rule's matches hold for the packet; None when that depends on what is not known."""
    certain = True
    for statement in rule["expr"]:
        if "vmap" in statement or ("xt" in statement and not _says_nothing(statement["xt"], rule)):
            certain = False
        if "match" not in statement:
            continue
        match = statement["match"]
        left = match["left"] if isinstance(match["left"], dict) else {}
        names = _names(match["right"], place, sets)
        known = {"iifname": packet.in_device, "oifname": packet.out_device}
        key = left.get("meta", {}).get("key")
        if key in known:
            device = known[key]
            same = device is not None and any(fnmatchcase(device, name) for name in names)
        elif left.get("ct", {}).get("key") == "state":
            same = packet.state in names
        else:
            certain = False
            continue
        if same == (match["op"] == "!="):
            return False
    return True if certain else None


def _says_nothing(extension: Any, rule: Object) -> bool:
    """Whether an iptables extension is a comment, or that of an inn's chain, which matches just what is to pass."""
    comment = isinstance(extension, dict) and extension.get("name") == "comment"
    return comment or str(rule["chain"]).startswith(CHAIN_PREFIX)


def _names(right: Any, place: tuple[str, str], sets: Mapping[Any, list[Any]]) -> list[str]:
    if isinstance(right, str):
        return [str(name) for name in sets.get((*place, right[1:]), [])] if right.startswith("@") else [right]
    if isinstance(right, dict):
        return [str(name) for name in right.get("set", [])]
    return [str(name) for name in right] if isinstance(right, list) else []


def _index(ruleset: Sequence[Object]) -> tuple[list[Object], dict[tuple[str, str, str], list[Object]], dict[Any, Any]]:
    chains: list[Object] = []
    rules: dict[tuple[str, str, str], list[Object]] = {}
    sets: dict[Any, Any] = {}
    for item in ruleset:
        if "chain" in item:
            chains.append(item["chain"])
        elif "rule" in item:
            rule = item["rule"]
            rules.setdefault((rule["family"], rule["table"], rule["chain"]), []).append(rule)
        elif "set" in item:
            held = item["set"]
            sets[held["family"], held["table"], held["name"]] = held.get("elem", [])
    return chains, rules, sets


def _owner(chain: Object, rules: Mapping[tuple[str, str, str], list[Object]]) -> str:
    targets = {
        statement["jump"]["target"]
        for rule in rules.get((chain["family"], chain["table"], chain["name"]), ())
        for statement in rule["expr"]
        if "jump" in statement
    }
    for owner, mark in (("Docker", "DOCKER"), ("ufw", "ufw"), ("libvirt", "LIBVIRT"), ("CNI", "CNI")):
        if any(str(target).startswith(mark) for target in targets):
            return owner
    return "firewalld" if chain["table"] == "firewalld" else "other rules"
