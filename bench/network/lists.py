"""Frames of one flow at a port with twenty stateful access control rules, beside what keeps flows of bridged frames
elsewhere: br_netfilter, which hands them to the rules of IP and to connection tracking, with as many rules there.

The rule that lets the flow begin is the last of the twenty; then the flow is known and no rule is walked, by neither.
"""

from __future__ import annotations

import statistics
from dataclasses import replace

from bench.network.world import SWITCH, Ends, guard, new_world, port_of, run_in, within
from bench.report import Context, Row
from innkeeper.model.acl import AclLists, AclRule
from innkeeper.model.guards import GUARD_NAMES
from innkeeper.network.acl import policy_of
from innkeeper.network.links import write_sysctl
from innkeeper.network.policy import GuardPolicy

_RULES = 20
_LEAST = 1.2
_PORT = 4000
"""Of the flood's flow, at both ends."""


def _ports() -> list[int]:
    return [*range(5000, 5000 + _RULES - 1), _PORT]


def _listed() -> Ends:
    """A sender with twenty stateful rules and a last word, and a receiver; without guards, as the peer has none."""
    rules = [
        AclRule(direction="out", action="allow", weight=100 - at, protocol="udp", remote_ports=str(port), stateful=True)
        for at, port in enumerate(_ports())
    ]
    last = [AclRule(direction=direction, action="deny", weight=1) for direction in ("in", "out")]
    policy = policy_of([("", AclLists(rules=tuple(rules + last)))])
    free = GuardPolicy(**dict.fromkeys(GUARD_NAMES, False))
    return replace(port_of(0), acl=policy, guards=free), replace(port_of(1), guards=free)


def tracked(namespace: str) -> None:
    """The same twenty rules for IP, with connection tracking, for what comes over the bridge; no guard besides."""
    allowed = "\n".join(f"udp dport {port} ct state new accept" for port in _ports())
    rules = f"""table ip peer {{
      chain port {{
        ct state established,related accept
        {allowed}
        drop
      }}
      chain forward {{
        type filter hook forward priority 0; policy accept;
        iifname "{SWITCH.bridge}" goto port
      }}
    }}
    """
    within(namespace, lambda: write_sysctl("net/bridge/bridge-nf-call-iptables", "1"))
    run_in(namespace, "nft", "-f", "-", input_text=rules)


def stateful(context: Context) -> list[Row]:
    """The row of stateful lists."""
    turns, seconds = (5, 0.1) if context.quick else (15, 0.2)
    ends = _listed()
    with (
        new_world("acl-peer", ends, tracked) as peer,
        new_world("acl-inn", ends, guard(list(ends))) as ours,
    ):
        pairs = [(ours.rate(seconds), peer.rate(seconds)) for _ in range(turns + 1)][1:]
    ratio = statistics.median(mine / theirs for mine, theirs in pairs)
    mine, theirs = (statistics.median(each) for each in zip(*pairs, strict=True))
    name = f"frames of a flow, {_RULES} stateful rules on the port"
    return [Row(name, mine, "frames/s", "br_netfilter + conntrack", theirs, ratio, f">= {_LEAST:g} x", ratio >= _LEAST)]
