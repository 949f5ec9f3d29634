"""The control socket: the pools' operations for root, as newline-delimited JSON (see ``client``)."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from innkeeper.fabric.moving import Moves, settle_moves
from innkeeper.fabric.nbd.server import NbdServer, peer_uid
from innkeeper.fabric.pools import Pools
from innkeeper.fabric.routing import call
from innkeeper.model.problems import Failed, Invalid, Problem
from innkeeper.system.priority import level

log = logging.getLogger(__name__)

MAX_LINE_BYTES = 16 << 20
_WORKERS = 4
MOVES = {"disk_move_begin": "begin", "disk_move_step": "step", "disk_move_cancel": "cancel"}
"""Operations of ``Moves``."""
POOLS_OPERATIONS = frozenset(("pool_ls", "pool_create", "pool_open", "pool_rm"))
OPERATIONS = frozenset(
    (
        *("ping", "pool_show", "figures", "places", "hot", "cache_resize", "drain", "sweep", "tier", "check"),
        *("scrub", "damage_ls", "repair", "curate_plan", "curate_next", "curator_show", "curator_pause"),
        *("storage_create", "storage_set", "storage_ls", "storage_rm"),
        *("device_add", "device_rm", "device_ls"),
        *("disk_create", "disk_show", "disk_ls", "disk_resize", "disk_rm", "disk_clone", "disk_revert"),
        *("disk_set", "move_ls", "qos_set", "qos_ls", "qos_rm"),
        *("snapshot_create", "snapshot_ls", "snapshot_show", "snapshot_rm", "snapshot_sizes", "changed_blocks"),
        *("attach", "detach", "attachment_ls", "hold", "release"),
    )
)


def _let_files_go() -> None:
    """Close what nothing refers to any more, so that the file system of a pool that was given up can be unmounted; a
    pool that was open from the start is among what the service has frozen."""
    gc.unfreeze()
    gc.collect()
    gc.freeze()


class ControlSocket:
    """Serves ``pools`` at ``path`` to root and to the uid that the fabric runs under."""

    def __init__(self, pools: Pools, nbd: NbdServer, path: Path, shut_down: Callable[[], None]) -> None:
        self._pools = pools
        self._nbd = nbd
        self._moves = Moves(pools)
        self._path = path
        self._shut_down = shut_down
        self._workers = ThreadPoolExecutor(_WORKERS, thread_name_prefix="control", initializer=level)
        self._server: asyncio.Server | None = None
        self._clients: set[asyncio.Task[Any]] = set()

    async def start(self) -> None:
        """Listen. A socket that an earlier fabric left is replaced: the pool's lock says that this is the only one."""
        self._path.unlink(missing_ok=True)
        self._server = await asyncio.start_unix_server(self._serve, str(self._path), limit=MAX_LINE_BYTES)
        self._path.chmod(0o600)

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        for client in tuple(self._clients):
            client.cancel()
        await asyncio.gather(*self._clients, return_exceptions=True)
        await asyncio.to_thread(self._workers.shutdown)
        self._path.unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        me = asyncio.current_task()
        assert me is not None
        self._clients.add(me)
        requests: set[asyncio.Task[None]] = set()
        try:
            sock: socket.socket = writer.get_extra_info("socket")
            if peer_uid(sock) not in (0, os.geteuid()):
                return
            while line := await reader.readline():
                task = asyncio.create_task(self._answer(line, writer))
                requests.add(task)
                task.add_done_callback(requests.discard)
        except (OSError, ValueError) as lost:
            log.debug("a control client is lost: %s", lost)
        finally:
            await asyncio.gather(*requests, return_exceptions=True)
            writer.close()
            self._clients.discard(me)

    async def _answer(self, line: bytes, writer: asyncio.StreamWriter) -> None:
        number: Any = None
        try:
            request = json.loads(line)
            number = request.pop("id")
            answer = {"id": number, "result": await self._perform(request.pop("op"), request)}
        except Problem as problem:
            answer = {"id": number, "problem": problem.as_dict()}
        except (ValueError, KeyError, TypeError, AttributeError) as wrong:
            odd = Invalid("control.request", "the request is not understood", cause=f"{type(wrong).__name__}: {wrong}")
            answer = {"id": number, "problem": odd.as_dict()}
        except OSError as refused:
            log.exception("a control operation failed")
            failed = Failed("pool.io", "the pool's files refuse", cause=str(refused), remedy="look at the pool's disk")
            answer = {"id": number, "problem": failed.as_dict()}
        try:
            writer.write(json.dumps(answer).encode() + b"\n")
            await writer.drain()
        except OSError as gone:
            log.debug("a control client went away: %s", gone)

    async def _perform(self, operation: str, arguments: dict[str, Any]) -> Any:
        if operation == "shutdown":
            self._shut_down()
            return None
        if operation == "reconnect":
            self._nbd.drop(str(arguments["attachment_id"]))
            return None
        if operation == "metrics":
            return {
                "pools": await self._run(lambda: [pool.metrics() for pool in self._pools.all()]),
                **self._nbd.facts(),
            }
        if operation in POOLS_OPERATIONS:
            done = await self._run(lambda: getattr(self._pools, operation)(**arguments))
            if operation == "pool_rm":
                await self._run(_let_files_go)
            if operation == "pool_open":
                await self._run(lambda: settle_moves(self._pools))
            return done
        if operation == "disk_move_switch":
            return await self._switch(**arguments)
        if operation in MOVES:
            return await self._run(lambda: getattr(self._moves, MOVES[operation])(**arguments))
        if operation not in OPERATIONS:
            raise Invalid("control.operation", f"there is no operation {operation!r}")
        result = await self._run(lambda: call(self._pools, operation, arguments))
        if operation == "detach":
            self._nbd.drop(str(arguments["attachment_id"]))
        return result

    async def _switch(self, disk_id: str) -> Any:
        """Switch a disk to its new pool while its connections are held back."""
        attached = [
            each.id
            for pool in self._pools.all()
            for each in list(pool.catalog.attachments.values())
            if each.disk_id == disk_id
        ]
        async with self._nbd.held_back(attached):
            return await self._run(lambda: self._moves.switch(disk_id))

    async def _run(self, work: Callable[[], Any]) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._workers, work)
