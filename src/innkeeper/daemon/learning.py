"""Learning the addresses of cards on external switches from the DHCP servers of the network outside.

Only what a server there answers to what a card asked counts. It is kept in the inn's state, and forgotten when the
card's port goes: a guest that starts anew asks anew, or has an address of another kind by then.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from contextlib import aclosing
from datetime import UTC, datetime

from innkeeper.daemon.ports import addresses6
from innkeeper.daemon.rooms import Rooms
from innkeeper.daemon.seeds import serves_dhcp
from innkeeper.model.learning import LearnedAddress
from innkeeper.model.problems import Problem
from innkeeper.model.resources import LearnedAddresses, Nic, Switch, SwitchKind, Vm
from innkeeper.model.views import KnownAddress, KnownFrom
from innkeeper.network import learned
from innkeeper.network.dhcp_listener import Listener
from innkeeper.network.dhcp_messages import Message
from innkeeper.network.learned import JUST_BEGUN_S, Asked, Lease, Leases
from innkeeper.network.policy import link_local_of
from innkeeper.network.switch import SwitchRunner

log = logging.getLogger(__name__)

RETRY_S = 2.0
PERSIST_SHARE = 8
"""A renewal that adds less than this part of a lease to what is kept is not worth a write."""

Apply = Callable[[list[Nic]], Awaitable[None]]


class Learning:
    """``apply`` brings the rules of those cards' ports to what is known now."""

    def __init__(self, rooms: Rooms, runner: SwitchRunner, apply: Apply) -> None:
        self._rooms = rooms
        self._runner = runner
        self._apply = apply
        self._held: dict[tuple[str, str], Leases] | None = None
        self._asked: dict[str, Asked] = {}
        self._ears: dict[str, tuple[str, asyncio.Task[None]]] = {}
        """By the switch's id: the device that is listened at."""
        self.hears: set[str] = set()
        """Ids of the switches at whose uplink nothing is missed now."""
        self._clock: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()

    # --- what is known ---

    @property
    def _all(self) -> dict[tuple[str, str], Leases]:
        """By the card's id and its switch's."""
        if self._held is None:
            now_s = time.time()  # what was renewed while nobody listened is not known
            kept = {(one.nic_id, one.switch_id): tuple(map(_lease, one.addresses)) for one in self._documents()}
            self._held = {key: learned.heard_again(leases, now_s) for key, leases in kept.items()}
        return self._held

    def _documents(self) -> list[LearnedAddresses]:
        """Those of cards that are still plugged in where they were learned of."""
        switches = {nic.id: nic.switch_id for nic in self._rooms.store.ls(Nic)}
        return [one for one in self._rooms.store.ls(LearnedAddresses) if switches.get(one.nic_id) == one.switch_id]

    def leases(self, nic: Nic) -> Leases:
        """What was learned of the card and holds, the newest first.

        Where a card has an IPv4 address by its document, that alone counts.
        """
        held = learned.current(self._all.get(_key(nic), ()), time.time())
        return tuple(one for one in held if nic.address is None or ":" in one.address)

    def known(self, nic: Nic) -> dict[str, str]:
        """Address -> the mac that it was given to."""
        return {one.address: one.mac for one in self.leases(nic)}

    # --- life ---

    def settle(self, plugged: set[str]) -> None:
        """Forget what was learned of cards whose port is gone, and begin to listen."""
        for nic in self._rooms.store.ls(Nic):
            if nic.id not in plugged:
                self.forget(nic)
        present = {one.id for one in self._documents()}
        for one in self._rooms.store.ls(LearnedAddresses):
            if one.id not in present:
                self._rooms.store.delete("learned", one.id)
        self._clock = asyncio.create_task(self._keep_time())
        self.follow(plugged)

    async def let_go(self) -> None:
        """The daemon ends."""
        tasks = [task for _, task in self._ears.values()] + ([self._clock] if self._clock is not None else [])
        self._ears.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._clock = None

    def follow(self, plugged: set[str]) -> None:
        """Listen at the uplink of each external switch that has cards with a port, and nowhere else."""
        if self._clock is None:
            return
        with_cards = {nic.switch_id for nic in self._rooms.store.ls(Nic) if nic.id in plugged}
        wanted: dict[str, str] = {}
        for switch in self._rooms.store.ls(Switch):
            if switch.switch_kind == SwitchKind.EXTERNAL and switch.id in with_cards:
                standing = self._runner.standing(self._rooms.paths.bridge(switch.number))
                if standing is not None and standing.switch.outside is not None:
                    wanted[switch.id] = standing.switch.outside
        for switch_id, (device, task) in list(self._ears.items()):
            if wanted.get(switch_id) != device:
                task.cancel()
                del self._ears[switch_id]
                self._asked.pop(switch_id, None)
        for switch_id, device in wanted.items():
            if switch_id not in self._ears:
                self._ears[switch_id] = (device, asyncio.create_task(self._listen(switch_id, device)))

    def forget(self, nic: Nic) -> None:
        """The card's port goes, or it is on another switch."""
        for key in [key for key in self._all if key[0] == nic.id]:
            del self._all[key]
        for one in self._rooms.store.find(LearnedAddresses, nic_id=nic.id):
            self._rooms.store.delete("learned", one.id)

    # --- listening ---

    async def _listen(self, switch_id: str, device: str) -> None:
        told = ""
        while True:
            try:
                listener = await self._runner.listen(device)
                told = ""
                self._hear_again(switch_id)
                await self._hear(switch_id, listener)
            except Problem as refused:  # it is gone, for instance
                if str(refused) != told:
                    log.warning("no addresses are learned at %s: %s", device, refused)
                told = str(refused)
            except Exception:  # whatever it was, others go on being learned of
                log.exception("what was heard at %s is left", device)
            await asyncio.sleep(RETRY_S)

    async def _hear(self, switch_id: str, listener: Listener) -> None:
        began_s = time.time()
        self.hears.add(switch_id)
        try:
            async with aclosing(aiter(listener)) as batches:
                async for messages in batches:
                    await self._heard(switch_id, messages, strict=time.time() - began_s > JUST_BEGUN_S)
        finally:
            self.hears.discard(switch_id)

    def _hear_again(self, switch_id: str) -> None:
        for nic in self._rooms.store.find(Nic, switch_id=switch_id):
            if held := self._all.get(_key(nic)):
                self._keep(nic, learned.heard_again(held, time.time()))

    async def _heard(self, switch_id: str, messages: list[Message], *, strict: bool) -> None:
        cards = self._rooms.store.find(Nic, switch_id=switch_id)
        owners = {mac: nic for nic in cards for mac in (nic.mac, *nic.extra_macs)}
        asked = self._asked.setdefault(switch_id, Asked())
        asked.keep(owners)
        now_s, before = time.time(), {nic.id: self.known(nic) for nic in cards}
        for message in messages:
            if (nic := owners.get(message.mac)) is None:
                continue
            if message.kind == "ask":
                asked.note(message.mac, message.version, message.number, message.client, now_s)
                continue
            client = asked.client(message.mac, message.version, message.number, now_s)
            if client is None and strict:
                continue
            self._take(nic, cards, message, client or "", now_s)
        await self._settled([nic for nic in cards if self.known(nic) != before[nic.id]], before)

    def _take(self, nic: Nic, cards: list[Nic], message: Message, client: str, now_s: float) -> None:
        """What a server said to a card."""
        if message.kind == "refuse":
            self._keep(nic, learned.refused(self._all.get(_key(nic), ()), message.mac, client, now_s))
            return
        for address, lease_s in message.given:
            holder = next((one for one in cards if address in (one.address, one.address6, *one.extra_addresses)), None)
            if holder is not None and holder.id != nic.id:
                log.warning("a DHCP server gave %s, the address of card %s, to card %s", address, holder.name, nic.name)
                continue
            for other in cards:
                if other.id != nic.id and (held := self._all.get(_key(other))) and lease_s != 0:
                    self._keep(other, learned.lost(held, address, now_s))
            ends_s = None if lease_s is None else now_s + lease_s
            lease = Lease(address, message.mac, client, now_s, lease_s, ends_s)
            self._keep(nic, learned.given(self._all.get(_key(nic), ()), lease, now_s))

    async def _settled(self, changed: list[Nic], before: dict[str, dict[str, str]]) -> None:
        """Bring the rules to it, then tell."""
        self._changed.set()
        if not changed:
            return
        try:
            await self._apply(changed)
        except Problem as refused:
            log.error("what was learned of %s does not hold yet: %s", ", ".join(nic.name for nic in changed), refused)
        for nic in changed:
            self._tell(nic, before[nic.id])

    def _tell(self, nic: Nic, before: dict[str, str]) -> None:
        vms = {vm.id: vm.name for vm in self._rooms.store.ls(Vm)}
        card = f"card {nic.name} (vm {vms.get(nic.vm_id, nic.vm_id)})"
        known = self.known(nic)
        for address in known.keys() - before.keys():
            self._rooms.journal.note("AddressLearned", nic, f"a DHCP server outside gave {address} to {card}")
        for address in before.keys() - known.keys():
            self._rooms.journal.note("AddressForgotten", nic, f"{address} is no longer an address of {card}")

    # --- keeping ---

    def _keep(self, nic: Nic, leases: Leases) -> None:
        """In memory, and in the state where that says something new."""
        former = self._all.get(_key(nic), ())
        self._all[_key(nic)] = leases
        if not leases:
            self.forget(nic)
            return
        document = next(iter(self._rooms.store.find(LearnedAddresses, nic_id=nic.id)), None)
        addresses = [_learned(one) for one in leases]
        if document is None:
            made = LearnedAddresses(name=nic.id, nic_id=nic.id, switch_id=nic.switch_id, addresses=addresses)
            self._rooms.store.create(made)
        elif leases != former and _says_more(document.addresses, addresses):
            self._rooms.change(document, None, addresses=addresses)

    async def _keep_time(self) -> None:
        """What is over ceases to hold."""
        while True:
            end_s = learned.next_end_s(one for leases in self._all.values() for one in leases)
            self._changed.clear()
            try:
                await asyncio.wait_for(self._changed.wait(), None if end_s is None else max(0.0, end_s - time.time()))
            except TimeoutError:
                try:
                    await self._expire()
                except Exception:  # whatever it was, the next may succeed
                    log.exception("addresses that are over are kept")
                    await asyncio.sleep(RETRY_S)

    async def _expire(self) -> None:
        now_s, changed, before = time.time(), [], {}
        for nic in self._rooms.store.ls(Nic):
            held = self._all.get(_key(nic), ())
            left = learned.current(held, now_s)
            if left != held:
                before[nic.id] = {one.address: one.mac for one in held}
                changed.append(nic)
                self._keep(nic, left)
        for key in self._all.keys() - {_key(nic) for nic in self._rooms.store.ls(Nic)}:
            del self._all[key]
        await self._settled(changed, before)


