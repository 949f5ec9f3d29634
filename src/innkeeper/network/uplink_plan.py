"""What moves when a switch takes a host's network card, and what moves back. Pure.

A plan is a list of steps. Everything that the host needs is added at its new place before it is taken from its old one,
so that after each step the host has every address and every route somewhere, and every step may be repeated.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias

from innkeeper.model.problems import Conflict, Invalid, NotFound, Unavailable
from innkeeper.model.uplink import (
    RA_PROTOCOL,
    HostAddress,
    HostNeighbour,
    HostNetwork,
    HostRoute,
    HostRule,
    TeamMode,
)
from innkeeper.network import managers

Item: TypeAlias = HostAddress | HostRoute | HostRule | HostNeighbour

KERNEL_RA_METRIC = 1024
"""The metric of the default route that the kernel makes of a router advertisement."""
_KERNEL_PROTOCOL = 2
_UNBRIDGEABLE = ("macvlan", "ipvlan", "macvtap", "wireguard", "tun", "ipip", "sit", "ip6tnl", "gre", "ppp", "ifb")


@dataclass(frozen=True, slots=True)
class NicFacts:
    """A link of the host as the kernel shows it; ``kind`` as in ``ip -d link``, empty for hardware.

    ``master`` is the device that it is a part of. ``unmovable`` says in words what of its network cannot be moved.
    """

    name: str
    index: int
    mac: str
    mtu: int
    kind: str = ""
    up: bool = True
    carrier: bool = True
    master: str | None = None
    loopback: bool = False
    wireless: bool = False
    users: tuple[str, ...] = ()
    """Devices of its own that take its frames before a bridge could (macvlan, ipvlan)."""
    network: HostNetwork = field(default_factory=HostNetwork)
    unmovable: tuple[str, ...] = ()

    @property
    def is_bridge(self) -> bool:
        return self.kind == "bridge"


@dataclass(frozen=True, slots=True)
class Step:
    """One change of the kernel: a device joins ``master`` or leaves it, or something is added to or deleted from it."""

    verb: Literal["join", "leave", "up", "down", "add", "delete"]
    device: str
    item: Item | None = None
    master: str | None = None

    def __str__(self) -> str:
        if self.verb == "join":
            return f"plug {self.device} into {self.master}"
        if self.verb == "leave":
            return f"unplug {self.device}"
        if self.verb in ("up", "down"):
            return f"set {self.device} {self.verb}"
        kind = {HostAddress: "address", HostRoute: "route", HostRule: "rule", HostNeighbour: "neighbour"}
        word = next(name for cls, name in kind.items() if isinstance(self.item, cls))
        named = self.item.address if isinstance(self.item, HostNeighbour) else self.item
        return f"{self.verb} {word} {named} {'to' if self.verb == 'add' else 'from'} {self.device}"


# --- moving ----------------------------------------------------------------------------------------------------------


def take_steps(uplink: str, bridge: str, network: HostNetwork) -> list[Step]:
    """``uplink`` joins ``bridge`` and the bridge takes the host's network over from it."""
    return [
        Step("join", uplink, master=bridge),
        *_adding(bridge, on_bridge(network)),
        *_deleting(uplink, network),
    ]


def team_steps(uplink: str, team: str, bridge: str, network: HostNetwork) -> list[Step]:
    """``uplink`` joins ``team``, a port of ``bridge`` already. A card joins a team while it is down, so its network
    moves first; the team's other cards carry the traffic meanwhile."""
    return [*stray_steps(uplink, bridge, network), Step("down", uplink), Step("join", uplink, master=team)]


def stray_steps(uplink: str, bridge: str, network: HostNetwork) -> list[Step]:
    """What something set up on ``uplink`` after it had joined goes to ``bridge`` too."""
    return [*_adding(bridge, on_bridge(network)), *_deleting(uplink, network)]


def return_steps(uplink: str, bridge: str, network: HostNetwork) -> list[Step]:
    """``uplink`` leaves ``bridge`` and gets ``network`` back; the bridge keeps nothing of it."""
    return [
        Step("leave", uplink),
        Step("up", uplink),
        *_adding(uplink, network),
        *_deleting(bridge, on_bridge(network)),
        *_deleting(bridge, network),
    ]


def _adding(device: str, network: HostNetwork) -> list[Step]:
    routes = sorted(network.routes, key=lambda route: not route.direct)  # a gateway must be reachable before its use
    items: list[Item] = [*network.addresses, *network.neighbours, *routes, *network.rules]
    return [Step("add", device, item) for item in items]


def _deleting(device: str, network: HostNetwork) -> list[Step]:
    routes = sorted(network.routes, key=lambda route: route.direct)
    # Secondary addresses first: the kernel deletes them with their primary.
    items: list[Item] = [*network.rules, *routes, *network.neighbours, *reversed(network.addresses)]
    items += _left_behind(network)
    return [Step("delete", device, item) for item in items]


