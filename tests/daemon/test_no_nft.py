"""Where nft is missing the daemon starts, its switches are degraded, and they stand once it is there."""

from __future__ import annotations

import asyncio
import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest
from switch_lab import in_namespace, new_namespace, run_in

from innkeeper.daemon.journal import Journal
from innkeeper.daemon.rooms import Rooms
from innkeeper.daemon.switches import Switches
from innkeeper.model import requests as ask
from innkeeper.model.problems import Unavailable
from innkeeper.model.resources import Switch, SwitchKind
from innkeeper.network import nft
from innkeeper.state.store import Store
from innkeeper.system.paths import Paths


@pytest.mark.root
def test_without_nft_switches_are_degraded_and_are_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = Paths.open(tmp_path / "inn", create=True)
    monkeypatch.setattr(nft, "_LIBRARY", "libnftables-that-is-missing.so.1")

    async def live() -> None:
        store, unused = Store(paths.database), [None] * (len(dataclasses.fields(Rooms)) - 2)
        switch = store.create(Switch(name="lan", switch_kind=SwitchKind.PRIVATE, number=1))
        rooms: Any = dataclasses.replace(Rooms(paths, store, *unused), journal=Journal(paths.journal))
        switches = Switches(rooms)
        await switches.ensure_all()
        try:
            (condition,) = store.get(Switch, "lan").conditions
            assert condition.reason == "nft.missing"
            with pytest.raises(Unavailable) as refused:
                await switches.create(ask.SwitchCreate(name="yard", kind=SwitchKind.PRIVATE))
            assert refused.value.code == "network.not_started" and "libnftables" in str(refused.value.cause)
            assert [one.name for one in store.ls(Switch)] == ["lan"]
            monkeypatch.undo()
            await switches._repair()
            assert store.get(Switch, "lan").conditions == []
            assert paths.bridge(switch.number) in await asyncio.to_thread(run_in, namespace, "ip", "link")
        finally:
            await switches.down_all()
            store.close()

    with new_namespace("bare") as namespace:
        in_namespace(namespace, lambda: asyncio.run(live()))
    shutil.rmtree(paths.run, ignore_errors=True)
