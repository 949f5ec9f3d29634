"""The agent's protocol against a peer that says whatever the test wants: late, garbled, hostile."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from innkeeper.compute import agent as agent_module
from innkeeper.compute.agent import Agent
from innkeeper.model.problems import Failed, Invalid, Problem, Unavailable

Answer = Callable[[dict[str, Any]], Awaitable[Any]]


class Peer:
    """The far end of the agent's socket. ``answer`` returns a value, bytes to send raw, or raises ``Silence``."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.heard: list[str] = []
        self.greeting = b""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(self.greeting)
        with contextlib.suppress(ConnectionError):
            while line := await reader.readline():
                request = json.loads(line.lstrip(b"\xff"))
                self.heard.append(request["execute"])
                if request["execute"] == "guest-sync-delimited":
                    writer.write(b"\xff" + json.dumps({"return": request["arguments"]["id"]}).encode() + b"\n")
                    continue
                try:
                    value = await self.answer(request)
                except Silence:
                    continue
                writer.write(value if isinstance(value, bytes) else json.dumps({"return": value}).encode() + b"\n")
        writer.close()


class Silence(Exception):
    """No answer at all."""


@contextlib.asynccontextmanager
async def talking(answer: Answer, greeting: bytes = b"") -> AsyncIterator[tuple[Agent, Peer]]:
    peer = Peer(answer)
    peer.greeting = greeting
    with tempfile.TemporaryDirectory(prefix="inn-qga-") as folder:
        path = Path(folder) / "qga.sock"
        server = await asyncio.start_unix_server(peer.serve, str(path), limit=2**27)
        agent = Agent(path, "web")
        agent.port_changed(True)
        try:
            yield agent, peer
        finally:
            await agent.close()
            server.close()
            await asyncio.sleep(0.01)


async def nothing(request: dict[str, Any]) -> Any:
    return {}


def test_a_command_is_answered_after_one_synchronisation() -> None:
    async def scene() -> None:
        async with talking(nothing) as (agent, peer):
            assert await agent.call("guest-ping") == {}
            assert await agent.call("guest-ping") == {}
            assert peer.heard == ["guest-sync-delimited", "guest-ping", "guest-ping"]

    asyncio.run(scene())


def test_junk_before_the_answer_is_dropped() -> None:
    async def scene() -> None:
        junk = b'{"return": "old"}\n\xff{"return": 1}\nxx\xff\xffnot json\n' + b"\0" * 100_000
        async with talking(nothing, junk) as (agent, _):
            assert await agent.call("guest-ping") == {}

    asyncio.run(scene())


def test_a_late_answer_never_meets_the_next_question() -> None:
    async def scene() -> None:
        async def answer(request: dict[str, Any]) -> Any:
            if request["execute"] == "slow":
                await asyncio.sleep(0.2)
                return "late"
            return "timely"

        async with talking(answer) as (agent, _):
            with pytest.raises(Unavailable) as late:
                await agent.call("slow", timeout_s=0.05)
            assert late.value.code == "agent.timeout"
            assert await agent.call("quick") == "timely"

    asyncio.run(scene())


def test_without_an_open_port_it_is_absent() -> None:
    async def scene() -> None:
        async with talking(nothing) as (agent, _):
            agent.port_changed(False)
            for work in (agent.call("guest-ping"), agent.ready(0.05), agent.exec(["true"]), agent.shutdown()):
                with pytest.raises(Unavailable) as absent:
                    await work
                assert absent.value.code == "agent.absent" and absent.value.remedy

    asyncio.run(scene())


@pytest.mark.parametrize("reply", [b"[1]\n", b"nonsense\n", b"{}\n", b"[" * 50_000 + b"\n"])
def test_garbled_answers_are_named(reply: bytes) -> None:
    async def scene() -> None:
        async def answer(request: dict[str, Any]) -> Any:
            return reply

        async with talking(answer) as (agent, _):
            with pytest.raises(Failed) as garbled:
                await agent.call("guest-ping")
            assert garbled.value.code == "agent.garbled"

    asyncio.run(scene())


def test_an_endless_answer_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_module, "MAX_REPLY_BYTES", 1_000_000)

    async def scene() -> None:
        async def answer(request: dict[str, Any]) -> Any:
            return b"x" * 3_000_000

        async with talking(answer) as (agent, _):
            with pytest.raises(Failed, match="longer than"):
                await agent.call("guest-ping")

    asyncio.run(scene())


def test_an_agents_refusal_carries_its_words() -> None:
    async def scene() -> None:
        async def answer(request: dict[str, Any]) -> Any:
            return b'{"error": {"class": "GenericError", "desc": "no such file"}}\n'

        async with talking(answer) as (agent, _):
            with pytest.raises(Failed) as refused:
                await agent.exec(["/nowhere"])
            assert (refused.value.code, refused.value.cause) == ("agent.refused", "no such file")

    asyncio.run(scene())


def exec_peer(status: dict[str, Any], running_first: int = 2) -> Answer:
    rest = running_first

    async def answer(request: dict[str, Any]) -> Any:
        nonlocal rest
        if request["execute"] == "guest-exec":
            return {"pid": 7}
        rest -= 1
        return {"exited": False} if rest >= 0 else {"exited": True, **status}

    return answer


def test_exec_collects_status_and_bounded_output() -> None:
    async def scene() -> None:
        data = base64.b64encode(b"0123456789").decode()
        async with talking(exec_peer({"exitcode": 4, "out-data": data})) as (agent, _):
            result = await agent.exec(["x"], max_output_bytes=4)
            assert (result.status, result.stdout, result.stderr, result.truncated) == (4, b"0123", b"", True)
        async with talking(exec_peer({"signal": 9})) as (agent, _):
            assert (await agent.exec(["x"])).status == 137

    asyncio.run(scene())


