"""Which IPv6 subnet a switch gets, and which IPv6 address a card."""

from __future__ import annotations

from innkeeper.daemon.ports import addresses6, switch_policy
from innkeeper.daemon.rooms import Rooms
from innkeeper.model.problems import Conflict, Invalid
from innkeeper.model.resources import Nic, Switch, SwitchKind
from innkeeper.network import ipv6
from innkeeper.network.switch import SwitchRunner


async def wished_subnet6(
    rooms: Rooms, runner: SwitchRunner, wish: str | None, kind: SwitchKind, own: Switch | None = None
) -> str | None:
    """The subnet for ``wish`` (a /64, ``auto``, ``none``) of a new switch of that kind, or of ``own``.

    Raises ``Invalid`` (``switch.subnet6``), ``Conflict`` (``switch.subnet_in_use``, ``switch.addresses_outside``),
    ``NoSpace``.
    """
    if wish is None:
        return own.subnet6 if own is not None else None
    if wish == "none":
        chosen = None
    elif kind in (SwitchKind.EXTERNAL, SwitchKind.VIRTUAL):
        remedy = "leave --subnet6 out: a network outside has routers of its own, a virtual one is of IPv4"
        raise Invalid("switch.subnet6", f"a switch of kind {kind} has no IPv6 subnet of the inn's", remedy=remedy)
    elif wish == "auto" and own is not None and own.subnet6 is not None:
        chosen = own.subnet6
    else:
        others = {
            one.name: one.subnet6
            for one in rooms.store.ls(Switch)
            if one.subnet6 is not None and (own is None or one.id != own.id)
        }
        bridge = rooms.paths.bridge(own.number) if own is not None else None
        reached = [] if kind == SwitchKind.PRIVATE else await runner.routes(6)
        routes = {route.network: route.device for route in reached if route.device != bridge}
        if wish == "auto":
            chosen = ipv6.choose_subnet6(rooms.paths.inn_uuid, others, routes)
        else:
            chosen = ipv6.check_subnet6(wish, others, routes)
    if own is not None and chosen != own.subnet6:
        _check_left(rooms, own)
    return chosen


def _check_left(rooms: Rooms, switch: Switch) -> None:
    named = [nic.name for nic in rooms.store.find(Nic, switch_id=switch.id) if nic.address6 is not None]
    if named:
        raise Conflict(
            "switch.addresses_outside",
            f"{len(named)} cards have addresses of {switch.subnet6} that were chosen for them",
            cause=", ".join(named[:5]),
            remedy="plug them into another switch first, or remove them",
        )


def check_address6(rooms: Rooms, switch: Switch, wanted: str | None, own: Nic | None = None) -> str | None:
    """``wanted`` when a card on ``switch`` may have it; ``own`` is the card when it is there already.

    Raises ``Invalid`` (``nic.address*``, ``switch.no_subnet``), ``Conflict`` (``nic.address_in_use``).
    """
    if wanted is None:
        return None
    nics = [nic for nic in rooms.store.find(Nic, switch_id=switch.id) if own is None or nic.id != own.id]
    taken = {text: nic.name for nic in nics for text in (*addresses6(switch, nic), *nic.extra_addresses)}
    return ipv6.check_address6(switch.name, switch_policy(rooms.paths, switch, nics).network6, wanted, taken)