def known_addresses(switch: Switch, nic: Nic, leases: Leases) -> list[KnownAddress]:
    """The addresses that the guards let the card use, and where each is known from."""
    found: list[tuple[str, KnownFrom]] = []
    if nic.address is not None:
        by_switch = serves_dhcp(switch) and switch.switch_kind != SwitchKind.EXTERNAL
        found.append((nic.address, "cloud-init" if nic.static else "dhcp" if by_switch else "document"))
    managed = switch.ra_mode == "managed" and serves_dhcp(switch)
    found += [(text, "dhcp" if managed else "mac") for text in addresses6(switch, nic)]
    found += [(text, "document") for text in nic.extra_addresses]
    found += [(link_local_of(mac), "mac") for mac in (nic.mac, *nic.extra_macs)]
    known = [KnownAddress(address=text, known_from=source) for text, source in found]
    return known + [
        KnownAddress(address=one.address, known_from="dhcp-learned", ends_at=_time(one.ends_s)) for one in leases
    ]


def _says_more(kept: Iterable[LearnedAddress], new: Iterable[LearnedAddress]) -> bool:
    former = {(one.address, one.mac, one.client): one for one in kept}
    for one in new:
        known = former.pop((one.address, one.mac, one.client), None)
        if known is None or known.ends_at is None or one.ends_at is None or not one.lease_s:
            if known != one:
                return True
        elif abs((one.ends_at - known.ends_at).total_seconds()) * PERSIST_SHARE >= one.lease_s:
            return True
    return bool(former)


def _key(nic: Nic) -> tuple[str, str]:
    return nic.id, nic.switch_id


def _time(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)


def _learned(lease: Lease) -> LearnedAddress:
    return LearnedAddress(
        address=lease.address,
        mac=lease.mac,
        client=lease.client,
        learned_at=datetime.fromtimestamp(lease.learned_s, UTC),
        lease_s=lease.lease_s,
        ends_at=_time(lease.ends_s),
    )


def _lease(one: LearnedAddress) -> Lease:
    ends_s = None if one.ends_at is None else one.ends_at.timestamp()
    return Lease(one.address, one.mac, one.client, one.learned_at.timestamp(), one.lease_s, ends_s)