def _left_behind(network: HostNetwork) -> list[HostRoute]:
    """Routes to the networks of IPv6 addresses: the kernel keeps them where an address with an end was deleted."""
    nets = {(one.network, one.metric or 256) for one in network.addresses if one.version == 6 and not one.link_local}
    return [HostRoute(destination=net, protocol=_KERNEL_PROTOCOL, metric=metric) for net, metric in sorted(nets)]


def on_bridge(network: HostNetwork) -> HostNetwork:
    """What the bridge gets. Leased addresses stay for good, whatever becomes of the lease: the host must be reached.

    What router advertisements gave keeps its end: the kernel hears them on the bridge. Its own default route comes to
    stand before the one that was moved, which then ends unneeded.
    """
    return network.model_copy(
        update={
            "addresses": tuple(_address_on_bridge(address) for address in network.addresses),
            "routes": tuple(_route_on_bridge(route) for route in network.routes),
        }
    )


def _address_on_bridge(address: HostAddress) -> HostAddress:
    return address.model_copy(update={"lifetime_s": None, "preferred_s": None}) if address.leased else address


def _route_on_bridge(route: HostRoute) -> HostRoute:
    if route.advertised and route.metric == KERNEL_RA_METRIC:
        return route.model_copy(update={"metric": KERNEL_RA_METRIC + 1})
    return route


def bridge_settings(network: HostNetwork) -> dict[str, str]:
    """Sysctls of the bridge, ``<family>/<name>`` -> value: as the uplink's, and it must hear router advertisements
    where the uplink's addresses came from them, also when the host forwards."""
    settings = dict(network.settings)
    from_router = any(one.lifetime_s is not None and one.version == 6 and not one.leased for one in network.addresses)
    from_router = from_router or any(route.protocol == RA_PROTOCOL for route in network.routes)
    if settings.get("ipv6/accept_ra", "0") != "0" or from_router:
        settings["ipv6/accept_ra"] = "2"
    return settings


def lost_steps(bridge: str, recorded: HostNetwork, present: HostNetwork) -> list[Step]:
    """What was moved to ``bridge`` and is there no more, of each IP version that it has no address of."""
    whole = on_bridge(merged(recorded, present))
    there = {*present.addresses, *present.routes, *present.rules, *present.neighbours}
    return [step for step in _adding(bridge, whole) if step.item not in there] if whole.addresses else []


def merged(recorded: HostNetwork | None, present: HostNetwork) -> HostNetwork:
    """What to move at a start: what the card has now, and of each IP version that it has nothing of, what is recorded.

    After a reboot the host's own configuration has usually set the card up again, and is right where it has changed.
    """
    if recorded is None:
        return present
    versions = {one.version for one in present.addresses if not one.link_local}
    missing = {4, 6} - versions
    present_rules, present_neighbours = set(present.rules), set(present.neighbours)
    return present.model_copy(
        update={
            "addresses": (
                *present.addresses,
                *(one for one in recorded.addresses if one.version in missing and not one.link_local),
            ),
            "routes": (*present.routes, *(one for one in recorded.routes if one.version in missing)),
            "rules": (*present.rules, *(one for one in recorded.rules if one not in present_rules)),
            "neighbours": (
                *present.neighbours,
                *(one for one in recorded.neighbours if one not in present_neighbours),
            ),
            "settings": _settings(recorded, present),
            "manager": present.manager or recorded.manager,
        }
    )


def _settings(recorded: HostNetwork, present: HostNetwork) -> tuple[tuple[str, str], ...]:
    """As they are now; but whether the card speaks IPv6 is as recorded: as a bridge's port it does not."""
    settings = {**dict(recorded.settings), **dict(present.settings)}
    if (speaks := recorded.setting("ipv6/disable_ipv6")) is not None:
        settings["ipv6/disable_ipv6"] = speaks
    return tuple(sorted(settings.items()))


def managed(facts: NicFacts, manager: str) -> NicFacts:
    """``facts`` with what manages the card, in words."""
    return replace(facts, network=facts.network.model_copy(update={"manager": manager}))


def given_back(facts: NicFacts, bridge: NicFacts | None) -> NicFacts:
    """A card of a switch as it is when it has been given back with what is on ``bridge``."""
    return replace(facts, master=None, network=bridge.network if bridge is not None else facts.network)


# --- for people ------------------------------------------------------------------------------------------------------


def sentences(facts: NicFacts, bridge: str, confirm_within_s: float) -> list[str]:
    """What taking that card does, for ``--dry-run``."""
    if facts.is_bridge:
        return [
            f"connect {bridge} with the host's own bridge {facts.name} by a cable (veth); "
            "the host's addresses stay where they are"
        ]
    network = facts.network
    steps = [f"give {bridge} the mac {facts.mac} and the mtu of {facts.name}"]
    if network.moves:
        steps.append(f"start a guard that gives everything back after {confirm_within_s:g} s unless that is confirmed")
    steps.append(f"plug {facts.name} into {bridge}")
    steps += [f"move address {one} from {facts.name} to {bridge}" for one in network.addresses if not one.link_local]
    steps += [f"move route {one}" for one in network.routes]
    steps += [f"move rule {one}" for one in network.rules]
    steps += [f"move neighbour {one.address}" for one in network.neighbours]
    steps += advice(facts, bridge)
    return steps


