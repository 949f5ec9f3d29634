"""Named ACLs: lines of access control that many cards are given, changed for all of them at once."""

from __future__ import annotations

from collections.abc import Iterable

from innkeeper.daemon.rooms import Rooms
from innkeeper.daemon.switches import Switches
from innkeeper.model import requests as ask, views
from innkeeper.model.acl import AclRule
from innkeeper.model.problems import Conflict, Problem
from innkeeper.model.resources import Acl, Nic
from innkeeper.network.features import ACL_LOG, lacking, lacks
from innkeeper.system.kernel_parts import kernel_parts

_NAMED = 5


def check_logs(rules: Iterable[AclRule]) -> None:
    """Raises ``Unavailable`` (``network.kernel_lacks``) for a rule that logs where this kernel cannot."""
    if logs := [rule for rule in rules if rule.log]:
        for part in lacking(ACL_LOG, kernel_parts(ACL_LOG.parts)):
            raise lacks(part, f"the log of rule {logs[0].line}", ACL_LOG.still)


class Acls:
    """The ``acl`` noun."""

    def __init__(self, rooms: Rooms, switches: Switches) -> None:
        self._rooms = rooms
        self._switches = switches

    async def create(self, request: ask.AclCreate, *, dry_run: bool = False) -> Acl | views.Plan:
        """Raises ``Conflict`` (``acl.name_taken``), ``Unavailable`` (``network.kernel_lacks``)."""
        self._rooms.check_name_free(Acl, request.name)
        check_logs(request.rules)
        if dry_run:
            lines = [str(line) for line in (*request.entries, *request.rules)]
            return views.Plan(summary=f"create acl {request.name}", steps=lines)
        return self._rooms.store.create(Acl(**dict(request)))

    async def ls(self) -> list[Acl]:
        return self._rooms.store.ls(Acl)

    async def show(self, ref: str) -> views.AclDetail:
        acl = self._rooms.store.get(Acl, ref)
        return views.AclDetail(**dict(acl), nics=[nic.name for nic in self._users(acl)])

    async def set(self, ref: str, request: ask.AclSet, *, revision: int | None = None) -> Acl:
        """Raises ``Conflict`` (``acl.name_taken``, ``state.stale``), ``Failed`` (``nft.refused``), ``Unavailable``
        (``network.kernel_lacks``).
        """
        acl = self._rooms.store.get(Acl, ref)
        check_logs(request.rules or ())
        if request.name is not None and request.name != acl.name:
            self._rooms.check_name_free(Acl, request.name)
        changes = {name: value for name, value in request if value is not None}
        stored = self._rooms.change(acl, revision, **changes)
        try:
            await self._switches.acl_changed(stored)
        except Problem:
            self._rooms.take_back(acl, changes)
            raise
        return stored

    async def rm(self, ref: str) -> Acl:
        """Raises ``Conflict`` (``acl.in_use``)."""
        acl = self._rooms.store.get(Acl, ref)
        if users := self._users(acl):
            raise Conflict(
                "acl.in_use",
                f"acl {acl.name!r} holds for {len(users)} cards",
                cause=", ".join(nic.name for nic in users[:_NAMED]),
                remedy=f"take it from them first: inn nic acl detach NIC {acl.name}",
            )
        self._rooms.store.delete("acl", acl.id)
        return acl

    def _users(self, acl: Acl) -> list[Nic]:
        return [nic for nic in self._rooms.store.ls(Nic) if acl.id in nic.acl.sets]
