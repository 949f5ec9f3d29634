"""Meters of cards: what the kernel counts is added up in documents, so that restarts and re-plugs lose nothing."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping

from innkeeper.daemon.rooms import Rooms
from innkeeper.model.metering import MeterCount, MeterReport
from innkeeper.model.problems import Problem
from innkeeper.model.resources import MeterReading, Nic, now
from innkeeper.network.meter_dump import Count
from innkeeper.network.switch import SwitchRunner
from innkeeper.network.traffic import Meter
from innkeeper.observe.ports import PortFacts

log = logging.getLogger(__name__)

FOLD_INTERVAL_S = 60.0
"""A host that loses power loses at most this of what its meters counted."""


def fold(counts: list[MeterCount], kernel: Mapping[Meter, Count]) -> list[MeterCount]:
    """``counts`` with what the kernel's counters show now.

    A counter that shows less than it did was made anew: all that it shows is new. One that is not there will be.
    """
    known = {Meter(count.direction, count.remote): count for count in counts}
    found = []
    for meter in sorted(known.keys() | kernel.keys()):
        count = known.get(meter) or MeterCount(direction=meter.direction, remote=meter.remote)
        packets, octets = kernel.get(meter, (0, 0))
        anew = packets < count.seen_packets or octets < count.seen_bytes
        found.append(
            count.model_copy(
                update={
                    "packets": count.packets + packets - (0 if anew else count.seen_packets),
                    "bytes": count.bytes + octets - (0 if anew else count.seen_bytes),
                    "seen_packets": packets,
                    "seen_bytes": octets,
                }
            )
        )
    return found


def restart(kernel: Mapping[Meter, Count]) -> list[MeterCount]:
    """Counts that begin at zero with what the kernel shows now."""
    return [
        MeterCount(direction=meter.direction, remote=meter.remote, seen_packets=packets, seen_bytes=octets)
        for meter, (packets, octets) in sorted(kernel.items())
    ]


class Metering:
    """Meters and statistics of the ports of ``runner``."""

    def __init__(self, rooms: Rooms, runner: SwitchRunner) -> None:
        self._rooms = rooms
        self._runner = runner
        self._folding: asyncio.Task[None] | None = None
        self._lock = asyncio.Lock()

    async def settle(self) -> None:
        """Forget the meters of cards that are gone, and begin to add up now and then."""
        nics = {nic.id for nic in self._rooms.store.ls(Nic)}
        for reading in self._rooms.store.ls(MeterReading):
            if reading.nic_id not in nics:
                self._rooms.store.delete("meter", reading.id)
        self._folding = asyncio.create_task(self._keep_folding())

    async def let_go(self) -> None:
        """The daemon ends: add up once more."""
        if self._folding is not None:
            self._folding.cancel()
            await asyncio.gather(self._folding, return_exceptions=True)
            await self._fold_quietly()

    async def _keep_folding(self) -> None:
        while True:
            await asyncio.sleep(FOLD_INTERVAL_S)
            await self._fold_quietly()

    async def _fold_quietly(self) -> None:
        try:
            await self.fold()
        except Problem as refused:
            log.warning("the meters cannot be added up: %s", refused)
        except Exception:  # whatever it was, the next time may succeed
            log.exception("the meters cannot be added up")

    async def fold(self) -> None:
        """Add what the kernel has counted to the documents. Raises ``Failed`` (``network.meters``)."""
        async with self._lock:
            await self._fold()

    async def _fold(self) -> dict[str, dict[Meter, Count]]:
        kernel = await self._runner.meters()
        readings = {one.nic_id: one for one in self._rooms.store.ls(MeterReading)}
        for nic in self._rooms.store.ls(Nic):
            counted = kernel.get(self._rooms.paths.tap(nic.number), {})
            reading = readings.get(nic.id)
            if reading is None and not counted:
                continue
            reading = reading or self._rooms.store.create(MeterReading(name=nic.id, nic_id=nic.id))
            counts = fold(reading.counts, counted)
            if counts != reading.counts:
                self._rooms.change(reading, None, counts=counts)
        return kernel

    def _reading(self, nic: Nic) -> MeterReading | None:
        return next((one for one in self._rooms.store.find(MeterReading, nic_id=nic.id)), None)

    async def unplug(self, nic: Nic) -> None:
        """Keep what the card's meters have counted; its port is about to go."""
        if nic.traffic.meters or self._reading(nic) is not None:
            await self._fold_quietly()

    def forget(self, nic: Nic) -> None:
        """The card is gone."""
        if (reading := self._reading(nic)) is not None:
            self._rooms.store.delete("meter", reading.id)

    async def report(self, nic: Nic) -> MeterReport:
        """What the card's meters have counted up to now."""
        await self.fold()
        reading = self._reading(nic)
        return MeterReport(
            nic_id=nic.id,
            nic_name=nic.name,
            since=reading.created_at if reading else nic.created_at,
            counts=reading.counts if reading else [],
        )

    async def reset(self, nic: Nic) -> MeterReport:
        """Begin at zero."""
        async with self._lock:
            kernel = await self._fold()
            reading = self._reading(nic)
            if reading is not None:
                counts = restart(kernel.get(self._rooms.paths.tap(nic.number), {}))
                self._rooms.change(reading, None, counts=counts, created_at=now())
        return await self.report(nic)

    async def host_dropped(self) -> dict[str, int]:
        """What was dropped on its way to the host since the rules were loaded, by where it came from."""
        return await self._runner.host_dropped()

    async def facts(self) -> list[PortFacts]:
        """What is measured of every card whose port stands."""
        await self.fold()
        statistics, dropped = await self._runner.statistics(), await self._runner.all_counters()
        readings = {one.nic_id: one for one in self._rooms.store.ls(MeterReading)}
        found = []
        for nic in self._rooms.store.ls(Nic):
            tap = self._rooms.paths.tap(nic.number)
            if tap in statistics:
                reading = readings.get(nic.id)
                counts = tuple((one.remote, one.direction, one.bytes) for one in (reading.counts if reading else ()))
                found.append(PortFacts(nic.name, *statistics[tap], dropped.get(tap, {}), counts))
        return found
