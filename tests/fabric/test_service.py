"""The fabric as processes: keeper and service, the sockets, who may use them. Kills are in ``test_kills.py``."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from fabric_process import PATIENCE_S, FabricProcess, eventually, fabric_process

from innkeeper.fabric.client import FabricClient
from innkeeper.fabric.pool import Pool
from innkeeper.model.problems import Conflict, Invalid, NotFound, Unavailable
from innkeeper.system.files import Io

MIB = 1 << 20
OTHER_UID = 12345


@pytest.fixture
def fabric(tmp_path: Path) -> Iterator[FabricProcess]:
    with fabric_process(tmp_path / "inn") as running:
        yield running


def test_the_listening_socket_outlives_the_fabric(fabric: FabricProcess) -> None:
    inode = fabric.paths.nbd_socket.stat().st_ino
    pid = fabric.kill()
    assert fabric.accepts()
    assert fabric.ask("ping") == "pong"
    assert fabric.pid != pid
    assert fabric.paths.nbd_socket.stat().st_ino == inode


def test_shutdown_ends_the_fabric_and_the_keeper_starts_another(fabric: FabricProcess) -> None:
    pid = fabric.pid
    fabric.ask("shutdown")
    eventually(lambda: not Path(f"/proc/{pid}").exists(), "the end of the fabric")
    assert fabric.ask("ping") == "pong"


def test_a_fabric_ends_with_its_keeper(tmp_path: Path) -> None:
    with fabric_process(tmp_path / "inn") as first:
        pid = first.pid
        first.keeper.kill()
        first.keeper.wait()
        eventually(lambda: not Path(f"/proc/{pid}").exists(), "the end of the fabric")
        with fabric_process(tmp_path / "inn") as second:
            assert second.ask("ping") == "pong"
            second.paths.run.mkdir(exist_ok=True)
            first.keeper = second.keeper
        first.paths.run.mkdir()


def test_a_second_keeper_is_refused_and_disturbs_nobody(fabric: FabricProcess) -> None:
    inode, pid = fabric.paths.nbd_socket.stat().st_ino, fabric.pid
    second = subprocess.run(
        [sys.executable, "-m", "innkeeper.fabric.keeper", "--state-dir", str(fabric.paths.state)],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert second.returncode == 1
    assert str(fabric.keeper.pid) in second.stderr
    assert (fabric.paths.nbd_socket.stat().st_ino, fabric.pid) == (inode, pid)


def test_a_second_process_on_the_pool_is_refused(fabric: FabricProcess) -> None:
    fabric.ask("ping")
    with pytest.raises(Conflict) as refused:
        Pool.open(Io(), str(fabric.paths.pool))
    assert refused.value.code == "pool.locked"


def test_a_second_writer_is_refused_and_a_reader_is_not(fabric: FabricProcess) -> None:
    disk_id = str(uuid4())
    fabric.ask("disk_create", disk_id, MIB, fabric.storage_id)
    first = fabric.attach(disk_id=disk_id, role="writer")
    with pytest.raises(Conflict) as refused:
        fabric.attach(disk_id=disk_id, role="writer")
    assert refused.value.code == "disk.attached"
    fabric.attach(disk_id=disk_id, role="reader")
    fabric.ask("detach", first)
    fabric.attach(disk_id=disk_id, role="writer")


def test_attachments_outlive_the_fabric(fabric: FabricProcess) -> None:
    export = fabric.disk(MIB)
    write = ["qemu-io", "-f", "raw", "-c", "write -P 3 0 64k", fabric.uri(export)]
    subprocess.run(write, check=True, capture_output=True, timeout=PATIENCE_S)
    fabric.kill()
    read = ["qemu-io", "-f", "raw", "-c", "read -P 3 0 64k", fabric.uri(export)]
    assert b"failed" not in subprocess.run(read, check=True, capture_output=True, timeout=PATIENCE_S).stdout


@pytest.mark.root
def test_the_wrong_uid_reaches_nothing(fabric: FabricProcess) -> None:
    """Another user knows an export's name and the control socket's path: neither lets it in."""
    export = fabric.disk(MIB, uid=OTHER_UID)
    as_other = ["setpriv", f"--reuid={OTHER_UID}", f"--regid={OTHER_UID}", "--clear-groups"]
    allowed = subprocess.run([*as_other, "nbdinfo", "--size", fabric.uri(export)], capture_output=True, text=True)
    assert allowed.stdout.strip() == str(MIB), allowed.stderr
    own = fabric.disk(MIB)
    for forbidden in (own, str(uuid4())):
        ended = subprocess.run([*as_other, "nbdinfo", "--size", fabric.uri(forbidden)], capture_output=True, text=True)
        assert ended.returncode != 0
    talk = "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); print(s.recv(1))"
    command = [*as_other, "/usr/bin/python3", "-c", talk, str(fabric.paths.fabric_socket)]
    assert b"PermissionError" in subprocess.run(command, capture_output=True).stderr
    fabric.paths.fabric_socket.chmod(0o666)
    assert subprocess.run(command, capture_output=True).stdout == b"b''\n"


def test_the_client_answers_across_a_restart(fabric: FabricProcess) -> None:
    async def use() -> None:
        client = FabricClient(fabric.paths.fabric_socket, patience_s=PATIENCE_S)
        await client.connect()
        try:
            for _ in range(3):
                disk_id = str(uuid4())
                making = asyncio.create_task(client.disk_create(disk_id, MIB, fabric.storage_id))
                await asyncio.sleep(0)
                os.kill(fabric.pid, signal.SIGKILL)
                assert (await making)["size_bytes"] == MIB
                assert (await client.disk_show(disk_id))["id"] == disk_id
        finally:
            await client.close()

    fabric.ask("ping")
    asyncio.run(use())


def test_a_connection_that_breaks_while_it_is_written_to_is_made_again(
    fabric: FabricProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The writing side learns of the loss first: it must not try that connection again and again."""
    readers = []
    connect = asyncio.open_unix_connection

    async def noted(*arguments: Any, **named: Any) -> Any:
        reader, writer = await connect(*arguments, **named)
        readers.append(reader)
        return reader, writer

    async def use() -> None:
        client = FabricClient(fabric.paths.fabric_socket, patience_s=PATIENCE_S)
        await client.connect()
        try:
            readers[0].set_exception(ConnectionResetError("gone"))
            assert await client.ping() == "pong"
            assert len(readers) == 2
        finally:
            await client.close()

    monkeypatch.setattr(asyncio, "open_unix_connection", noted)
    asyncio.run(use())


