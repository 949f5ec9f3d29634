"""What a repair tells is written down for the card or the switch that it is about."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from innkeeper.daemon import watchman
from innkeeper.daemon.journal import Journal
from innkeeper.daemon.rooms import Rooms
from innkeeper.daemon.watchman import subject_of
from innkeeper.model.resources import Nic, Resource, Switch, new_id
from innkeeper.network.report import Report
from innkeeper.state.store import Store
from innkeeper.system.paths import Paths

LAN = Switch(name="lan")
CARD = Nic(name="web-0", vm_id=new_id(), switch_id=LAN.id, mac="52:54:00:00:00:01")
DEVICES: dict[str, Resource] = {"inbr-k3f91": LAN, "intp-k3f91": CARD}


@pytest.mark.parametrize(
    ("sentence", "subject"),
    [
        ("make tap intp-k3f91", CARD),
        ("plug tap intp-k3f91 into inbr-k3f91", CARD),
        ("give inbr-k3f91 the address 10.77.0.1/24", LAN),
        ("remove intp-k3f99, which belongs to nothing", None),
        ("load the rules of inn_k3f9", None),
    ],
)
def test_a_repair_is_about_a_card_a_switch_or_all(sentence: str, subject: Resource | None) -> None:
    assert subject_of(sentence, DEVICES) is subject


class Runner:
    """Tells each of ``said`` once, and is silent then."""

    def __init__(self, *said: frozenset[str] | Exception) -> None:
        self.said = list(said)

    async def touched(self, _timeout_s: float) -> frozenset[str]:
        await asyncio.sleep(0)
        if not self.said:
            await asyncio.Event().wait()
        told = self.said.pop(0)
        if isinstance(told, Exception):
            raise told
        return told


@pytest.mark.parametrize(
    ("said", "fails"),
    [
        ([frozenset({"inbr-k3f91"})] * 2, ProcessLookupError("it has just ended")),
        ([frozenset[str]()] * 2, KeyError("gw-1")),
        ([OSError("no buffer space")], None),
    ],
)
def test_what_nobody_foresaw_does_not_end_the_watch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: list[frozenset[str] | Exception], fails: Exception | None
) -> None:
    for interval in ("LOOK_INTERVAL_S", "SETTLE_S", "REPAIR_INTERVAL_S"):
        monkeypatch.setattr(watchman, interval, 0.0)
    paths = Paths.open(tmp_path / "inn", create=True)
    store, unused = Store(paths.database), None
    rooms: Any = Rooms(paths, store, unused, unused, Journal(paths.journal))  # type: ignore[arg-type]
    looks: list[None] = []
    enough = asyncio.Event()

    async def repair() -> Report:
        looks.append(None)
        if len(looks) == 1 and fails is not None:
            raise fails
        enough.set()
        return Report()

    async def live() -> None:
        watching = asyncio.create_task(watchman.Watchman(rooms, Runner(*said), repair).run())  # type: ignore[arg-type]
        await asyncio.wait_for(enough.wait(), 10)
        assert not watching.done()
        watching.cancel()

    asyncio.run(live())
    store.close()
