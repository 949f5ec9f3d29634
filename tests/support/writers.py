"""Stamping writers against a fabric in processes of its own, which is killed under them while it is about something."""

from __future__ import annotations

import os
import random
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import uuid4

from fabric_process import PATIENCE_S, FabricProcess, eventually
from power import Mains

_PROGRAM = Path(__file__).parents[1] / "fabric" / "stamping_writer.py"


class Writer:
    """One ``stamping_writer.py`` and the disk it writes to."""

    def __init__(self, fabric: FabricProcess, size_bytes: int, seed: int) -> None:
        self.export = fabric.disk(size_bytes)
        self.disk_id = next(each["disk_id"] for each in fabric.ask("attachment_ls") if each["id"] == self.export)
        command = ["/usr/bin/python3", str(_PROGRAM), fabric.uri(self.export), str(seed)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)

    def send(self, command: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(command + "\n")

    def said(self, word: str) -> list[str]:
        """The next line, which must begin with that word; the others."""
        assert self._process.stdout is not None
        words = self._process.stdout.readline().split()
        assert words[:1] == [word], " ".join(words)
        return words[1:]

    def end(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()


class Scene:
    """Writers, and rounds of killing the fabric under them. ``mains``: its file system, for power cuts."""

    def __init__(self, fabric: FabricProcess, seed: int, *, writers: int, size_bytes: int, mains: Mains | None = None):
        self.fabric, self.seed = fabric, seed
        self.chance = random.Random(seed)
        self.mains = mains
        self.writers = [Writer(fabric, size_bytes, self.chance.randrange(1 << 32)) for _ in range(writers)]
        self.done: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        """Deaths by what the fabric was about."""
        self._compressions = ["off", "zstd", "lz4"]
        self._snapshots: list[str] = []
        self._cuts: dict[str, Writer] = {}
        """The snapshots that were asked for in this round."""
        self._queue: list[str] = []
        self._executor = ThreadPoolExecutor(1)
        self._killed = 0

    def end(self) -> None:
        self._executor.shutdown()
        for writer in self.writers:
            writer.end()

    # --- what the fabric is about when it dies ---

    def _sweep(self) -> None:
        self.fabric.ask("drain")
        for snapshot_id in self._snapshots[:-1]:
            self.fabric.ask("snapshot_rm", snapshot_id)
        self._snapshots = self._snapshots[-1:]
        self.fabric.ask("sweep")

    def _recode(self) -> None:
        """Have what is stored packed anew by another policy."""
        self._compressions.append(self._compressions.pop(0))
        self.fabric.ask("drain")
        self.fabric.ask("storage_set", self.fabric.storage_id, compression=self._compressions[0])
        left = self.fabric.ask("curate_plan")["left_groups"]
        while left:
            left = self.fabric.ask("curate_next")["left_groups"]

    def _snapshot(self) -> None:
        made = {str(uuid4()): writer for writer in self.writers}
        self._snapshots += made
        self._cuts = made
        self.fabric.ask("snapshot_create", {snapshot_id: writer.disk_id for snapshot_id, writer in made.items()})

    def _works(self) -> dict[str, Callable[[], object]]:
        return {
            "write": lambda: None,
            "drain": lambda: self.fabric.ask("drain"),
            "sweep": self._sweep,
            "recode": self._recode,
            "snapshot": self._snapshot,
        }

    # --- a round ---

    def round(self, *, power: bool = False) -> None:
        """Kill the fabric, or cut its power, under all writers while it is about one of its works; then check all."""
        chance, works = self.chance, self._works()
        if not self._queue:
            self._queue = chance.sample(sorted(works), len(works))
        name = self._queue.pop()
        self._cuts = {}
        for writer in self.writers:
            writer.send(f"write {chance.randrange(50, 400)}")
        for writer in self.writers:
            writer.said("writing")
        work = self._executor.submit(works[name])
        time.sleep(chance.choice([0.0, 0.01, 0.05, 0.2, 0.5]) * chance.random())
        interrupted = not work.done()
        self._die(power)
        for writer in self.writers:
            acknowledged, flushes = writer.said("lost")
            self.done["writes acknowledged"] += int(acknowledged)
            self.done["flushes"] += int(flushes)
        if not power and chance.random() < 0.25:
            self._die_again()
        for writer in self.writers:
            writer.send("check power" if power else "check")
        for writer in self.writers:
            self.done["blocks checked"] += int(writer.said("good")[0])
        work.result(PATIENCE_S)
        for snapshot_id, writer in self._cuts.items():
            self._check_cut(snapshot_id, writer)
        self.faults[f"{'during' if interrupted else 'just after'} {name}"] += 1
        self.done["power cuts" if power else "kills"] += 1

    def _check_cut(self, snapshot_id: str, writer: Writer) -> None:
        reader = self.fabric.attach(snapshot_id=snapshot_id, role="reader", uid=os.geteuid())
        writer.send(f"cut {self.fabric.uri(reader)}")
        writer.said("good")
        self.fabric.ask("detach", reader)
        self.done["snapshots checked"] += 1

    def _die(self, power: bool) -> None:
        if power:
            assert self.mains is not None
            self.fabric.die_with(self.mains.cut)
            self.mains.restore()
            self.fabric.start()
        else:
            self._kill()

    def _kill(self) -> None:
        self._killed = self.fabric.kill()
        eventually(lambda: not Path(f"/proc/{self._killed}").exists(), "the fabric's end")

    def _die_again(self) -> None:
        """Kill the one that has just been started, perhaps while it recovers."""
        dead = self._killed
        eventually(lambda: self.fabric.noted_pid() not in (0, dead), "the next fabric")
        time.sleep(self.chance.random() * 0.8)
        self._kill()
        self.done["kills"] += 1
        self.faults["recovery"] += 1
