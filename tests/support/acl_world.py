"""Random access control lists, random packets, and a port that they meet at."""

from __future__ import annotations

import ipaddress
import struct
from dataclasses import asdict, replace

import frames as f
from hypothesis import strategies as st
from switch_lab import Guest, Lab, run_in
from switch_world import port_of

from innkeeper.model.acl import AclEntry, AclLists, AclRule
from innkeeper.network.acl import policy_of
from innkeeper.network.acl_decision import Packet
from innkeeper.network.policy import GuardPolicy, PortPolicy
from innkeeper.network.traffic import Direction

UNGUARDED = GuardPolicy(**{name: False for name, on in asdict(GuardPolicy()).items() if on is True})
ONE, TWO = (replace(port_of(number), guards=UNGUARDED) for number in (1, 2))

# Few values of each field, so that lines and packets meet often.
LOCAL4, REMOTE4 = ["10.66.0.11", "10.66.1.11"], ["10.66.0.12", "10.66.0.13", "192.0.2.1"]
LOCAL6, REMOTE6 = ["fe80::1", "2001:db8::1"], ["fe80::2", "2001:db8::2", "2001:db8:1::2"]
PORTS = [22, 67, 68, 80, 443, 546, 547, 40_000]
PREFIXES = ["any", "0.0.0.0/0", "::/0", "10.66.0.0/16", "10.66.0.0/24", "2001:db8::/32", "fe80::/10"]
HOSTS = [str(ipaddress.ip_network(one)) for one in (*LOCAL4, *REMOTE4, *LOCAL6, *REMOTE6)]
MACS = [ONE.mac, TWO.mac, "52:54:00:00:00:09"]

_direction = st.sampled_from(["in", "out"])
_prefix = st.sampled_from(PREFIXES + HOSTS)


@st.composite
def entries(draw: st.DrawFn) -> AclEntry:
    side = draw(st.sampled_from(["local", "remote"]))
    address = draw(_prefix | st.sampled_from(MACS))
    action, direction = draw(st.sampled_from(["allow", "deny"])), draw(_direction)
    return AclEntry.model_validate({"action": action, "direction": direction, side: address})


@st.composite
def rules(draw: st.DrawFn) -> AclRule | None:
    protocol = draw(st.sampled_from(["any", "tcp", "udp", "icmp", "icmpv6", "47"]))
    members = {
        "weight": draw(st.integers(0, 20)),
        "action": draw(st.sampled_from(["allow", "deny"])),
        "direction": draw(_direction),
        "protocol": protocol,
        "local": draw(_prefix | st.just("any")),
        "remote": draw(_prefix | st.just("any")),
        "log": draw(st.booleans()),
    }
    if protocol in ("tcp", "udp"):
        for side in ("local_ports", "remote_ports"):
            low, high = sorted(draw(st.tuples(st.sampled_from(PORTS), st.sampled_from(PORTS))))
            members[side] = draw(st.sampled_from([None, str(low), f"{low}-{high}"]))
    if members["action"] == "allow" and protocol != "47":
        members["stateful"] = draw(st.booleans())
        members["idle_timeout_s"] = draw(st.sampled_from([255, 3600]))
    try:
        return AclRule.model_validate(members)
    except ValueError:  # addresses of different versions
        return None


def _once(lines: list[AclEntry] | list[AclRule | None]) -> list[AclEntry | AclRule]:
    return list({line.line: line for line in lines if line is not None}.values())


_lists = st.builds(
    lambda entries_, rules_: AclLists.model_validate({"entries": _once(entries_), "rules": _once(rules_)}),
    st.lists(entries(), max_size=4),
    st.lists(rules(), max_size=6),
)
policies = st.builds(lambda own, named: policy_of([("", own), ("named", named)]), _lists, _lists)


