"""Moving a disk from one pool to another while it is used.

The disk keeps its id. In the pool that it comes to it is *arriving*: it is filled from snapshots of the disk where it
is, and nobody sees it. First the disk's own snapshots are copied, the oldest first, each as what it changed, so that
the tree comes along; then snapshots that the move takes for itself, each as what was written while the one before was
copied, until little is left. Then the switch, while the disk's connections are held back and all that they asked for
has been answered (``nbd.server``). Each of its steps is durable before the next begins:

1. the newest snapshot is taken in the old pool, and what it changed is copied and synced in the new one;
2. the old pool notes that the disk is *leaving* for the new one, which decides from now on;
3. one transaction in the new pool makes the disk there the one, with its attachments: **this decides**;
4. the old pool forgets the disk, its snapshots and its attachments.

A crash before 3 leaves the disk where it was, a crash after it where it is to be; what is left of the other goes once
both pools are open again (``settle_moves``). While the new pool is closed, a leaving disk is refused: only that pool
knows. Every step may be repeated; a copy that was cut short begins its last snapshot again.
"""

from __future__ import annotations

import logging
import threading
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid5

from innkeeper.fabric.catalog import READER, Attachment, Move, Snapshot
from innkeeper.fabric.layout import BLOCK
from innkeeper.fabric.moves import Piece
from innkeeper.fabric.pool import Pool
from innkeeper.fabric.pools import Pools
from innkeeper.fabric.volume import Volume
from innkeeper.model.problems import NotFound, Problem, Unavailable

log = logging.getLogger(__name__)
STEP_BLOCKS = 256
"""Blocks that one step copies."""
LITTLE_BLOCKS = 128
"""So much may be left for the switch."""
MOST_BLOCKS = 2048
"""With more than that the switch is called off and the copying goes on."""
MOST_ROUNDS = 6
"""After so many rounds the switch is tried though more than a little was written in the last."""


@dataclass(slots=True)
class Round:
    """How far the copy is; forgotten with the process."""

    next_block: int = 0
    blocks: int = 0
    """Copied for the goal so far."""
    last: int | None = None
    """Copied for the last of the move's own snapshots."""
    rounds: int = 0
    copied_bytes: int = 0


