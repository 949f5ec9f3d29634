"""cloud-init's network configuration of a guest's cards: version 2, which is netplan's format. Pure.

Each card is known by its mac and named ``eth0``, ``eth1``, … by its place: renderers other than netplan need a name.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class CardConfig:
    """A card as its guest shall set it up. ``addresses`` with their prefix lengths; ``gateways`` of both IP versions.

    Without ``addresses`` and ``dhcp`` it only comes up.
    """

    index: int
    mac: str
    mtu: int
    addresses: tuple[str, ...] = ()
    gateways: tuple[str, ...] = ()
    dns_servers: tuple[str, ...] = ()
    search_domains: tuple[str, ...] = ()
    dhcp: bool = False
    dhcp6: bool = False


def network_config(cards: Iterable[CardConfig]) -> str | None:
    """The text of the seed's ``network-config``; None without cards."""
    ethernets = {f"eth{card.index}": _card(card) for card in sorted(cards, key=lambda card: card.index)}
    return json.dumps({"version": 2, "ethernets": ethernets}, indent=1) + "\n" if ethernets else None


def _card(card: CardConfig) -> dict[str, Any]:
    made: dict[str, Any] = {
        "match": {"macaddress": card.mac},
        "set-name": f"eth{card.index}",
        "dhcp4": card.dhcp,
        "dhcp6": card.dhcp6,
        "mtu": card.mtu,
    }
    if card.addresses:
        made["addresses"] = list(card.addresses)
        # Not "routes": cloud-init 22 takes ::/0 for ::/64 there, and needs route(8) of ifupdown's guests.
        made |= {"gateway6" if ":" in gateway else "gateway4": gateway for gateway in card.gateways}
    else:
        made["optional"] = not card.dhcp
    if card.dns_servers or (card.addresses and card.search_domains):
        made["nameservers"] = {"addresses": list(card.dns_servers), "search": list(card.search_domains)}
    return {name: value for name, value in made.items() if value not in ([], {})}
