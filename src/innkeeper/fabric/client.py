"""``FabricClient``: what other rooms ask of the fabric, over its control socket.

Newline-delimited JSON, one object a request, answers in any order:

    {"id": 7, "op": "disk_show", "disk_id": "..."}  ->  {"id": 7, "result": {...}} | {"id": 7, "problem": {...}}

Every operation may be repeated with the same effect, so a request that was under way when the fabric went away is sent
again once it is back.
"""

from __future__ import annotations

import asyncio
import base64
import json
from itertools import count
from pathlib import Path
from typing import Any

from innkeeper.model.problems import Problem, Unavailable, from_dict

PATIENCE_S = 10.0
"""How long an operation waits for a fabric that is away; a restart takes far less."""
MAX_LINE_BYTES = 64 << 20
_PAUSE_S = 0.02
_LONGEST_PAUSE_S = 0.5


class FabricClient:
    """One connection to a fabric; use from one event loop. Operations raise the ``Problem`` that the fabric answers,
    and ``Unavailable`` (``fabric.unreachable``) when it stays away for ``PATIENCE_S``.
    """

    def __init__(self, socket_path: Path, *, patience_s: float = PATIENCE_S) -> None:
        self._path = socket_path
        self._patience_s = patience_s
        self._numbers = count(1)
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._writer: asyncio.StreamWriter | None = None
        self._receiver: asyncio.Task[None] | None = None
        self._connecting = asyncio.Lock()

    async def connect(self) -> None:
        """Connect now. Raises ``Unavailable`` (``fabric.unreachable``)."""
        await self._connected(asyncio.get_running_loop().time() + self._patience_s)

    async def close(self) -> None:
        """Let go; what waits for an answer fails."""
        if self._receiver is not None:
            self._receiver.cancel()
            await asyncio.gather(self._receiver, return_exceptions=True)
        self._lose(self._writer)

    async def _connected(self, deadline: float) -> asyncio.StreamWriter:
        pause_s = _PAUSE_S
        async with self._connecting:
            while self._writer is None:
                try:
                    reader, writer = await asyncio.open_unix_connection(str(self._path), limit=MAX_LINE_BYTES)
                except OSError as refused:
                    if asyncio.get_running_loop().time() + pause_s > deadline:
                        raise self._unreachable(str(refused)) from refused
                    await asyncio.sleep(pause_s)
                    pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
                    continue
                self._writer = writer
                self._receiver = asyncio.create_task(self._receive(reader, writer))
            return self._writer

    def _unreachable(self, cause: str) -> Unavailable:
        return Unavailable(
            "fabric.unreachable", "the fabric does not answer", cause=cause, remedy="see 'inn logs', then run 'inn up'"
        )

    async def _receive(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                answer = json.loads(line)
                waiter = self._waiting.pop(answer["id"], None)
                if waiter is not None and not waiter.done():
                    waiter.set_result(answer)
        except (OSError, ValueError, KeyError, TypeError):
            pass  # a broken line is a lost connection: what waits is asked again
        finally:
            self._lose(writer)

    def _lose(self, writer: asyncio.StreamWriter | None) -> None:
        """Give that connection up; nothing to do when another has taken its place."""
        if writer is None or self._writer is not writer:
            return
        writer.close()
        self._writer = None
        waiting, self._waiting = self._waiting, {}
        for waiter in waiting.values():
            if not waiter.done():
                waiter.set_exception(ConnectionResetError("the fabric went away"))

    async def _call(self, op: str, **arguments: Any) -> Any:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._patience_s
        while True:
            writer = await self._connected(deadline)
            number = next(self._numbers)
            waiter: asyncio.Future[dict[str, Any]] = loop.create_future()
            self._waiting[number] = waiter
            try:
                writer.write(json.dumps({"id": number, "op": op, **arguments}).encode() + b"\n")
                await writer.drain()
                answer = await waiter
            except OSError as lost:
                # The receiver may not have seen it yet, and would not as long as this goes on without waiting.
                self._lose(writer)
                if waiter.done() and not waiter.cancelled():
                    waiter.exception()  # sending failed before the answer was waited for: it is seen here
                if loop.time() > deadline:
                    raise self._unreachable(str(lost)) from lost
                continue
            finally:
                self._waiting.pop(number, None)
            if "problem" in answer:
                raise self._problem(answer["problem"])
            return answer["result"]

    @staticmethod
    def _problem(members: dict[str, Any]) -> Problem:
        return from_dict(members)

    def of(self, pool_id: str | None) -> FabricClient:
        """The same fabric, with every operation in that pool: ``client.of(pool_id).disk_ls()``; None: as without."""
        return _InPool(self, pool_id)

    # --- pools ---

    async def pool_ls(self) -> list[dict[str, Any]]:
        """Every pool, with the problem of one that is closed."""
        return list(await self._call("pool_ls"))

    async def pool_create(self, pool_id: str, path: str) -> dict[str, Any]:
        """Found a pool in an empty directory."""
        return dict(await self._call("pool_create", pool_id=pool_id, path=path))

    async def pool_open(self, pool_id: str) -> dict[str, Any]:
        """Open a pool that is closed, now that what kept it closed is gone."""
        return dict(await self._call("pool_open", pool_id=pool_id))

    async def pool_rm(self, pool_id: str) -> None:
        """Give up a pool that holds nothing, or one that is closed."""
        await self._call("pool_rm", pool_id=pool_id)

    # --- one pool: the default one, or that of ``of`` ---

    async def ping(self) -> str:
        return str(await self._call("ping"))

    async def pool_show(self) -> dict[str, Any]:
        return dict(await self._call("pool_show"))

    async def drain(self) -> None:
        """Move everything from the log into groups."""
        await self._call("drain")

    async def sweep(self) -> dict[str, Any]:
        """Take back dead space now."""
        return dict(await self._call("sweep"))

    async def check(self) -> dict[str, Any]:
        """Verify every checksum of the pool."""
        return dict(await self._call("check"))

    async def figures(self, disk_id: str | None = None, storage_id: str | None = None) -> dict[str, Any]:
        """What a disk, the disks of a storage, or all disks hold and take; see ``fabric.figures``."""
        return dict(await self._call("figures", disk_id=disk_id, storage_id=storage_id))

    async def places(self, disk_id: str) -> list[dict[str, Any]]:
        """How much of what a disk reaches is on each device."""
        return list(await self._call("places", disk_id=disk_id))

    async def hot(self) -> list[dict[str, Any]]:
        """The groups that were read most of late, with the disks that reach them."""
        return list(await self._call("hot"))

    async def metrics(self) -> dict[str, Any]:
        """What the stages, the disks' clients and the QoS policies have done since the fabric started."""
        return dict(await self._call("metrics"))

    async def curate_plan(self) -> dict[str, Any]:
        """Begin a pass of the curator; what is left to be packed anew."""
        return dict(await self._call("curate_plan"))

    async def curate_next(self) -> dict[str, Any]:
        """Pack the next group anew; what is left."""
        return dict(await self._call("curate_next"))

    async def curator_pause(self, paused: bool) -> dict[str, Any]:
        """Let background work rest, or go on."""
        return dict(await self._call("curator_pause", paused=paused))

    async def cache_resize(self, limit_bytes: int | None) -> dict[str, Any]:
        """Bound the content cache; None: the fabric's own choice."""
        return dict(await self._call("cache_resize", limit_bytes=limit_bytes))

    async def device_add(self, device_id: str, path: str, tier: str, **store: Any) -> dict[str, Any]:
        """Take a directory or an object store (``endpoint``, ``region``, ``credentials``) into the pool, or call its
        draining off."""
        return dict(await self._call("device_add", device_id=device_id, path=path, tier=tier, **store))

    async def device_rm(self, device_id: str) -> None:
        """Begin to drain a device; it is gone from ``device_ls`` when that is done."""
        await self._call("device_rm", device_id=device_id)

    async def device_ls(self) -> list[dict[str, Any]]:
        return list(await self._call("device_ls"))

    async def tier(self) -> dict[str, int]:
        """Make the moves between devices that are due, now."""
        return dict(await self._call("tier"))

    async def scrub(self, after: int = 0) -> dict[str, Any]:
        """Verify some groups behind number ``after``; the ``next`` of the answer goes on."""
        return dict(await self._call("scrub", after=after))

    async def damage_ls(self) -> list[dict[str, Any]]:
        """What the scrub found damaged, with the disks and snapshots that need it."""
        return list(await self._call("damage_ls"))

    async def repair(self, group: int, slot: int, data: bytes) -> bool:
        """Put a damaged extent right; whether there was need to."""
        answer = await self._call("repair", group=group, slot=slot, data_base64=base64.b64encode(data).decode())
        return bool(answer["repaired"])

    async def shutdown(self) -> None:
        """End the fabric process; its keeper starts it again unless it is ending too."""
        await self._call("shutdown")

    # --- storages ---

    async def storage_create(self, storage_id: str, **policy: Any) -> dict[str, Any]:
        """``policy``: what is left out is as in ``fabric.policy.Policy()``."""
        return dict(await self._call("storage_create", storage_id=storage_id, **policy))

    async def storage_set(self, storage_id: str, **policy: Any) -> dict[str, Any]:
        """Change a policy, for what is drained from now on."""
        return dict(await self._call("storage_set", storage_id=storage_id, **policy))

    async def storage_ls(self) -> list[dict[str, Any]]:
        return list(await self._call("storage_ls"))

    async def qos_set(self, qos_id: str, **policy: Any) -> dict[str, Any]:
        """Make or change a QoS policy; ``policy`` as ``fabric.qos.QosPolicy``."""
        return dict(await self._call("qos_set", qos_id=qos_id, **policy))

    async def qos_ls(self) -> list[dict[str, Any]]:
        return list(await self._call("qos_ls"))

    async def qos_rm(self, qos_id: str) -> None:
        await self._call("qos_rm", qos_id=qos_id)

    async def storage_rm(self, storage_id: str) -> None:
        await self._call("storage_rm", storage_id=storage_id)

    # --- disks ---

    async def disk_create(self, disk_id: str, size_bytes: int, storage_id: str, **settings: Any) -> dict[str, Any]:
        """``settings``: as ``fabric.policy.DiskSettings``."""
        return dict(
            await self._call("disk_create", disk_id=disk_id, size_bytes=size_bytes, storage_id=storage_id, **settings)
        )

    async def disk_set(self, disk_id: str, **changes: Any) -> dict[str, Any]:
        """Change the storage and the settings of a disk, in use or not."""
        return dict(await self._call("disk_set", disk_id=disk_id, **changes))

    async def disk_show(self, disk_id: str) -> dict[str, Any]:
        return dict(await self._call("disk_show", disk_id=disk_id))

    async def disk_ls(self) -> list[dict[str, Any]]:
        return list(await self._call("disk_ls"))

    async def disk_resize(self, disk_id: str, size_bytes: int) -> dict[str, Any]:
        return dict(await self._call("disk_resize", disk_id=disk_id, size_bytes=size_bytes))

    async def disk_rm(self, disk_id: str) -> None:
        await self._call("disk_rm", disk_id=disk_id)

    async def disk_clone(self, disk_id: str, snapshot_id: str) -> dict[str, Any]:
        return dict(await self._call("disk_clone", disk_id=disk_id, snapshot_id=snapshot_id))

    async def disk_revert(self, disk_id: str, snapshot_id: str) -> dict[str, Any]:
        return dict(await self._call("disk_revert", disk_id=disk_id, snapshot_id=snapshot_id))

    # --- moving a disk to another pool: begin, step until ready, switch; see ``fabric.moving`` ---

    async def disk_move_begin(self, disk_id: str, storage_id: str) -> dict[str, Any]:
        """Begin to move a disk to the pool of that storage; ``state`` is ``moved`` where it is there."""
        return dict(await self._call("disk_move_begin", disk_id=disk_id, storage_id=storage_id))

    async def disk_move_step(self, disk_id: str) -> dict[str, Any]:
        """Copy some more; ``state`` is ``ready`` where little is left."""
        return dict(await self._call("disk_move_step", disk_id=disk_id))

    async def disk_move_switch(self, disk_id: str) -> dict[str, Any]:
        """Let the disk be in its new pool from now on; its clients are held back for a moment."""
        return dict(await self._call("disk_move_switch", disk_id=disk_id))

    async def disk_move_cancel(self, disk_id: str) -> None:
        """Leave the disk where it is; one that has been moved stays moved."""
        await self._call("disk_move_cancel", disk_id=disk_id)

    async def move_ls(self) -> list[dict[str, Any]]:
        """The moves that have begun and not ended."""
        return list(await self._call("move_ls"))

    # --- snapshots ---

    async def snapshot_create(self, snapshots: dict[str, str]) -> list[dict[str, Any]]:
        """``{snapshot_id: disk_id}``: one instant over all the disks."""
        return list(await self._call("snapshot_create", snapshots=snapshots))

    async def snapshot_ls(self, disk_id: str | None = None) -> list[dict[str, Any]]:
        return list(await self._call("snapshot_ls", disk_id=disk_id))

    async def snapshot_show(self, snapshot_id: str) -> dict[str, Any]:
        return dict(await self._call("snapshot_show", snapshot_id=snapshot_id))

    async def snapshot_rm(self, snapshot_id: str) -> None:
        await self._call("snapshot_rm", snapshot_id=snapshot_id)

    async def snapshot_sizes(self, disk_id: str) -> list[dict[str, Any]]:
        """What each snapshot of the disk changed, and what would be free without it."""
        return list(await self._call("snapshot_sizes", disk_id=disk_id))

    async def changed_blocks(
        self, snapshot_id: str, base_snapshot_id: str | None = None, start_block: int = 0, limit: int = 65536
    ) -> dict[str, Any]:
        """``{"blocks": [[block, kind, hash, location], ...], "next": block | None}``; see ``Pool.changed_blocks``."""
        return dict(
            await self._call(
                "changed_blocks",
                snapshot_id=snapshot_id,
                base_snapshot_id=base_snapshot_id,
                start_block=start_block,
                limit=limit,
            )
        )

    # --- attachments and holds ---

    async def attach(
        self,
        attachment_id: str,
        *,
        disk_id: str | None = None,
        snapshot_id: str | None = None,
        role: str = "writer",
        uid: int | None = None,
    ) -> dict[str, Any]:
        return dict(
            await self._call(
                "attach", attachment_id=attachment_id, disk_id=disk_id, snapshot_id=snapshot_id, role=role, uid=uid
            )
        )

    async def reconnect(self, attachment_id: str) -> None:
        """Drop an attachment's connections: its clients connect again, and see what has changed of the disk."""
        await self._call("reconnect", attachment_id=attachment_id)

    async def detach(self, attachment_id: str) -> None:
        """End an attachment; its connections are closed."""
        await self._call("detach", attachment_id=attachment_id)

    async def attachment_ls(self) -> list[dict[str, Any]]:
        return list(await self._call("attachment_ls"))

    async def hold(self, hold_id: str, snapshot_id: str) -> None:
        await self._call("hold", hold_id=hold_id, snapshot_id=snapshot_id)

    async def release(self, hold_id: str) -> None:
        await self._call("release", hold_id=hold_id)


class _InPool(FabricClient):
    """What ``FabricClient.of`` gives; it has no connection of its own."""

    def __init__(self, whole: FabricClient, pool_id: str | None) -> None:
        super().__init__(whole._path)
        self._whole = whole
        self._pool_id = pool_id

    async def _call(self, op: str, **arguments: Any) -> Any:
        return await self._whole._call(op, pool=self._pool_id, **arguments)
