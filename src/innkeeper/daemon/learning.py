"""Learning the addresses of cards on external switches from the DHCP servers of the network outside.

Only what a server there answers to what a card asked counts. It is kept in the inn's state, and forgotten when the
card's port goes: a guest that starts anew asks anew, or has an address of another kind by then.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from contextlib import aclosing, suppress
from datetime import UTC, datetime

from innkeeper.daemon.ports import addresses6, vlan_policy
from innkeeper.daemon.rooms import Rooms
from innkeeper.daemon.seeds import serves_dhcp
from innkeeper.model.learning import LearnedAddress
from innkeeper.model.problems import NotFound, Problem, Unavailable
from innkeeper.model.resources import LearnedAddresses, Nic, Switch, SwitchKind, Vm
from innkeeper.model.views import KnownAddress, KnownFrom
from innkeeper.network import learned
from innkeeper.network.dhcp_listener import Listener
from innkeeper.network.dhcp_messages import Message
from innkeeper.network.learned import JUST_BEGUN_S, Asked, Lease, Leases
from innkeeper.network.passed_leases import KEPT_S
from innkeeper.network.policy import link_local_of
from innkeeper.network.switch import SwitchRunner
from innkeeper.network.vlan_policy import OWN_VLAN, carries

log = logging.getLogger(__name__)

RETRY_S = 2.0
PERSIST_SHARE = 8
"""A renewal that adds less than this part of a lease to what is kept is not worth a write."""

UNHEARD = "unheard"
"""The client of a lease that passed while nobody listened."""

Apply = Callable[[list[Nic]], Awaitable[None]]


class Learning:
    """``apply`` brings the rules of those cards' ports to what is known now."""

    def __init__(self, rooms: Rooms, runner: SwitchRunner, apply: Apply) -> None:
        self._rooms = rooms
        self._runner = runner
        self._apply = apply
        self._held: dict[tuple[str, str], Leases] | None = None
        self._documents: dict[tuple[str, str], LearnedAddresses] = {}
        """As they were stored last."""
        self._owners: dict[str, dict[str, str]] = {}
        """By the switch's id: mac -> id of the card. Nobody can make the daemon read all cards by asking much."""
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
            self._documents = {(one.nic_id, one.switch_id): one for one in self._stored()}
            kept = {key: tuple(map(_lease, one.addresses)) for key, one in self._documents.items()}
            self._held = {key: learned.heard_again(leases, now_s) for key, leases in kept.items()}
        return self._held

    def _stored(self) -> list[LearnedAddresses]:
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

    async def settle(self, plugged: set[str]) -> None:
        """Forget what was learned of cards whose port is gone, and begin to listen."""
        for nic in self._rooms.store.ls(Nic):
            if nic.id not in plugged:
                self.forget(nic)
        present = {one.id for one in self._stored()}
        for one in self._rooms.store.ls(LearnedAddresses):
            if one.id not in present:
                self._rooms.store.delete("learned", one.id)
        self._clock = asyncio.create_task(self._keep_time())
        self.follow(plugged)
        try:
            await self._take_over(plugged)
        except Problem as refused:
            log.warning("what passed while nobody listened is not learned: %s", refused)

    async def _take_over(self, plugged: set[str]) -> None:
        """Learn what the kernel noted while no daemon listened; for how long it was given is not known then."""
        now_s, changed, before = time.time(), list[Nic](), dict[str, dict[str, str]]()
        cards = {self._rooms.paths.tap(nic.number): nic for nic in self._rooms.store.ls(Nic) if nic.id in plugged}
        for tap, address in await self._runner.passed_leases():
            held = self._all.get(_key(nic), ()) if (nic := cards.get(tap)) is not None else ()
            if nic is None or address in [one.address for one in held]:
                continue
            before.setdefault(nic.id, self.known(nic))
            mac = nic.extra_macs[0] if nic.extra_macs else nic.mac  # whose it is is not known either
            lease = Lease(address, mac, UNHEARD, now_s, KEPT_S, now_s + KEPT_S)
            self._keep(nic, learned.given(held, lease, now_s))
            changed.append(nic)
        await self._settled(list({nic.id: nic for nic in changed}.values()), before)

    async def port_is_new(self, nic: Nic) -> None:
        """Nothing passed to it yet: what did was for a port of the same name."""
        with suppress(Problem):
            await self._runner.forget_passed([self._rooms.paths.tap(nic.number)])

    async def let_go(self) -> None:
        """The daemon ends."""
        tasks = [task for _, task in self._ears.values()] + ([self._clock] if self._clock is not None else [])
        self._clock = None
        self._ears.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def follow(self, plugged: set[str]) -> None:
        """Listen at the uplink of each external switch that has cards with a port, and nowhere else."""
        if self._clock is None:
            return
        self._owners = {}
        for nic in self._rooms.store.ls(Nic):
            if nic.id in plugged:
                macs = dict.fromkeys((nic.mac, *nic.extra_macs), nic.id)
                self._owners.setdefault(nic.switch_id, {}).update(macs)
        wanted: dict[str, str] = {}
        for switch in self._rooms.store.ls(Switch):
            if switch.switch_kind == SwitchKind.EXTERNAL and switch.id in self._owners:
                try:
                    standing = self._runner.standing(self._rooms.paths.bridge(switch.number))
                except Unavailable:  # they are tried again
                    return
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
        for key in [key for key in self._documents if key[0] == nic.id]:
            self._rooms.store.delete("learned", self._documents.pop(key).id)

    def forget_before(self, nic: Nic, then_s: float) -> None:
        """The card is in another network since then."""
        left = tuple(one for one in self._all.get(_key(nic), ()) if one.learned_s >= then_s)
        self.forget(nic)
        if left:
            self._keep(nic, left)

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
        now_s = time.time()
        answers, unasked = self._answers(switch_id, messages, now_s, strict=strict)
        nics = {nic_id: self._card(switch_id, nic_id) for nic_id, _, _ in answers}
        present = [nic for nic in nics.values() if nic is not None]
        before = {nic.id: self.known(nic) for nic in present}
        for nic_id, message, client in answers:
            if (nic := nics[nic_id]) is not None:
                self._take(nic, message, client, now_s)
        await self._settled([nic for nic in present if self.known(nic) != before[nic.id]], before)
        for nic_id in sorted(unasked - before.keys()):  # the kernel, which does not know who asked, has noted it
            if (nic := self._card(switch_id, nic_id)) is not None:
                await self.port_is_new(nic)

    def _answers(
        self, switch_id: str, messages: list[Message], now_s: float, *, strict: bool
    ) -> tuple[list[tuple[str, Message, str]], set[str]]:
        """(id of the card, what a server said, the client that had asked); and cards that had not asked.

        What is asked is noted.
        """
        owners = self._owners.get(switch_id, {})
        asked = self._asked.setdefault(switch_id, Asked())
        asked.keep(owners)
        found, unasked = [], set[str]()
        for message in messages:
            if (nic_id := owners.get(message.mac)) is None:
                continue
            if message.kind == "ask":
                asked.note(message.mac, message.version, message.number, message.client, now_s)
                continue
            client = asked.client(message.mac, message.version, message.number, now_s)
            if not self._is_in(switch_id, nic_id, message.vlan_id):
                continue
            if client is not None or not strict:
                found.append((nic_id, message, client or ""))
            else:
                unasked.add(nic_id)
        return found, unasked

    def _is_in(self, switch_id: str, nic_id: str, vlan_id: int | None) -> bool:
        """Whether frames of that VLAN get to the card: what was said in another was not said to it."""
        nic = self._card(switch_id, nic_id)
        return nic is not None and _hears(nic, vlan_id)

    def _card(self, switch_id: str, nic_id: str) -> Nic | None:
        try:
            nic = self._rooms.store.get(Nic, nic_id)
        except NotFound:
            return None
        return nic if nic.switch_id == switch_id else None

    def _take(self, nic: Nic, message: Message, client: str, now_s: float) -> None:
        """What a server said to a card."""
        if message.kind == "refuse":
            self._keep(nic, learned.refused(self._all.get(_key(nic), ()), message.mac, client, now_s))
            return
        for address, lease_s in message.given:
            held = self._all.get(_key(nic), ())
            if address not in [one.address for one in held] and (
                lease_s == 0 or not self._may_have(nic, address, message.vlan_id, now_s)
            ):
                continue
            ends_s = None if lease_s is None else now_s + lease_s
            self._keep(nic, learned.given(held, Lease(address, message.mac, client, now_s, lease_s, ends_s), now_s))

    def _may_have(self, nic: Nic, address: str, vlan_id: int | None, now_s: float) -> bool:
        """Whether a server in that VLAN may give the card that address; another card there that had learned it loses
        it. The same address in another VLAN is another's.
        """
        for other in self._rooms.store.find(Nic, switch_id=nic.switch_id):
            if other.id == nic.id or not _hears(other, vlan_id):
                continue
            if address in (other.address, other.address6, *other.extra_addresses):
                log.warning("a DHCP server gave %s, the address of card %s, to card %s", address, other.name, nic.name)
                return False
            if held := self._all.get(_key(other)):
                self._keep(other, learned.lost(held, address, now_s))
        return True

    async def _settled(self, changed: list[Nic], before: dict[str, dict[str, str]]) -> None:
        """Bring the rules to it, then tell."""
        self._changed.set()
        if not changed:
            return
        try:
            await self._apply(changed)
            await self._runner.forget_passed(self._rooms.paths.tap(nic.number) for nic in changed)
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
        try:
            self._write(nic, [_learned(one) for one in leases], changed=leases != former)
        except Problem as refused:  # a disk is full, for instance: it holds all the same
            log.warning("what was learned of %s is not kept: %s", nic.name, refused)

    def _write(self, nic: Nic, addresses: list[LearnedAddress], *, changed: bool) -> None:
        document = self._documents.get(_key(nic))
        if document is None:
            made = LearnedAddresses(name=nic.id, nic_id=nic.id, switch_id=nic.switch_id, addresses=addresses)
            self._documents[_key(nic)] = self._rooms.store.create(made)
        elif changed and _says_more(document.addresses, addresses):
            self._documents[_key(nic)] = self._rooms.change(document, None, addresses=addresses)

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
        now_s, changed, before = time.time(), list[Nic](), dict[str, dict[str, str]]()
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


def _hears(nic: Nic, vlan_id: int | None) -> bool:
    """Whether frames of that VLAN outside (None: without a tag) get to the card."""
    return carries(vlan_policy(nic.vlan), OWN_VLAN if vlan_id is None else vlan_id)


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