def test_the_client_says_when_nobody_is_there(tmp_path: Path) -> None:
    async def use() -> None:
        await FabricClient(tmp_path / "none.sock", patience_s=0.1).ping()

    with pytest.raises(Unavailable) as away:
        asyncio.run(use())
    assert away.value.code == "fabric.unreachable"


ODD_REQUESTS = (
    (b"\n", "control.request"),
    (b"nonsense\n", "control.request"),
    (b"[]\n", "control.request"),
    (b'{"op": "ping"}\n', "control.request"),
    (b'{"id": 1}\n', "control.request"),
    (b'{"id": 1, "op": "__init__"}\n', "control.operation"),
    (b'{"id": 1, "op": "close"}\n', "control.operation"),
    (b'{"id": 1, "op": "disk_show"}\n', "control.request"),
    (b'{"id": 1, "op": "disk_show", "disk_id": []}\n', "control.request"),
    (b'{"id": 1, "op": "disk_show", "disk_id": "x", "more": 1}\n', "control.request"),
)


def test_requests_that_make_no_sense_are_answered(fabric: FabricProcess) -> None:
    fabric.ask("ping")
    for line, code in ODD_REQUESTS:
        with socket.socket(socket.AF_UNIX) as control:
            control.settimeout(PATIENCE_S)
            control.connect(str(fabric.paths.fabric_socket))
            control.sendall(line + b'{"id": 2, "op": "ping"}\n')
            received = b""
            while received.count(b"\n") < 2:
                received += control.recv(65536)
        assert code.encode() in received, line
        assert b'"pong"' in received


def test_problems_come_back_as_they_are(fabric: FabricProcess) -> None:
    for kind, code, operation, arguments in (
        (NotFound, "disk.not_found", "disk_show", (str(uuid4()),)),
        (Invalid, "disk.size", "disk_create", (str(uuid4()), 100, fabric.storage_id)),
    ):
        with pytest.raises(kind) as found:
            fabric.ask(operation, *arguments)
        assert found.value.code == code