class Moves:
    """The moves of disks between the pools; for worker threads. Calls for one disk wait for each other."""

    def __init__(self, pools: Pools) -> None:
        self._pools = pools
        self._rounds: dict[str, Round] = {}
        self._turns: dict[str, threading.Lock] = {}

    def _turn(self, disk_id: str) -> threading.Lock:
        """Who was cancelled may have asked for a step that is still under way."""
        return self._turns.setdefault(disk_id, threading.Lock())

    def begin(self, disk_id: str, storage_id: str) -> dict[str, Any]:
        """Begin to move the disk to the pool of that storage: ``{"state": "copying"}``, or ``moved`` where it is there.

        Within its pool the disk only changes its storage. Raises ``NotFound``, ``NoSpace`` (``pool.promised``).
        """
        with self._turn(disk_id):
            settle_moves(self._pools)
            target, source = self._pools.owner("storage", storage_id), self._pools.owner("disk", disk_id)
            target.catalog.storage(storage_id)
            disk = source.catalog.disk(disk_id)
            if source is target:
                source.disk_set(disk_id, storage_id=storage_id)
                return {"state": "moved"}
            for other in self._pools.all():
                if other is not target:
                    other.arrive_cancel(disk_id)
            target.arrive_begin(disk, storage_id, str(source.pool_id))
            return {"state": "copying"}

    def step(self, disk_id: str) -> dict[str, Any]:
        """Copy some more: ``{"state", "copied_bytes", "data_bytes"}``; ``ready`` where little is left for ``switch``.

        Raises ``NotFound`` (``move.not_found``), ``NoSpace``, ``Unavailable`` (``move.busy``).
        """
        with self._turn(disk_id):
            source, target, move = self._ends(disk_id)
            disk = source.catalog.disk(disk_id)
            self._tidy(source, move)
            move = self._on_firm_ground(source, target, move)
            now = self._rounds.setdefault(disk_id, Round())
            state = "copying"
            if not move.goal:
                state = self._next_goal(source, target, disk_id, now)
            if state == "copying":
                self._copy_some(source, target, target.catalog.moves[disk_id], now)
            return {"state": state, "copied_bytes": now.copied_bytes, "data_bytes": source.held_bytes(disk)}

    def cancel(self, disk_id: str) -> None:
        """Leave the disk where it is; one that has been moved stays moved."""
        with self._turn(disk_id):
            for pool in self._pools.all():
                pool.arrive_cancel(disk_id)
            self._rounds.pop(disk_id, None)
            for pool in self._pools.all():
                if disk_id in pool.catalog.disks:
                    self._tidy(pool, Move(disk_id, "", ""))

    def switch(self, disk_id: str) -> dict[str, Any]:
        """Let the disk be in its new pool from now on; its connections are held back and idle.

        Raises ``Unavailable`` (``move.busy``) where too much is left: ``step`` goes on; ``Conflict``
        (``snapshot.attached``, ``snapshot.held``) while a snapshot of the disk is used.
        """
        with ExitStack() as held:
            held.enter_context(self._turn(disk_id))
            source, target, _ = self._ends(disk_id)
            for pool in sorted((source, target), key=lambda each: str(each.pool_id)):
                held.enter_context(pool.catalog.admin)
            source, target, move = self._ends(disk_id)
            disk = source.catalog.disk(disk_id)
            self._check_ready(source, target, move)
            self._copy_rest(source, target, move)
            attachments = [each for each in source.catalog.attachments.values() if each.disk_id == disk_id]
            source.leave_note(disk_id, str(target.pool_id))
            try:
                target.arrive_finish(disk, _kept_parent(source, disk.parent), attachments)
            except Problem:
                source.leave_forget(disk_id)
                raise
            try:
                source.leave_finish(disk_id)
            except Problem as later:
                log.warning("what disk %s leaves in %s goes later: %s", disk_id, source.path, later)
            self._rounds.pop(disk_id, None)
        return {"state": "moved"}

    # -- what to copy ----------------------------------------------------------------------------------------------

    def _ends(self, disk_id: str) -> tuple[Pool, Pool, Move]:
        """The pool that has the disk, the one that it comes to, and what that notes of it."""
        for pool in self._pools.all():
            move = pool.catalog.moves.get(disk_id)
            if move is not None and pool.catalog.arrives(disk_id):
                return self._pools.get(move.pool), pool, move
        raise NotFound("move.not_found", f"disk {disk_id} is not being moved", remedy="see 'inn disk show'")

    def _tidy(self, source: Pool, move: Move) -> None:
        """Remove the move's own snapshots that nothing is copied from any more."""
        for each in [each for each in source.catalog.snapshots.values() if each.disk_id == move.disk_id]:
            if _own(each.id) and each.id not in (move.base, move.goal):
                source.snapshot_rm(each.id)

    def _on_firm_ground(self, source: Pool, target: Pool, move: Move) -> Move:
        """Begin anew where somebody removed the snapshot that the copy stands on, or is on its way to."""
        known = source.catalog.snapshots
        if move.goal and _own(move.goal) and move.goal not in known:
            source.snapshot_create({move.goal: move.disk_id})
        if (move.base and move.base not in known) or (move.goal and move.goal not in known):
            storage_id = target.catalog.disk(move.disk_id).storage_id
            target.arrive_cancel(move.disk_id)
            target.arrive_begin(source.catalog.disk(move.disk_id), storage_id, move.pool)
            self._rounds.pop(move.disk_id, None)
        return target.catalog.moves[move.disk_id]

    def _next_goal(self, source: Pool, target: Pool, disk_id: str, now: Round) -> str:
        """Choose what to copy next, and note it; ``ready`` where that can wait for the switch."""
        pending = _pending(source, target, disk_id)
        if pending is None and now.last is not None and (now.last <= LITTLE_BLOCKS or now.rounds >= MOST_ROUNDS):
            return "ready"
        goal = pending.id if pending is not None else _fresh(source, disk_id)
        target.arrive_note(disk_id, goal=goal)
        if pending is None:
            source.snapshot_create({goal: disk_id})
        now.next_block = now.blocks = 0
        return "copying"

    def _copy_some(self, source: Pool, target: Pool, move: Move, now: Round) -> None:
        page = source.changed_blocks(move.goal, move.base or None, now.next_block, STEP_BLOCKS)
        snapshot = source.catalog.snapshot(move.goal)
        if not now.next_block:
            self._resize(target, snapshot)
        now.copied_bytes += self._copy(source, target, snapshot, page["blocks"])
        now.blocks += len(page["blocks"])
        if page["next"] is not None:
            now.next_block = page["next"]
            return
        target.sync_blocking(target.log.sequence)
        if _own(move.goal):
            now.last, now.rounds = now.blocks, now.rounds + 1
        else:
            target.arrive_snapshot(move.disk_id, snapshot, _kept_parent(source, snapshot.parent))
        target.arrive_note(move.disk_id, base=move.goal, goal="")
        self._tidy(source, target.catalog.moves[move.disk_id])

    def _resize(self, target: Pool, snapshot: Snapshot) -> None:
        if target.catalog.disk(snapshot.disk_id).size_bytes != snapshot.size_bytes:
            target.disk_resize(snapshot.disk_id, snapshot.size_bytes)

    def _copy(
        self, source: Pool, target: Pool, snapshot: Snapshot, blocks: list[list[Any]], *, may_drain: bool = True
    ) -> int:
        """Copy blocks as the snapshot has them; how many bytes."""
        reader = Volume(source, Attachment("", None, snapshot.id, READER, None, 0), None, snapshot)
        pieces: list[Piece] = []
        size = 0
        for block, kind, *_ in blocks:
            length = min(BLOCK, snapshot.size_bytes - block * BLOCK)
            if length > 0:
                data = reader.read_blocking(block * BLOCK, length) if kind != "hole" else None
                pieces.append((block, data))
                size += len(data or b"")
        target.arrive_write(snapshot.disk_id, pieces, may_drain=may_drain)
        return size

    # -- the switch ------------------------------------------------------------------------------------------------

    def _check_ready(self, source: Pool, target: Pool, move: Move) -> None:
        """Everything but the newest writes has been copied, and no snapshot is used.

        Raises ``Conflict``, ``Unavailable`` (``move.busy``).
        """
        if move.goal or not move.base or _pending(source, target, move.disk_id) is not None:
            raise _busy("a snapshot is still to be copied")
        for each in source.catalog.snapshots.values():
            if each.disk_id == move.disk_id:
                source.catalog.refuse_in_use("snapshot", snapshot_id=each.id)

    def _copy_rest(self, source: Pool, target: Pool, move: Move) -> None:
        disk_id = move.disk_id
        for each in [each.id for each in target.catalog.snapshots.values() if each.disk_id == disk_id]:
            if each not in source.catalog.snapshots:
                target.snapshot_rm(each)
        goal = _fresh(source, disk_id)
        target.arrive_note(disk_id, goal=goal)
        source.snapshot_create({goal: disk_id})
        page = source.changed_blocks(goal, move.base, 0, MOST_BLOCKS)
        if page["next"] is not None:
            raise _busy("too much was written meanwhile")
        snapshot = source.catalog.snapshot(goal)
        self._resize(target, snapshot)
        self._copy(source, target, snapshot, page["blocks"], may_drain=False)
        target.sync_blocking(target.log.sequence)


