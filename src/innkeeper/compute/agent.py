"""The guest agent (qemu-ga) over its unix socket. Everything that it says is hostile input: bounded, typed, timed.

Protocol: one JSON object a line (QEMU's guest agent reference). ``guest-sync-delimited`` with a fresh id after each
(re)connection and after every late reply, so that an answer never meets the wrong question.

Problems: ``agent.absent`` (no agent has opened its port), ``agent.timeout``, ``agent.garbled``, ``agent.refused``.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import json
import logging
import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from innkeeper.model.problems import Failed, Invalid, Problem, Unavailable

log = logging.getLogger(__name__)

MAX_REPLY_BYTES = 64 * 1024 * 1024
"""qemu-ga keeps at most 16 MiB of each output; two of them in base64 fit."""
MAX_STDIN_BYTES = 8 * 1024 * 1024
_READ_BYTES = 256 * 1024
_THAW_TRIES = 10


@dataclass(frozen=True, slots=True)
class ExecResult:
    """A command that ran in the guest. ``status`` is its exit status, 128 + n when signal n ended it."""

    status: int
    stdout: bytes
    stderr: bytes
    truncated: bool


@dataclass(frozen=True, slots=True)
class GuestInterface:
    """A network interface as the guest describes it: bounded, otherwise unchecked text from the guest."""

    name: str
    mac: str | None
    addresses: tuple[str, ...]


class Agent:
    """One guest's agent. Commands run one at a time; several callers may use it at once."""

    def __init__(self, socket_path: Path, name: str) -> None:
        self._path = socket_path
        self._name = name
        self._turn = asyncio.Lock()
        self._open = asyncio.Event()
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._in_step = False
        self._rest = bytearray()
        self._frozen = False

    @property
    def present(self) -> bool:
        """Whether the guest holds the agent's port open."""
        return self._open.is_set()

    @property
    def frozen(self) -> bool:
        """Whether ``freeze`` holds the guest's file systems at this moment."""
        return self._frozen

    def port_changed(self, is_open: bool) -> None:
        """Told by the monitor (VSERPORT_CHANGE, query-chardev): the guest opened or closed the agent's port."""
        self._in_step = False
        if is_open:
            self._open.set()
        else:
            self._open.clear()

    async def ready(self, timeout_s: float = 60.0) -> None:
        """Wait until the agent answers. Raises ``Unavailable`` (``agent.absent``, ``agent.timeout``)."""
        deadline = asyncio.get_running_loop().time() + timeout_s
        try:
            await asyncio.wait_for(self._open.wait(), timeout_s)
        except TimeoutError:
            raise self._absent() from None
        while True:
            rest_s = deadline - asyncio.get_running_loop().time()
            try:
                await self.call("guest-ping", timeout_s=max(0.1, min(5.0, rest_s)))
                return
            except Unavailable:
                if rest_s <= 5.0:
                    raise
                await asyncio.sleep(0.1)

    async def call(self, command: str, arguments: Mapping[str, Any] | None = None, *, timeout_s: float = 10.0) -> Any:
        """Run an agent command and return its value.

        Raises ``Unavailable`` (``agent.absent``, ``agent.timeout``), ``Failed`` (``agent.refused``, ``agent.garbled``).
        """
        if not self.present:
            raise self._absent()
        request: dict[str, Any] = {"execute": command}
        if arguments:
            request["arguments"] = dict(arguments)
        try:
            async with asyncio.timeout(timeout_s), self._turn:
                reply = await self._ask(request)
        except TimeoutError:
            raise Unavailable(
                "agent.timeout",
                f"{self._name}: the guest agent did not answer {command} within {timeout_s:g} s",
                cause="the guest is busy, stopped or hung",
                remedy="try again, or look at the guest's console",
            ) from None
        except (OSError, EOFError) as lost:
            await self.close()
            raise Unavailable(
                "agent.absent",
                f"{self._name}: the agent's channel was lost",
                cause=str(lost),
                remedy="try again once the guest runs and its agent answers",
            ) from lost
        if "error" in reply:
            error = reply["error"]
            text = str(error.get("desc", error) if isinstance(error, dict) else error)[:500]
            raise Failed(
                "agent.refused",
                f"{self._name}: the guest agent refused {command}",
                cause=text,
                remedy="see that the guest has a recent qemu-guest-agent which allows it",
            )
        return reply.get("return")

    async def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        if not self._in_step:
            await self._synchronise()
        self._in_step = False
        await self._send(json.dumps(request).encode() + b"\n")
        reply = self._parse(await self._line())
        if not ("return" in reply or "error" in reply):
            raise self._garbled("an answer that is neither a value nor an error")
        self._in_step = True
        return reply

    async def _synchronise(self) -> None:
        """Drop whatever is on the way and get in step: the answer to a fresh id follows a byte 0xFF."""
        if self._writer is None:
            self._reader, self._writer = await asyncio.open_unix_connection(str(self._path))
            self._rest.clear()
        number = secrets.randbits(48)
        request = {"execute": "guest-sync-delimited", "arguments": {"id": number}}
        await self._send(b"\xff" + json.dumps(request).encode() + b"\n")
        while True:
            while (mark := self._rest.rfind(b"\xff")) < 0:
                self._rest.clear()
                await self._receive()
            del self._rest[: mark + 1]
            try:
                reply = self._parse(await self._line())
            except Failed:
                continue
            if reply.get("return") == number:
                return

    async def _send(self, data: bytes) -> None:
        assert self._writer is not None
        self._writer.write(data)
        await self._writer.drain()

    async def _receive(self) -> None:
        assert self._reader is not None
        chunk = await self._reader.read(_READ_BYTES)
        if not chunk:
            raise EOFError("QEMU closed the channel")
        self._rest += chunk

    async def _line(self) -> bytes:
        searched = 0
        while (end := self._rest.find(b"\n", searched)) < 0:
            searched = len(self._rest)
            if searched > MAX_REPLY_BYTES:
                self._rest.clear()
                raise self._garbled(f"an answer longer than {MAX_REPLY_BYTES} bytes")
            await self._receive()
        line = bytes(self._rest[:end])
        del self._rest[: end + 1]
        return line

    def _parse(self, line: bytes) -> dict[str, Any]:
        try:
            reply = json.loads(line)
        except (ValueError, RecursionError) as broken:
            raise self._garbled("an answer that is not JSON") from broken
        if not isinstance(reply, dict):
            raise self._garbled("an answer that is not an object")
        return reply

    async def close(self) -> None:
        """Drop the connection; the next command makes a new one."""
        writer, self._reader, self._writer, self._in_step = self._writer, None, None, False
        if writer is not None:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    # --- what the agent is asked ---

    async def exec(
        self,
        argv: Sequence[str],
        *,
        stdin: bytes = b"",
        environment: Mapping[str, str] | None = None,
        timeout_s: float = 60.0,
        max_output_bytes: int = 16 * 1024 * 1024,
    ) -> ExecResult:
        """Run ``argv`` in the guest and collect its output; killed in the guest when late or cancelled.

        Raises ``Invalid`` (``agent.stdin``), ``Unavailable`` (``agent.absent``, ``agent.timeout``), ``Failed``
        (``agent.refused``: no such program there; ``agent.garbled``).
        """
        if len(stdin) > MAX_STDIN_BYTES:
            raise Invalid("agent.stdin", f"more than {MAX_STDIN_BYTES} bytes of input", remedy="send it in parts")
        arguments: dict[str, Any] = {"path": argv[0], "arg": list(argv[1:]), "capture-output": True}
        if stdin:
            arguments["input-data"] = base64.b64encode(stdin).decode()
        if environment:
            arguments["env"] = [f"{key}={value}" for key, value in environment.items()]
        started = await self.call("guest-exec", arguments, timeout_s=min(20.0, timeout_s))
        pid = self._number(started, "pid")
        try:
            async with asyncio.timeout(timeout_s):
                reply = await self._await_exit(pid, timeout_s)
        except TimeoutError:
            await self._kill(pid)
            raise Unavailable(
                "agent.timeout", f"{self._name}: {argv[0]} did not end within {timeout_s:g} s", remedy="allow more time"
            ) from None
        except asyncio.CancelledError:
            await asyncio.shield(self._kill(pid))
            raise
        return self._exec_result(reply, max_output_bytes)

    async def _await_exit(self, pid: int, timeout_s: float) -> dict[str, Any]:
        pause_s = 0.01
        while True:
            reply = await self.call("guest-exec-status", {"pid": pid}, timeout_s=timeout_s)
            if not isinstance(reply, dict):
                raise self._garbled("a status that is not an object")
            if reply.get("exited") is True:
                return reply
            await asyncio.sleep(pause_s)
            pause_s = min(0.5, pause_s * 1.5)

    async def _kill(self, pid: int) -> None:
        """Best effort: a guest without ``kill`` keeps the process."""
        try:
            await self.call("guest-exec", {"path": "kill", "arg": ["-KILL", str(pid)]}, timeout_s=5.0)
        except Problem as failed:
            log.info("%s: process %d in the guest was not killed: %s", self._name, pid, failed)

    def _exec_result(self, reply: dict[str, Any], limit: int) -> ExecResult:
        outputs = []
        for key in ("out-data", "err-data"):
            try:
                outputs.append(base64.b64decode(str(reply.get(key, "")), validate=True))
            except (binascii.Error, ValueError) as broken:
                raise self._garbled("output that is not base64") from broken
        cut = any(reply.get(key) is True for key in ("out-truncated", "err-truncated"))
        cut = cut or any(len(output) > limit for output in outputs)
        number = self._number(reply, "signal") if "signal" in reply else 0
        status = 128 + number if number else self._number(reply, "exitcode")
        return ExecResult(status, outputs[0][:limit], outputs[1][:limit], cut)

    async def freeze(self, timeout_s: float = 30.0) -> int:
        """Freeze the guest's file systems; returns how many. Use ``frozen_file_systems``, which always thaws."""
        self._frozen = True
        return self._count(await self.call("guest-fsfreeze-freeze", timeout_s=timeout_s))

    async def thaw(self, timeout_s: float = 10.0) -> None:
        """Thaw, trying again while the agent is slow. Raises what the last try raised when the guest stays frozen."""
        for trial in range(_THAW_TRIES):
            try:
                await self.call("guest-fsfreeze-thaw", timeout_s=timeout_s)
                break
            except Problem as failed:
                if trial == _THAW_TRIES - 1 or failed.code == "agent.absent":
                    self._frozen = False
                    raise
                log.warning("%s: thaw: %s; trying again", self._name, failed)
                await asyncio.sleep(0.2)
        self._frozen = False

    async def is_frozen(self) -> bool:
        """Whether the guest says that its file systems are frozen."""
        return bool(await self.call("guest-fsfreeze-status") == "frozen")

    @contextlib.asynccontextmanager
    async def frozen_file_systems(self, *, max_frozen_s: float = 30.0, timeout_s: float = 30.0) -> AsyncIterator[int]:
        """File systems frozen inside the block, thawed after it whatever happens, a cancelled task included.

        After ``max_frozen_s`` they are thawed even while the block still runs; leaving it then raises ``Failed``
        (``agent.freeze_expired``), because what was read is not of one instant. Raises what ``freeze`` raises.
        """
        expired = False

        async def expire() -> None:
            nonlocal expired
            await asyncio.sleep(max_frozen_s)
            expired = True
            log.warning("%s: frozen for %g s; thawing", self._name, max_frozen_s)
            await self.thaw()

        watchdog: asyncio.Task[None] | None = None
        try:
            count = await self.freeze(timeout_s)
            watchdog = asyncio.create_task(expire())
            yield count
        finally:
            await self._surely_thaw(watchdog)
        if expired:
            raise Failed(
                "agent.freeze_expired",
                f"{self._name}: the file systems had to be thawed after {max_frozen_s:g} s",
                cause="what was done while they were frozen took longer",
                remedy="try again when the host is less busy",
            )

    async def _surely_thaw(self, watchdog: asyncio.Task[None] | None) -> None:
        """Thaw in a task of its own; a caller that is cancelled (again) meanwhile still waits for it."""
        if watchdog is not None:
            if not self._frozen:
                return
            watchdog.cancel()
        thawing = asyncio.create_task(self.thaw())
        cancelled: asyncio.CancelledError | None = None
        while not thawing.done():
            try:
                await asyncio.shield(thawing)
            except asyncio.CancelledError as again:
                cancelled = again
            except Problem:
                break
        if thawing.exception() is not None:
            log.warning("%s: thaw: %s", self._name, thawing.exception())
        if cancelled is not None:
            raise cancelled

    async def shutdown(self) -> None:
        """Ask the guest's own shutdown; the agent gives no answer when it works."""
        await self.call("guest-ping")
        async with self._turn:
            self._in_step = False
            try:
                await self._send(b'{"execute": "guest-shutdown", "arguments": {"mode": "powerdown"}}\n')
            except OSError as lost:
                raise self._absent() from lost

    async def interfaces(self) -> list[GuestInterface]:
        """The guest's network interfaces with their addresses (at most 64 with 64 addresses)."""
        reply = await self.call("guest-network-get-interfaces")
        if not isinstance(reply, list):
            raise self._garbled("interfaces that are not a list")
        found = []
        for entry in reply[:64]:
            if not isinstance(entry, dict):
                raise self._garbled("an interface that is not an object")
            listed = entry.get("ip-addresses") or []
            addresses = [one.get("ip-address") for one in listed[:64] if isinstance(one, dict)]
            mac = entry.get("hardware-address")
            texts = tuple(text[:64] for text in addresses if isinstance(text, str))
            found.append(GuestInterface(str(entry.get("name"))[:64], str(mac)[:32].lower() if mac else None, texts))
        return found

    # --- problems ---

    def _number(self, reply: Any, key: str) -> int:
        value = reply.get(key) if isinstance(reply, dict) else None
        if not isinstance(value, int) or isinstance(value, bool) or not -(2**31) <= value < 2**63:
            raise self._garbled(f"an answer without {key}")
        return value

    def _count(self, reply: Any) -> int:
        return reply if isinstance(reply, int) and not isinstance(reply, bool) else 0

    def _absent(self) -> Unavailable:
        return Unavailable(
            "agent.absent",
            f"{self._name}: no guest agent answers",
            cause="qemu-guest-agent is not installed in the guest, or the guest has not booted that far",
            remedy="wait, or install qemu-guest-agent in the guest",
        )

    def _garbled(self, what: str) -> Failed:
        return Failed("agent.garbled", f"{self._name}: the guest agent sent {what}", remedy="look at the guest's agent")
