"""A disk moves to and fro between pools of a real fabric while a client writes and reads it, also across kills."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from fabric_process import FabricProcess, fabric_process
from nbd_lab import PATIENCE_S, Answer, RawClient

from innkeeper.fabric.nbd import protocol as p
from innkeeper.model.problems import NotFound, Unavailable

PAGE, MIB = 4096, 1 << 20
SIZE = 24 * MIB
MOVES = 4
KILLED_MOVES = 12


class Load(threading.Thread):
    """Writes, flushes, and reads back what it wrote; ``slowest_s`` is the longest that an answer took."""

    def __init__(self, path: Path, export: str, *, patient: bool = False) -> None:
        """``patient``: connect again, and ask again, when the connection is lost."""
        super().__init__()
        self._path, self._export, self._patient = path, export, patient
        self.client = self._connected()
        self.enough = threading.Event()
        self.requests = 0
        self.slowest_s = 0.0
        self.wrong: str | None = None
        self.content: dict[int, bytes] = {}

    def _connected(self) -> RawClient:
        client = RawClient(self._path)
        client.greet()
        client.go(self._export)
        return client

    def _ask(self, command: int, offset: int = 0, length: int = 0, data: bytes = b"") -> Answer:
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                return self.client.ask(command, offset, length, data)
            except OSError:
                if not self._patient:
                    raise
            while True:
                try:
                    self.client.close()
                    self.client = self._connected()
                    break
                except OSError:
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(0.01)

    def run(self) -> None:
        chance = random.Random(11)
        try:
            while not self.enough.is_set() and self.wrong is None:
                self._one(chance)
        except (OSError, AssertionError) as broken:
            self.wrong = f"{type(broken).__name__}: {broken}"

    def _one(self, chance: random.Random) -> None:
        count = chance.choice((1, 1, 2, 16, 64))
        first = chance.randrange(SIZE // PAGE - count)
        began = time.monotonic()
        if chance.random() < 0.5:
            data = chance.randbytes(PAGE) * count
            assert self._ask(p.Command.WRITE, first * PAGE, data=data).error == 0
            self.content.update(dict.fromkeys(range(first, first + count), data[:PAGE]))
        elif chance.random() < 0.1:
            assert self._ask(p.Command.FLUSH).error == 0
        else:
            wanted = b"".join(self.content.get(page, bytes(PAGE)) for page in range(first, first + count))
            if self._ask(p.Command.READ, first * PAGE, len(wanted)).data != wanted:
                self.wrong = f"pages from {first} on are not what was written"
        self.slowest_s = max(self.slowest_s, time.monotonic() - began)
        self.requests += 1


@pytest.fixture
def fabric(tmp_path: Path) -> Iterator[FabricProcess]:
    with fabric_process(tmp_path / "inn") as running:
        yield running


def move(fabric: FabricProcess, disk: str, storage: str) -> None:
    begun: dict[str, Any] = fabric.ask("disk_move_begin", disk, storage)
    assert begun == {"state": "copying"}
    while True:
        while fabric.ask("disk_move_step", disk)["state"] != "ready":
            pass
        try:
            assert fabric.ask("disk_move_switch", disk) == {"state": "moved"}
            return
        except Unavailable as later:
            if later.code != "move.busy":
                raise


def prepared(fabric: FabricProcess, place: Path) -> tuple[str, str, str, str]:
    """Another pool, a storage there, a disk in the first one, and its export."""
    more, quick, disk = (str(uuid4()) for _ in range(3))
    fabric.ask("pool_create", more, str(place))
    fabric.ask("_call", "storage_create", pool=more, storage_id=quick)
    fabric.ask("disk_create", disk, SIZE, fabric.storage_id)
    return more, quick, disk, fabric.attach(disk_id=disk, uid=os.geteuid())


def test_kills_at_any_moment_of_a_move_lose_nothing(tmp_path: Path) -> None:
    with fabric_process(tmp_path / "inn", hasty=True) as fabric:
        load, kills = killed_while_moving(fabric, tmp_path / "more")
    assert load.wrong is None
    assert kills > 2
    slowest_ms = 1000 * load.slowest_s
    print(f"{load.requests} requests, {kills} kills in {KILLED_MOVES} moves, the slowest took {slowest_ms:.0f} ms")


def killed_while_moving(fabric: FabricProcess, place: Path) -> tuple[Load, int]:
    """Move the disk to and fro, and kill the fabric in the middle of most moves."""
    _more, quick, disk, export = prepared(fabric, place)
    load = Load(fabric.paths.nbd_socket, export, patient=True)
    load.start()
    chance = random.Random(5)
    killed: list[int] = []
    try:
        for number in range(KILLED_MOVES):
            storage = quick if number % 2 == 0 else fabric.storage_id
            killer = threading.Timer(chance.random() * 0.12, lambda: killed.append(fabric.kill()))
            killer.start()
            while fabric.ask("disk_move_begin", disk, storage)["state"] != "moved":
                with suppress(Unavailable, NotFound):
                    while fabric.ask("disk_move_step", disk)["state"] != "ready":
                        pass
                    fabric.ask("disk_move_switch", disk)
            killer.cancel()
            killer.join()
            before = load.requests
            while load.requests < before + 20 and load.wrong is None:
                time.sleep(0.01)
            assert len(fabric.ask("disk_ls")) == len(fabric.ask("attachment_ls")) == 1
    finally:
        load.enough.set()
        load.join()
        load.client.close()
    return load, len(killed)


def test_one_connection_outlives_all_moves(fabric: FabricProcess, tmp_path: Path) -> None:
    more, quick, disk, export = prepared(fabric, tmp_path / "more")
    load = Load(fabric.paths.nbd_socket, export)
    load.start()
    try:
        for number in range(MOVES):
            before = load.requests
            move(fabric, disk, quick if number % 2 == 0 else fabric.storage_id)
            while load.requests < before + 50 and load.wrong is None:
                time.sleep(0.01)
    finally:
        load.enough.set()
        load.join()
        load.client.close()
    assert load.wrong is None
    assert load.requests > 50 * MOVES
    print(f"{load.requests} requests over {MOVES} moves, the slowest took {1000 * load.slowest_s:.0f} ms")
    fabric.ask("detach", export)
    fabric.kill()
    fabric.ask("storage_rm", quick)
    fabric.ask("pool_rm", more)
    held = list[str]()
    for each in Path(f"/proc/{fabric.pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            held.append(str(each.readlink()))
    assert [path for path in held if str(tmp_path / "more") in path] == [], "the file system can be unmounted"
