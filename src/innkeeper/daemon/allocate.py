"""Pure choices of what must be unique in an inn: numbers, macs and uids for what is new."""

from __future__ import annotations

from collections.abc import Iterable

from innkeeper.model.problems import Conflict, NoSpace

_NUMBERS = 36**5
"""A device name leaves five base-36 characters for a number."""


def free_number(taken: Iterable[int]) -> int:
    """The smallest number from 1 that is not taken, for the name of a bridge or a tap.

    Raises ``NoSpace`` (``number.exhausted``).
    """
    used = set(taken)
    for number in range(1, _NUMBERS):
        if number not in used:
            return number
    raise NoSpace("number.exhausted", "no device number is left", remedy="remove what is no longer needed")


def free_mac(prefix: str, taken: Iterable[str]) -> str:
    """The first mac of the inn's pool, ``prefix`` and two octets, that is not taken.

    Raises ``NoSpace`` (``nic.mac_pool_exhausted``).
    """
    used = set(taken)
    for number in range(1, 1 << 16):
        mac = f"{prefix}:{number >> 8:02x}:{number & 0xFF:02x}"
        if mac not in used:
            return mac
    raise NoSpace("nic.mac_pool_exhausted", f"every mac of {prefix}:00:00/32 is in use", remedy="remove unused nics")


def check_mac_free(mac: str, taken: Iterable[str]) -> str:
    """``mac`` itself when nothing has it.

    Raises ``Conflict`` (``nic.mac_in_use``).
    """
    if mac in set(taken):
        raise Conflict(
            "nic.mac_in_use", f"mac {mac} is in use by another nic or a reservation", remedy="choose another, or none"
        )
    return mac


def free_uid(first_uid: int, count: int, taken: Iterable[int | None]) -> int:
    """The first uid of the inn's block that no vm has.

    Raises ``NoSpace`` (``vm.uids_exhausted``).
    """
    used = set(taken)
    for uid in range(first_uid, first_uid + count):
        if uid not in used:
            return uid
    raise NoSpace("vm.uids_exhausted", f"all {count} uids of this inn are in use", remedy="remove vms")


def free_name(wish: str, taken: Iterable[str]) -> str:
    """``wish``, or ``wish-2``, ``wish-3`` … when it is taken."""
    used = set(taken)
    if wish not in used:
        return wish
    number = 2
    while f"{wish}-{number}" in used:
        number += 1
    return f"{wish}-{number}"
