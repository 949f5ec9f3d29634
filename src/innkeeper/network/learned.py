"""Which addresses a card may use because a DHCP server gave them to it. Pure decisions on frozen values.

Nobody shall be locked out: what is new holds at once, what is over holds for a grace, and where replies may have been
missed a lease holds for its own length once more, within which its guest renews it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

GRACE_S = 60.0
"""Clocks are not exact, and a guest that changes its address has packets of the old one under way."""
MOST_OF_A_CARD = 16
"""More push out those that end first."""
ASKED_S = 300.0
"""Answers come within seconds; after that a transaction is forgotten."""
MOST_ASKED = 8
JUST_BEGUN_S = 60.0
"""So long after listening began an answer counts though nobody was heard to ask."""


@dataclass(frozen=True, slots=True)
class Lease:
    """An address that ``client`` of card ``mac`` was given at ``learned_s`` until ``ends_s`` (None: for ever).

    Times are seconds since the epoch. ``lease_s`` is what it was given for; 0 when it is over before that.
    """

    address: str
    mac: str
    client: str
    learned_s: float
    lease_s: int | None
    ends_s: float | None

    @property
    def until_s(self) -> float | None:
        """When it can no longer be used."""
        return None if self.ends_s is None else self.ends_s + GRACE_S


Leases = tuple[Lease, ...]
"""Those of a card, the newest first."""


def given(held: Leases, new: Lease, now_s: float) -> Leases:
    """After a server gave ``new``: in IPv4 it replaces what the same client had."""
    if new.lease_s == 0:
        return lost(held, new.address, now_s)
    rest = [one for one in held if one.address != new.address]
    if ":" not in new.address:
        rest = [_over(one, now_s) if _is_replaced(one, new) else one for one in rest]
    former = next((one for one in held if one.address == new.address), new)
    kept = sorted(rest, key=lambda one: float("inf") if one.ends_s is None else one.ends_s, reverse=True)
    kept = kept[: MOST_OF_A_CARD - 1]
    return (replace(new, learned_s=former.learned_s), *(one for one in rest if one in kept))


def _is_replaced(one: Lease, new: Lease) -> bool:
    return ":" not in one.address and (one.mac, one.client) == (new.mac, new.client)


def _over(one: Lease, now_s: float) -> Lease:
    ends_s = now_s if one.ends_s is None else min(one.ends_s, now_s)
    return replace(one, lease_s=0, ends_s=ends_s)


def refused(held: Leases, mac: str, client: str, now_s: float) -> Leases:
    """After a server told the client that it has no right to its IPv4 address."""
    return tuple(
        _over(one, now_s) if (one.mac, one.client) == (mac, client) and ":" not in one.address else one for one in held
    )


def lost(held: Leases, address: str, now_s: float) -> Leases:
    """After a server gave the address to another card, or for no time at all."""
    return tuple(_over(one, now_s) if one.address == address else one for one in held)


def heard_again(held: Leases, now_s: float) -> Leases:
    """When replies are heard again, after a while in which renewals may have been missed."""
    return tuple(
        one if one.ends_s is None or one.lease_s is None else replace(one, ends_s=max(one.ends_s, now_s + one.lease_s))
        for one in held
    )


def current(held: Leases, now_s: float) -> Leases:
    """Those that can be used now."""
    return tuple(one for one in held if one.until_s is None or one.until_s > now_s)


def next_end_s(held: Iterable[Lease]) -> float | None:
    """When the next of them can no longer be used."""
    return min((one.until_s for one in held if one.until_s is not None), default=None)


class Asked:
    """Who asked in which transaction: an answer to what nobody asked is no answer. Of each mac the newest few."""

    def __init__(self) -> None:
        self._asked: dict[str, dict[tuple[int, int], tuple[str, float]]] = {}

    def note(self, mac: str, version: int, number: int, client: str, now_s: float) -> None:
        numbers = self._asked.setdefault(mac, {})
        numbers.pop((version, number), None)
        numbers[version, number] = (client, now_s)
        while len(numbers) > MOST_ASKED:
            del numbers[next(iter(numbers))]

    def client(self, mac: str, version: int, number: int, now_s: float) -> str | None:
        """The identifier that it was asked by; None when nobody asked."""
        client, asked_s = self._asked.get(mac, {}).get((version, number), ("", float("-inf")))
        return client if now_s - asked_s <= ASKED_S else None

    def keep(self, macs: Iterable[str]) -> None:
        """Forget all others."""
        wanted = set(macs)
        self._asked = {mac: numbers for mac, numbers in self._asked.items() if mac in wanted}
