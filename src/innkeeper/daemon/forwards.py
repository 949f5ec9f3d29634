"""Port forwards of nat switches, from what is asked for to documents."""

from __future__ import annotations

from innkeeper.daemon.rooms import Rooms
from innkeeper.model import requests as ask
from innkeeper.model.problems import Conflict, Invalid, NotFound
from innkeeper.model.resources import Nic, PortForward, Switch, SwitchKind, Vm


def forwards(rooms: Rooms, switch: Switch, wanted: list[ask.ForwardCreate]) -> list[PortForward]:
    """Those of ``switch`` as documents. Raises ``Invalid`` (``switch.forward``), ``Conflict``, ``NotFound``."""
    if wanted and switch.switch_kind != SwitchKind.NAT:
        raise Invalid(
            "switch.forward",
            f"switch {switch.name!r} is {switch.switch_kind}: only nat forwards ports",
            remedy="make a switch with --kind nat",
        )
    taken = {
        (forward.protocol, forward.host_port, forward.host_address): other.name
        for other in rooms.store.ls(Switch)
        if other.id != switch.id
        for forward in other.forwards
    }
    found = []
    for wish in wanted:
        key = (wish.protocol, wish.host_port, wish.host_address)
        if key in taken:
            raise Conflict(
                "switch.forward_taken",
                f"{wish.protocol}/{wish.host_port} is forwarded already",
                cause=f"by switch {taken[key]!r}",
                remedy="choose another port of the host",
            )
        taken[key] = switch.name
        found.append(
            PortForward(
                nic_id=_target(rooms, switch, wish).id,
                **wish.model_dump(include={"protocol", "host_port", "guest_port", "host_address"}),
            )
        )
    return found


def _target(rooms: Rooms, switch: Switch, wish: ask.ForwardCreate) -> Nic:
    store = rooms.store
    if wish.nic is not None:
        nic = store.get(Nic, wish.nic)
        candidates = [nic] if nic.switch_id == switch.id else []
    else:
        candidates = store.find(Nic, vm_id=store.get(Vm, wish.vm or "").id, switch_id=switch.id)
    if not candidates:
        raise NotFound(
            "nic.not_found",
            f"{wish.vm or wish.nic!r} has no card on switch {switch.name!r}",
            remedy=f"give the vm one first: inn nic create VM --switch {switch.name}",
        )
    return min(candidates, key=lambda nic: nic.index)