def advice(facts: NicFacts, bridge: str) -> list[str]:
    """What the administrator should know or do about what manages the card."""
    found = []
    network = facts.network
    if network.manager and network.moves:
        found.append(managers.advice(facts.name, network.manager, bridge))
    for version, what in ((4, "is renewed there by the inn, in the name of the card's client"), (6, "is not renewed")):
        leased = [str(one) for one in network.addresses if one.leased and one.version == version]
        if leased:
            found.append(
                f"{', '.join(leased)} was leased by DHCP, stays on {bridge} whatever the server says, and {what}: "
                "better reserve it on the DHCP server, or set it up as a static address"
            )
    return found


# --- checks ----------------------------------------------------------------------------------------------------------


def check_uplinks(names: list[str], team: TeamMode | None, taken: dict[str, str]) -> None:
    """Whether these cards may become a switch's uplinks; ``taken``: card -> name of the switch that has it.

    Raises ``Invalid`` (``switch.uplink``), ``Conflict`` (``switch.uplink_taken``).
    """
    if len(set(names)) != len(names):
        raise Invalid("switch.uplink", "an uplink is named twice", remedy="name each card once")
    if len(names) > 1 and team is None:
        raise Invalid(
            "switch.uplink",
            "several uplinks must be a team",
            remedy="say how they work together: --team active-backup, balance-xor or 802.3ad",
        )
    for name in names:
        if name in taken:
            raise Conflict(
                "switch.uplink_taken",
                f"{name} is the uplink of switch {taken[name]!r}",
                remedy="plug the guests into that switch, or choose another card",
            )


def check_nic(name: str, facts: NicFacts | None, *, teamed: bool) -> NicFacts:
    """The card ``name``, when a bridge can have it.

    Raises ``NotFound`` (``switch.uplink_gone``), ``Invalid`` (``switch.uplink_kind``), ``Conflict``
    (``switch.uplink_busy``, ``switch.uplink_network``).
    """
    if facts is None:
        raise NotFound("switch.uplink_gone", f"this host has no network card {name!r}", remedy="see 'ip link'")
    why = _unbridgeable(facts, teamed=teamed)
    if why is not None:
        raise Invalid(
            "switch.uplink_kind",
            f"{name} cannot be the uplink of a switch",
            cause=why,
            remedy="take a wired card, a VLAN device or a bridge, or make a nat switch",
        )
    if facts.master is not None or facts.users:
        holder = f"it is a part of {facts.master}" if facts.master else f"{', '.join(facts.users)} stand on it"
        remedy = f"name {facts.master} as the uplink instead" if facts.master else "remove them, or take another card"
        raise Conflict("switch.uplink_busy", f"{name} is in use", cause=holder, remedy=remedy)
    if facts.unmovable and not facts.is_bridge:
        raise Conflict(
            "switch.uplink_network",
            f"the host's network on {name} cannot be moved whole, so it is left as it is",
            cause="; ".join(facts.unmovable),
            remedy="take these away or write them otherwise, or use a bridge of your own as the uplink",
        )
    return facts


def _unbridgeable(facts: NicFacts, *, teamed: bool) -> str | None:
    if facts.loopback:
        return "it is the loopback device"
    if facts.wireless:
        return "a wireless card sends only frames of its own mac"
    if facts.kind in _UNBRIDGEABLE:
        return f"a {facts.kind} device carries no frames of others"
    if facts.name.startswith(("inbr-", "intp-", "inup-", "inuq-", "inbd-")):
        return "it belongs to an inn"
    if teamed and facts.kind in ("bridge", "bond", "team"):
        return f"a {facts.kind} cannot be part of a team"
    return None


def check_mtu(facts: NicFacts, wanted: int | None) -> int:
    """The switch's mtu: the uplink's, or a smaller one that was asked for.

    Raises ``Invalid`` (``switch.uplink_mtu``).
    """
    if wanted is not None and wanted > facts.mtu:
        raise Invalid(
            "switch.uplink_mtu",
            f"{facts.name} carries {facts.mtu} bytes, not {wanted}",
            cause="larger frames of guests would vanish on their way out",
            remedy=f"leave --mtu out, or raise the card's first: ip link set {facts.name} mtu {wanted}",
        )
    return facts.mtu if wanted is None else wanted


def check_team(team: TeamMode | None, kernel_bonds: bool) -> None:
    """Raises ``Unavailable`` (``switch.team_missing``) when this kernel cannot make a team."""
    if team is not None and not kernel_bonds:
        raise Unavailable(
            "switch.team_missing",
            f"this kernel cannot make a team of cards ({team})",
            cause="it has no bonding driver",
            remedy="boot Debian's own kernel (linux-image-amd64), which has it; one card as the uplink works here",
        )