@pytest.mark.parametrize(
    "status", [{}, {"exitcode": "0"}, {"exitcode": True}, {"exitcode": 2**70}, {"exitcode": 0, "out-data": "%%%"}]
)
def test_a_hostile_exec_status_is_garbled(status: dict[str, Any]) -> None:
    async def scene() -> None:
        async with talking(exec_peer(status)) as (agent, _):
            with pytest.raises(Failed) as garbled:
                await agent.exec(["x"])
            assert garbled.value.code == "agent.garbled"

    asyncio.run(scene())


def test_a_late_command_is_killed_in_the_guest() -> None:
    async def scene() -> None:
        asked: list[dict[str, Any]] = []

        async def answer(request: dict[str, Any]) -> Any:
            asked.append(request)
            return {"pid": 7} if request["execute"] == "guest-exec" else {"exited": False}

        async with talking(answer) as (agent, _):
            with pytest.raises(Unavailable, match="did not end"):
                await agent.exec(["sleep", "99"], timeout_s=0.1)
            assert asked[-1]["arguments"] == {"path": "kill", "arg": ["-KILL", "7"]}

    asyncio.run(scene())


def test_too_much_input_is_refused() -> None:
    async def scene() -> None:
        async with talking(nothing) as (agent, _):
            with pytest.raises(Invalid):
                await agent.exec(["cat"], stdin=b"x" * (agent_module.MAX_STDIN_BYTES + 1))

    asyncio.run(scene())


class Freezer:
    """A guest that can be frozen; ``refuse_thaws`` so many thaws fail."""

    def __init__(self, refuse_thaws: int = 0) -> None:
        self.frozen = False
        self.refuse_thaws = refuse_thaws

    async def __call__(self, request: dict[str, Any]) -> Any:
        match request["execute"]:
            case "guest-fsfreeze-freeze":
                self.frozen = True
                return 2
            case "guest-fsfreeze-thaw":
                if self.refuse_thaws:
                    self.refuse_thaws -= 1
                    return b'{"error": {"desc": "not now"}}\n'
                self.frozen = False
                return 2
            case "guest-fsfreeze-status":
                return "frozen" if self.frozen else "thawed"
        return {}


def test_frozen_inside_thawed_after() -> None:
    async def scene() -> None:
        freezer = Freezer(refuse_thaws=3)
        async with talking(freezer) as (agent, _):
            async with agent.frozen_file_systems() as count:
                assert count == 2 and freezer.frozen and agent.frozen
            assert not freezer.frozen and not agent.frozen

    asyncio.run(scene())


def test_thawed_when_the_block_fails() -> None:
    async def scene() -> None:
        freezer = Freezer()
        async with talking(freezer) as (agent, _):
            with pytest.raises(ZeroDivisionError):
                async with agent.frozen_file_systems():
                    raise ZeroDivisionError
            assert not freezer.frozen

    asyncio.run(scene())


def test_thawed_when_cancelled_and_cancelled_again() -> None:
    async def scene() -> None:
        freezer = Freezer(refuse_thaws=2)
        async with talking(freezer) as (agent, _):

            async def hold() -> None:
                async with agent.frozen_file_systems():
                    await asyncio.sleep(60)

            task = asyncio.create_task(hold())
            while not freezer.frozen:
                await asyncio.sleep(0.01)
            for _ in range(3):
                task.cancel()
                await asyncio.sleep(0.05)
            with pytest.raises(asyncio.CancelledError):
                await task
            assert not freezer.frozen

    asyncio.run(scene())


def test_thawed_when_the_freeze_itself_is_late() -> None:
    async def scene() -> None:
        freezer = Freezer()

        async def answer(request: dict[str, Any]) -> Any:
            if request["execute"] == "guest-fsfreeze-freeze":
                await asyncio.sleep(0.3)
            return await freezer(request)

        async with talking(answer) as (agent, _):
            with pytest.raises(Unavailable):
                async with agent.frozen_file_systems(timeout_s=0.1):
                    raise AssertionError("not reached")
            assert not freezer.frozen

    asyncio.run(scene())


def test_the_watchdog_thaws_and_says_so() -> None:
    async def scene() -> None:
        freezer = Freezer()
        async with talking(freezer) as (agent, _):

            async def hold() -> None:
                async with agent.frozen_file_systems(max_frozen_s=0.05):
                    while freezer.frozen:
                        await asyncio.sleep(0.01)

            with pytest.raises(Problem) as expired:
                await hold()
            assert expired.value.code == "agent.freeze_expired"

    asyncio.run(scene())


def test_interfaces_are_bounded() -> None:
    async def scene() -> None:
        async def answer(request: dict[str, Any]) -> Any:
            one = {"name": "e" * 500, "hardware-address": "AA:" * 50, "ip-addresses": [{"ip-address": "9" * 900}, 3]}
            return [one] * 500

        async with talking(answer) as (agent, _):
            found = await agent.interfaces()
            assert len(found) == 64
            assert len(found[0].name) == 64 and len(found[0].mac or "") == 32 and len(found[0].addresses[0]) == 64

    asyncio.run(scene())


def test_a_lost_channel_is_absence_and_comes_back() -> None:
    async def scene() -> None:
        async with talking(nothing) as (agent, _):
            await agent.call("guest-ping")
            assert agent._writer is not None
            agent._writer.close()
            with pytest.raises(Unavailable):
                await agent.call("guest-ping")
            assert await agent.call("guest-ping") == {}

    asyncio.run(scene())
