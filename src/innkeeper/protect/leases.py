"""Leases: who uses a repository now, so that prune leaves alone what they stand on. Several inns may share one.

A lease is a blob ``leases/<kind>/<id>.<n>``, replaced by n + 1 while its holder lives. It is over when deleted, or
when its last renewal is older than ``TTL_S`` plus ``SKEW_S`` by the reader's clock. A holder that could not renew for
``TTL_S / 2`` must not publish: it checks itself with ``Lease.check``.
"""

from __future__ import annotations

import os
import secrets
import socket
import threading
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Literal, Self

from innkeeper.model.problems import Conflict, Corrupt, NotFound, Problem, Unavailable
from innkeeper.protect.blobs import Blobs
from innkeeper.protect.sealing import Key, open_document, seal_document
from innkeeper.system.clock import Clock

TTL_S = 600.0
SKEW_S = 300.0
RENEW_S = 60.0
LeaseKind = Literal["writer", "reader", "prune"]
LEASE_ID_BYTES = 16


@dataclass(frozen=True, slots=True)
class LeaseFacts:
    """A lease as others see it. ``roots``: (level, name in hexadecimal) of map nodes it stands on, ``names``:
    entries."""

    kind: LeaseKind
    id: str
    holder: str
    taken_at: float
    renewed_at: float
    roots: list[tuple[int, str]] = field(default_factory=list)
    names: list[str] = field(default_factory=list)

    def is_live(self, now: float) -> bool:
        return now - self.renewed_at <= TTL_S + SKEW_S


class Lease:
    """A lease held while the ``with`` block runs; renewed by a thread of its own."""

    def __init__(
        self,
        blobs: Blobs,
        key: Key,
        clock: Clock,
        kind: LeaseKind,
        roots: list[tuple[int, str]] | None = None,
        names: list[str] | None = None,
    ) -> None:
        self.id = secrets.token_hex(LEASE_ID_BYTES)
        self._blobs = blobs
        self._key = key
        self._clock = clock
        self._kind = kind
        self._roots = roots or []
        self._names = names or []
        self._taken_at = clock.now()
        self._number = 0
        self._renewed = (0.0, 0.0)
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._keep_renewing, name=f"lease-{kind}", daemon=True)

    @property
    def id_bytes(self) -> bytes:
        return bytes.fromhex(self.id)

    def _name(self, number: int) -> str:
        return f"leases/{self._kind}/{self.id}.{number}"

    def _renew(self) -> None:
        number = self._number + 1
        now = self._clock.now()
        document: dict[str, Any] = {
            "kind": self._kind,
            "id": self.id,
            "holder": f"{socket.gethostname()} process {os.getpid()}",
            "taken_at": self._taken_at,
            "renewed_at": now,
            "roots": self._roots,
            "names": self._names,
        }
        self._blobs.put(self._name(number), [seal_document(self._key, self._name(number), document)])
        previous, self._number, self._renewed = self._number, number, (now, self._clock.monotonic())
        if previous:
            self._blobs.delete(self._name(previous))

    def _keep_renewing(self) -> None:
        while not self._done.wait(RENEW_S):
            try:
                self._renew()
            except Problem:
                continue  # a full or absent repository: ``check`` says so when too much time has passed

    def check(self) -> None:
        """Raises ``Unavailable`` (``repository.lease_lost``) when others may take this lease for over."""
        now, monotonic = self._clock.now(), self._clock.monotonic()
        if max(now - self._renewed[0], monotonic - self._renewed[1]) > TTL_S / 2:
            raise Unavailable(
                "repository.lease_lost",
                "the lease on the repository could not be renewed in time",
                cause="the repository was out of reach, or this machine slept",
                remedy="run the backup again; what was stored already is not stored twice",
            )

    def __enter__(self) -> Self:
        self._renew()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()
        try:
            self._blobs.delete(self._name(self._number))
        except Problem:
            if kind is None:
                raise


def live_leases(blobs: Blobs, key: Key, clock: Clock, *, forget_dead: bool = False) -> list[LeaseFacts]:
    """All leases that are not over, one for each holder; with ``forget_dead`` the blobs of those that are over are
    deleted.

    Raises ``Corrupt`` (``repository.corrupt``).
    """
    newest: dict[tuple[str, str], LeaseFacts] = {}
    now = clock.now()
    for blob in list(blobs.ls("leases/")):
        try:
            document = open_document(key, blob.name, blobs.get(blob.name))
        except NotFound:
            continue  # renewed or ended between the listing and now
        except Corrupt:
            # A lease that nobody can read protects nothing that could be named: be safe and say so.
            raise
        document["roots"] = [(int(level), str(name)) for level, name in document["roots"]]
        facts = LeaseFacts(**document)
        if not facts.is_live(now):
            if forget_dead:
                blobs.delete(blob.name)
            continue
        held = newest.get((facts.kind, facts.id))
        if held is None or facts.renewed_at >= held.renewed_at:
            newest[(facts.kind, facts.id)] = facts
    return list(newest.values())


def refuse_second_prune(leases: list[LeaseFacts], own_id: str) -> None:
    """Raises ``Conflict`` (``repository.prune_running``) when a prune other than ``own_id`` has a lease."""
    for lease in leases:
        if lease.kind == "prune" and lease.id != own_id:
            raise Conflict(
                "repository.prune_running",
                f"{lease.holder} prunes this repository already",
                remedy="wait until it has ended; the lease of a holder that died is over after 15 minutes",
            )
