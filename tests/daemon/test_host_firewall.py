"""The host's firewall as the daemon keeps it: what waits to be confirmed, restarts, and switches that take cards."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from host_lab import HOST4, HOST6
from knocking import listening, reaches
from still_kernel import StillKernel
from still_switches import still_switches
from switch_lab import run_in
from switches_on_host import Inn, code_of, inn_on_host

from innkeeper.daemon.switches import Switches
from innkeeper.model import requests as ask, views
from innkeeper.model.journal import JournalFilter
from innkeeper.model.resources import HostSettings, SwitchKind


@pytest.fixture
def inn(tmp_path: Path) -> Iterator[Inn]:
    with inn_on_host(tmp_path) as made:
        yield made


async def change(switches: Switches, **wish: Any) -> views.FirewallView:
    made = await switches.firewall.set(ask.HostFirewallSet(**wish))
    assert isinstance(made, views.FirewallView)
    return made


class Reached:
    """Whether the world reaches a service of the host, by IPv4 and IPv6 alike."""

    def __init__(self, inn: Inn, service: socket.socket) -> None:
        self._inn, self._service = inn, service

    async def __call__(self) -> bool:
        found = {await asyncio.to_thread(self._knock, address) for address in (HOST4, HOST6)}
        assert len(found) == 1
        return found.pop()

    def _knock(self, address: str) -> bool:
        return reaches(self._inn.host.world, address, socket.SOCK_STREAM, 3142, self._service)


@pytest.fixture
def reached(inn: Inn) -> Iterator[Reached]:
    with listening(inn.host.namespace, socket.SOCK_STREAM, 3142) as service:
        yield Reached(inn, service)


async def returned(switches: Switches) -> views.FirewallView:
    """The firewall when its trial has come out."""
    for _ in range(100):
        shown = await switches.firewall.show()
        if shown.trial is None:
            return shown
        await asyncio.sleep(0.05)
    raise AssertionError("it waits for ever")


@pytest.mark.root
def test_a_change_is_confirmed_and_stays(inn: Inn, reached: Reached) -> None:
    async def enable(switches: Switches) -> None:
        assert await reached()
        made = await change(switches, enabled=True, management=["eth9"])
        assert not made.enabled and made.trial is not None and made.trial.management == ["eth9"]
        assert made.findings == ["there is no interface or external switch eth9 now, so nothing comes in there"]
        assert not await reached()
        kept = await switches.firewall.confirm()
        assert kept.enabled and kept.trial is None and kept.dropped_packets >= 2
        assert await switches.firewall.confirm() == kept.model_copy(update={"dropped_packets": kept.dropped_packets})
        assert not await reached()

    async def stands(switches: Switches) -> None:
        assert (await switches.firewall.show()).management == ["eth9"]
        assert not await reached()

    async def opens(switches: Switches) -> None:
        await stands(switches)
        made = await change(switches, enabled=False)
        assert made.trial is None and not made.enabled and made.management == ["eth9"]
        assert await reached()

    inn.run(enable, ends=False)
    assert inn.told == ["FirewallTried", "FirewallConfirmed"]
    inn.run(stands, ends=True)
    assert asyncio.run(reached()), "the inn is down"
    inn.run(opens)
    assert inn.told[-1] == "FirewallChanged"


@pytest.mark.root
def test_what_is_not_confirmed_is_taken_back_and_what_held_before_holds(inn: Inn, reached: Reached) -> None:
    async def lock_out(switches: Switches) -> None:
        await change(switches, enabled=True, management=["eth0"])
        await switches.firewall.confirm()
        await change(switches, management=[], confirm_within_s=1)
        assert not await reached()
        shown = await returned(switches)
        assert (shown.enabled, shown.management, shown.not_confirmed) == (True, ["eth0"], True)
        assert await reached()
        assert await code_of(switches.firewall.confirm()) == "firewall.not_confirmed"
        await change(switches, allow=["tcp/3142@192.0.2.0/24", "tcp/3142@2001:db8::/32"], confirm_within_s=1)
        await change(switches, management=[])
        trial = (await switches.firewall.show()).trial
        assert trial is not None and trial.management == [] and len(trial.allow) == 2, "changes add up"
        assert await reached()
        await asyncio.sleep(1.2)
        assert (await switches.firewall.show()).trial == trial, "it waits anew from the last change"
        await change(switches, management=["eth0"], allow=[])
        assert (await switches.firewall.show()).trial is None, "it is what held before: nothing is to be confirmed"

    inn.run(lock_out)
    assert inn.told.count("FirewallReturned") == 1


@pytest.mark.root
def test_what_nobody_confirms_while_no_daemon_lives_is_taken_back(inn: Inn, reached: Reached) -> None:
    async def lock_out(switches: Switches) -> None:
        await change(switches, enabled=True, confirm_within_s=1.5)
        assert not await reached()

    async def comes_back(switches: Switches) -> None:
        shown = await switches.firewall.show()
        assert shown.not_confirmed and shown.trial is None and not shown.enabled
        assert await reached()

    inn.run(lock_out, ends=False)
    asyncio.run(asyncio.sleep(1.6))
    assert asyncio.run(reached())
    inn.run(comes_back)
    assert inn.told[-1] == "FirewallReturned"
    inn.run(lock_out)
    assert asyncio.run(reached()), "the inn went down"
    inn.run(comes_back)


@pytest.mark.root
def test_a_daemon_that_comes_back_in_time_waits_on(inn: Inn, reached: Reached) -> None:
    async def lock_out(switches: Switches) -> None:
        await change(switches, enabled=True, confirm_within_s=8)

    async def waits(switches: Switches) -> None:
        assert (await switches.firewall.show()).trial is not None
        assert not await reached()

    async def confirms(switches: Switches) -> None:
        await waits(switches)
        assert (await switches.firewall.confirm()).enabled
        assert not await reached()

    inn.run(lock_out, ends=False)
    inn.run(waits, ends=False)
    inn.run(confirms)


@pytest.mark.root
def test_a_trial_that_others_flush_is_over(inn: Inn, reached: Reached) -> None:
    async def flushed(switches: Switches) -> None:
        await change(switches, enabled=True)
        run_in(inn.host.namespace, "nft", "flush", "ruleset")
        shown = await switches.firewall.show()
        assert shown.not_confirmed and shown.trial is None and await reached()

    inn.run(flushed)


@pytest.mark.root
def test_a_card_that_a_switch_takes_stays_a_management_network(inn: Inn, reached: Reached) -> None:
    async def take(switches: Switches) -> None:
        await change(switches, enabled=True, management=["eth0"])
        await switches.firewall.confirm()
        await switches.create(ask.SwitchCreate(name="lan", kind=SwitchKind.EXTERNAL, uplinks=["eth0"]))
        await switches.confirm("lan")
        assert await reached()
        await change(switches, management=["lan"])
        await switches.firewall.confirm()
        assert await reached()
        await switches.set("lan", ask.SwitchSet(name="court"))
        assert (await switches.firewall.show()).management == ["court"]
        assert await code_of(switches.rm("court")) == "firewall.named"
        await change(switches, management=["eth0"])
        await switches.firewall.confirm()
        await switches.rm("court")
        assert await reached()

    inn.run(take)


# --- without a kernel -------------------------------------------------------------------------------------------------


def test_what_makes_no_sense_is_refused_and_a_plan_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    StillKernel(tmp_path, monkeypatch, real_uplinks=True)

    async def live() -> None:
        async with still_switches(tmp_path) as (rooms, switches):
            await switches.create(ask.SwitchCreate(name="lan", kind=SwitchKind.PRIVATE))
            for place in ("lan", "a-name-that-is-too-long"):
                for wish in ({"management": [place]}, {"allow": [f"tcp/22%{place}"]}):
                    assert await code_of(change(switches, **wish)) == "firewall.place"
            plan = await switches.firewall.set(
                ask.HostFirewallSet(enabled=True, allow=["tcp/22@192.0.2.0/24%inn-none"], echo=False), dry_run=True
            )
            assert isinstance(plan, views.Plan)
            assert plan.steps == [
                "let nothing else reach the host from outside",
                "allow: tcp/22@192.0.2.0/24%inn-none",
                "answer no pings",
                "note: there is no interface or external switch inn-none now, so nothing comes in there",
                "unless 'inn host firewall confirm' comes within 30 s, all is as it was",
            ]
            assert '+inet standing_allow_on4: "inn-none" . 6 . 22 . 192.0.2.0/24' in plan.diff
            assert rooms.store.ls(HostSettings) == [] and rooms.journal.ls(JournalFilter()) == []
            await change(switches, management=["eth1"])
            await switches.allow_docker(True)
            assert (await switches.firewall.show()).management == ["eth1"], "kept beside what else is settled"

    asyncio.run(live())
