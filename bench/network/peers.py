"""What others write to hold ports to their addresses, for as many ports: the rules that libvirt's filter
``clean-traffic`` becomes by ebtables, and those of Incus' ``security.mac_filtering`` with both IP filters by nftables.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence

from bench.network.world import Load, run_in
from innkeeper.network.policy import PortPolicy

EBTABLES = "ebtables-nft-restore"


def has_ebtables() -> bool:
    return shutil.which(EBTABLES) is not None


def libvirt_rules(ports: Sequence[PortPolicy]) -> str:
    """Two lists in table nat, walked by every frame: one by its first port, one by its last. A chain for each port and
    direction, and one for each filter of it; IPv4 and ARP only."""
    chains, first, rules = [], [], []
    for port in ports:
        tap = port.tap.removeprefix("intp-")
        mine, theirs = f"libvirt-I-{tap}", f"libvirt-O-{tap}"
        mac, address, arp_mac, arp_address, rarp = (
            f"I-{tap}-{what}" for what in ("mac", "ipv4-ip", "arp-mac", "arp-ip", "rarp")
        )
        incoming = f"O-{tap}-ipv4"
        chains += [mine, theirs, mac, address, arp_mac, arp_address, rarp, incoming]
        first += [f"-A PREROUTING -i {port.tap} -j {mine}", f"-A POSTROUTING -o {port.tap} -j {theirs}"]
        rules += [
            f"-A {mine} -j {mac}",
            f"-A {mine} -p IPv4 -j {address}",
            f"-A {mine} -p IPv4 -j ACCEPT",
            f"-A {mine} -p ARP -j {arp_mac}",
            f"-A {mine} -p ARP -j {arp_address}",
            f"-A {mine} -p ARP -j ACCEPT",
            f"-A {mine} -p 0x8035 -j {rarp}",
            f"-A {mine} -j DROP",
            f"-A {mac} -s {port.mac} -j RETURN",
            f"-A {mac} -j DROP",
            f"-A {address} -p IPv4 --ip-src 0.0.0.0 --ip-proto udp -j RETURN",
            f"-A {address} -p IPv4 --ip-src {port.ipv4[0]} -j RETURN",
            f"-A {address} -j DROP",
            f"-A {arp_mac} -p ARP --arp-mac-src {port.mac} -j RETURN",
            f"-A {arp_mac} -j DROP",
            f"-A {arp_address} -p ARP --arp-ip-src {port.ipv4[0]} -j RETURN",
            f"-A {arp_address} -j DROP",
            f"-A {rarp} -p 0x8035 -s {port.mac} -d Broadcast -j ACCEPT",
            f"-A {rarp} -j DROP",
            f"-A {theirs} -p IPv4 -j {incoming}",
            f"-A {theirs} -p ARP -j ACCEPT",
            f"-A {theirs} -j DROP",
            f"-A {incoming} -j ACCEPT",
        ]
    heads = [f":{chain} ACCEPT" for chain in ("PREROUTING", "OUTPUT", "POSTROUTING", *chains)]
    return "\n".join(["*nat", *heads, *first, *rules]) + "\n"


def incus_rules(ports: Sequence[PortPolicy]) -> str:
    """A base chain of the forward hook for each port, so that every frame passes the rules of all; and one of input."""
    lines = ["table bridge incus {"]
    for port in ports:
        one, mac, ipv4, ipv6 = f'iifname "{port.tap}"', port.mac, port.ipv4[0], port.link_local
        raw_mac = "0x" + mac.replace(":", "")
        by_mac = [
            f"{one} ether saddr != {mac} drop",
            f"{one} ether type arp arp saddr ether != {mac} drop",
            f"{one} ether type ip6 icmpv6 type 136 @nh,528,48 != {raw_mac} drop",
        ]
        by_ipv4 = [
            f"{one} ether type arp arp saddr ip != {{ {ipv4} }} drop",
            f"{one} ether type ip ip saddr != {{ {ipv4} }} drop",
        ]
        by_ipv6 = [
            f"{one} ether type ip6 icmpv6 type 134 drop",
            f"{one} ether type ip6 icmpv6 type 136 @nh,384,64 != 0xfe80000000000000 drop",
            f"{one} ether type ip6 ip6 saddr != {{ {ipv6} }} drop",
        ]
        last = [f"{one} ether type != {{ arp, ip, ip6 }} drop"]
        dhcp = [f"{one} ether type ip ip saddr 0.0.0.0 ip daddr 255.255.255.255 udp dport 67 accept"]
        for hook, rules in (
            ("input", by_mac + dhcp + by_ipv4 + by_ipv6 + last),
            ("forward", by_mac + by_ipv4 + by_ipv6 + last),
        ):
            lines += [f'chain "{hook}_{port.tap}" {{'.replace('"', "").replace("-", "_")]
            lines += [f"type filter hook {hook} priority -200; policy accept;", *rules, "}"]
    return "\n".join(lines) + "\n}\n"


def libvirt(ports: Sequence[PortPolicy]) -> Load:
    """Loads libvirt's rules for those ports."""
    return lambda namespace: _show_nothing(run_in(namespace, EBTABLES, input_text=libvirt_rules(ports)))


def incus(ports: Sequence[PortPolicy]) -> Load:
    """Loads Incus' rules for those ports."""
    return lambda namespace: _show_nothing(run_in(namespace, "nft", "-f", "-", input_text=incus_rules(ports)))


def _show_nothing(_: str) -> None:
    pass
