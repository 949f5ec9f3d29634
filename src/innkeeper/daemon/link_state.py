"""The link of a running guest's card: down while its port changes, so that the guest asks DHCP anew."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

from innkeeper.compute.guest import Guest
from innkeeper.model.problems import Problem
from innkeeper.model.resources import Nic, VmState

log = logging.getLogger(__name__)

_LINK_DOWN_S = 2.0
"""Linux tells programs of links once a second at most: what is shorter, none of them sees."""


@asynccontextmanager
async def link_down(guest: Guest | None, nic_id: str) -> AsyncIterator[None]:
    """A card has no link for the time of the block, and long enough for the guest to see it, unless that one ends.

    Raises what ``Guest.set_link`` raises, before the block.
    """
    if guest is None:
        yield
        return
    await guest.set_link(nic_id, up=False)
    try:
        yield
        if guest.state == VmState.RUNNING:
            await asyncio.sleep(_LINK_DOWN_S)
    finally:
        try:
            await asyncio.shield(guest.set_link(nic_id, up=True))
        except Problem as refused:  # the guest has ended meanwhile or is saved: the port's change is in force
            log.warning("the link of card %s is not given back: %s", nic_id, refused)


async def link_up(guest: Guest, nics: Iterable[Nic]) -> None:
    """Give all cards their links: a daemon may have died while one had none, or memory was written at that moment."""
    for nic in nics:
        await guest.set_link(nic.id, up=True)
