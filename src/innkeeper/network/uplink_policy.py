"""What an external switch's connection to the outside shall be, and what it is in the rules. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from innkeeper.model.uplink import HostNetwork, TeamMode, UplinkVia

CABLE_PREFIX = "inup-"
"""Our end of a cable (veth) to a bridge of the host's own."""
FAR_PREFIX = "inuq-"
"""The end of that cable in the host's own bridge."""
TEAM_PREFIX = "inbd-"
DEVICE_PREFIXES = (CABLE_PREFIX, FAR_PREFIX, TEAM_PREFIX)


@dataclass(frozen=True, slots=True)
class UplinkPolicy:
    """``network``: what was moved from the card, to be moved again after a reboot. ``confirm_s`` None: it stays."""

    devices: tuple[str, ...]
    via: UplinkVia = "card"
    team: TeamMode | None = None
    mac: str | None = None
    network: HostNetwork | None = None
    confirm_s: float | None = None

    def port(self, bridge: str) -> str:
        """The device that is the port of ``bridge`` towards the outside."""
        prefixes = {"cable": CABLE_PREFIX, "team": TEAM_PREFIX}
        return f"{prefixes[self.via]}{suffix(bridge)}" if self.via in prefixes else self.devices[0]


def suffix(bridge: str) -> str:
    """What all devices of one switch have in common after their prefix."""
    return bridge.partition("-")[2]


def trusted_ports(outside: str | None) -> list[tuple[str, tuple[str, ...]]]:
    """(set, key) of the port of a switch that leads outside."""
    return [] if outside is None else [("trusted_ports", (outside,))]


def uplink_macs(outside: str | None, mac: str) -> list[tuple[str, tuple[str, ...]]]:
    """(set, key) that keep frames with a local card's mac from coming in by ``outside``."""
    return [] if outside is None else [("uplink_macs", (outside, mac))]


def uplink_schema() -> str:
    """The part of table ``bridge inn_<id>`` that looks at frames from outside."""
    return _SCHEMA


_SCHEMA = """\
  counter drop_cloned { }
  set trusted_ports { type ifname; }
  set uplink_macs { type ifname . ether_addr; }
  chain from_outside {
    type filter hook prerouting priority -290; policy accept;
    iifname . ether saddr @uplink_macs counter name drop_cloned drop comment "mac of a local card, from outside"
  }
"""
