"""The control socket: the pool's operations for root, as newline-delimited JSON (see ``client``)."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from innkeeper.fabric.nbd.server import NbdServer, peer_uid
from innkeeper.fabric.pool import Pool
from innkeeper.model.problems import Failed, Invalid, Problem

log = logging.getLogger(__name__)

MAX_LINE_BYTES = 16 << 20
_WORKERS = 4
OPERATIONS = frozenset(
    (
        *("ping", "pool_show", "figures", "places", "hot", "cache_resize", "drain", "sweep", "tier", "check"),
        *("scrub", "damage_ls", "repair", "curate_plan", "curate_next", "curator_show", "curator_pause"),
        *("storage_create", "storage_set", "storage_ls", "storage_rm"),
        *("device_add", "device_rm", "device_ls"),
        *("disk_create", "disk_show", "disk_ls", "disk_resize", "disk_rm", "disk_clone", "disk_revert"),
        *("disk_set", "qos_set", "qos_ls", "qos_rm"),
        *("snapshot_create", "snapshot_ls", "snapshot_show", "snapshot_rm", "changed_blocks"),
        *("attach", "detach", "attachment_ls", "hold", "release"),
    )
)


class ControlSocket:
    """Serves ``pool`` at ``path`` to root and to the uid that the fabric runs under."""

    def __init__(self, pool: Pool, nbd: NbdServer, path: Path, shut_down: Callable[[], None]) -> None:
        self._pool = pool
        self._nbd = nbd
        self._path = path
        self._shut_down = shut_down
        self._workers = ThreadPoolExecutor(_WORKERS, thread_name_prefix="control")
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
            pool = await asyncio.get_running_loop().run_in_executor(self._workers, self._pool.metrics)
            return {**pool, **self._nbd.facts()}
        if operation not in OPERATIONS:
            raise Invalid("control.operation", f"there is no operation {operation!r}")
        work = getattr(self._pool, operation)
        result = await asyncio.get_running_loop().run_in_executor(self._workers, lambda: work(**arguments))
        if operation == "detach":
            self._nbd.drop(str(arguments["attachment_id"]))
        return result