@st.composite
def packets(draw: st.DrawFn) -> tuple[Direction, Packet]:
    direction: Direction = draw(_direction)  # type: ignore[assignment]
    six = draw(st.booleans())
    local, remote = draw(st.sampled_from(LOCAL6 if six else LOCAL4)), draw(st.sampled_from(REMOTE6 if six else REMOTE4))
    if direction == "out" and draw(st.integers(0, 9)) == 0:
        remote = "ff02::1:2" if six else "255.255.255.255"
    source, target = (local, remote) if direction == "out" else (remote, local)
    protocol = draw(st.sampled_from([6, 6, 17, 17, 58 if six else 1, 47]))
    packet = Packet(
        source,
        target,
        protocol,
        source_mac=ONE.mac if direction == "out" else TWO.mac,
        target_mac=TWO.mac if direction == "out" else ONE.mac,
    )
    if draw(st.integers(0, 9)) == 0:
        return direction, replace(packet, fragment=True)
    if protocol in (6, 17):
        ports = draw(st.sampled_from(PORTS)), draw(st.sampled_from(PORTS))
        reset = protocol == 6 and draw(st.integers(0, 4)) == 0
        return direction, replace(packet, source_port=ports[0], target_port=ports[1], reset=reset)
    if protocol in (1, 58):
        kind = draw(st.sampled_from([128, 129, 1, 135] if six else [8, 0, 3]))
        hop_limit = draw(st.sampled_from([64, 255]))
        return direction, replace(packet, icmp_type=kind, echo_id=draw(st.integers(1, 2)), hop_limit=hop_limit)
    return direction, packet


def answered(sent: tuple[Direction, Packet]) -> tuple[Direction, Packet]:
    """The packet that answers it."""
    direction, packet = sent
    back: Direction = "in" if direction == "out" else "out"
    kinds = {8: 0, 0: 8, 128: 129, 129: 128}
    return back, replace(
        packet,
        source=packet.target,
        target=packet.source,
        source_port=packet.target_port,
        target_port=packet.source_port,
        source_mac=packet.target_mac,
        target_mac=packet.source_mac,
        icmp_type=kinds.get(packet.icmp_type or 0, packet.icmp_type) if packet.icmp_type is not None else None,
        reset=False,
    )


def frame_of(packet: Packet, word: bytes) -> bytes:
    """The frame that is such a packet and carries ``word``."""
    source, target, protocol = packet.source, packet.target, packet.protocol
    six = packet.version == 6
    if packet.fragment:
        body = word
    elif protocol == 17:
        body = f.udp(source, target, packet.source_port or 0, packet.target_port or 0, word)
    elif protocol == 6:
        flags = 0x04 if packet.reset else 0x10
        body = struct.pack("!HHIIBBHHH", packet.source_port, packet.target_port, 1, 1, 0x50, flags, 1000, 0, 0) + word
    elif protocol in (1, 58):
        rest = struct.pack("!HH", packet.echo_id or 0, 1) + word
        kind = packet.icmp_type or 0
        body = f.icmpv6(source, target, kind, 0, rest) if six else f.icmp(kind, 0, rest)
    else:
        body = word
    if six:
        if packet.fragment:
            body, protocol = f.fragment_header(protocol, 1480, more=False) + body, 44
        whole = f.ipv6(source, target, protocol, body, hop_limit=packet.hop_limit)
    else:
        whole = f.ipv4(source, target, protocol, body, fragment=185 if packet.fragment else 0)
    return f.ethernet(packet.target_mac, packet.source_mac, 0x86DD if six else 0x0800, whole)


class World:
    """Two ports; guards and lists of the first one are those of an example."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        # br_netfilter, where it is loaded, would keep fragments until it has all of them
        run_in(lab.namespace, "sysctl", "-qw", "net.bridge.bridge-nf-call-iptables=0", check=False)
        run_in(lab.namespace, "sysctl", "-qw", "net.bridge.bridge-nf-call-ip6tables=0", check=False)
        self.one, self.two = lab.plug(ONE), lab.plug(TWO)
        for sender, receiver in ((self.one, self.two), (self.two, self.one)):
            self._arrived(sender, receiver)  # the bridge learns who is where
        self._words = 0

    def set_port(self, port: PortPolicy) -> None:
        """The first port's guards and lists, without flows: it has no lists between two examples."""
        self.lab.do(self.lab.runner.update_rules([port]))

    def pass_all(self, sent: list[tuple[Direction, Packet]]) -> list[bool]:
        """Which of these packets, sent one after another, arrive."""
        words = []
        for direction, packet in sent:
            self._words += 1
            words.append(b"<%09d>" % self._words)
            (self.one if direction == "out" else self.two).send(frame_of(packet, words[-1]))
        self.lab.do(self.lab.runner.update_rules([ONE]))
        frames = self._arrived(self.one, self.two) + self._arrived(self.two, self.one)
        return [any(word in frame for frame in frames) for word in words]

    @staticmethod
    def _arrived(sender: Guest, receiver: Guest) -> list[bytes]:
        """All that has arrived at ``receiver``, while the port has no lists: an ARP request comes last."""
        request = f.arp(sender.mac, 1, sender.mac, sender.ip, "00:00:00:00:00:00", receiver.ip)
        sender.send(request)
        return receiver.wait_for(request[:42])