def _pending(source: Pool, target: Pool, disk_id: str) -> Snapshot | None:
    """The oldest snapshot of the disk that has not been copied."""
    left = [
        each
        for each in source.catalog.snapshots.values()
        if each.disk_id == disk_id and not _own(each.id) and each.id not in target.catalog.snapshots
    ]
    return min(left, key=lambda each: (each.sequence, each.id), default=None)


def _kept_parent(source: Pool, snapshot_id: str) -> str:
    """The nearest snapshot, from that one down, that is not the move's own."""
    while snapshot_id and _own(snapshot_id):
        known = source.catalog.snapshots.get(snapshot_id)
        snapshot_id = known.parent if known is not None else ""
    return snapshot_id


def _fresh(source: Pool, disk_id: str) -> str:
    """An id for a snapshot of the move's own: of UUID version 5, where all others are of version 4."""
    return str(uuid5(UUID(disk_id), source.io.random.token(16).hex()))


def _own(snapshot_id: str) -> bool:
    return UUID(snapshot_id).version == 5


def _busy(cause: str) -> Unavailable:
    return Unavailable("move.busy", "the disk cannot be switched yet", cause=cause, remedy="go on copying")


def settle_moves(pools: Pools) -> None:
    """Finish or take back what a crash left of switches, as far as both pools are open."""
    for pool in pools.all():
        for move in list(pool.catalog.moves.values()):
            try:
                _settle(pools, pool, move)
            except Problem as later:
                log.warning("the move of disk %s out of %s is settled later: %s", move.disk_id, pool.path, later)


def _settle(pools: Pools, pool: Pool, move: Move) -> None:
    if pool.catalog.arrives(move.disk_id):
        return
    other = pools.known(move.pool)
    if other is not None and other.pool is None:
        return
    ends = [pool] if other is None or other.pool is None else sorted((pool, other.pool), key=lambda p: str(p.pool_id))
    with ExitStack() as held:
        for each in ends:
            held.enter_context(each.catalog.admin)
        if move.disk_id not in pool.catalog.moves:
            return
        if pools.counts(pool, move.disk_id):
            pool.leave_forget(move.disk_id)
        else:
            pool.leave_finish(move.disk_id)
