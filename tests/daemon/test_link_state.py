"""A card's link while its port changes, of a guest that may end meanwhile."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from innkeeper.daemon import link_state
from innkeeper.model.problems import Conflict
from innkeeper.model.resources import VmState


class Changeable:
    """What a guest shows of itself here; a real one cannot be ended at just that moment."""

    def __init__(self) -> None:
        self.state = VmState.RUNNING
        self.links: list[tuple[str, bool]] = []

    async def set_link(self, nic_id: str, *, up: bool) -> None:
        if self.state == VmState.STOPPED:
            raise Conflict("vm.state", "it has ended", remedy="start it")
        self.links.append((nic_id, up))


@pytest.fixture
def guest(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(link_state, "_LINK_DOWN_S", 0.01)
    return Changeable()


def test_the_link_comes_back_also_when_the_change_fails(guest: Any) -> None:
    async def change() -> None:
        async with link_state.link_down(guest, "card"):
            raise ValueError("refused")

    with pytest.raises(ValueError, match="refused"):
        asyncio.run(change())
    assert guest.links == [("card", False), ("card", True)]


@pytest.mark.parametrize("within", [True, False], ids=["within the block", "while the link is away"])
def test_that_the_guest_ends_meanwhile_is_no_failure_of_the_change(guest: Any, within: bool) -> None:
    async def change() -> str:
        async with link_state.link_down(guest, "card"):
            if within:
                guest.state = VmState.STOPPED
            else:
                asyncio.get_running_loop().call_later(0.001, setattr, guest, "state", VmState.STOPPED)
        return "in force"

    assert asyncio.run(change()) == "in force"
    assert guest.links == [("card", False)]


def test_a_guest_that_ended_before_is_said(guest: Any) -> None:
    guest.state = VmState.STOPPED

    async def change() -> None:
        async with link_state.link_down(guest, "card"):
            pytest.fail("nothing is changed")

    with pytest.raises(Conflict):
        asyncio.run(change())


def test_without_a_guest_nothing_waits() -> None:
    async def change() -> str:
        async with link_state.link_down(None, "card"):
            return "in force"

    assert asyncio.run(change()) == "in force"


def test_all_cards_get_their_links(guest: Any) -> None:
    cards: Any = [SimpleNamespace(id="one"), SimpleNamespace(id="two")]
    asyncio.run(link_state.link_up(guest, cards))
    assert guest.links == [("one", True), ("two", True)]
