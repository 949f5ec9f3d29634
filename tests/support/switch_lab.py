"""A switch in a network namespace of its own, with guests that are open taps: frames go in and out as QEMU's would."""

from __future__ import annotations

import asyncio
import os
import select
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import frames

from innkeeper.network.links import open_tap
from innkeeper.network.namespace import NetworkThread
from innkeeper.network.plan import Standing
from innkeeper.network.policy import PortPolicy, SwitchPolicy
from innkeeper.network.switch import SwitchRunner

T = TypeVar("T")
INN_ID = "t3st"
VIRTIO_HEADER = bytes(10)
PATIENCE_S = 10.0


def run_in(namespace: str, *command: str, check: bool = True) -> str:
    """Run a command in a namespace and return what it printed."""
    argv = ["ip", "netns", "exec", namespace, *command]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    assert not check or done.returncode == 0, f"{argv}: {done.stdout}{done.stderr}"
    return done.stdout


@contextmanager
def new_namespace(name: str) -> Iterator[str]:
    """A named network namespace for the time of the block; the name carries this process's id."""
    full = f"inn-{os.getpid()}-{name}"
    subprocess.run(["ip", "netns", "add", full], check=True)
    try:
        run_in(full, "ip", "link", "set", "lo", "up")
        yield full
    finally:
        subprocess.run(["ip", "netns", "del", full], check=True)


@dataclass
class Guest:
    """A port of the lab with its open tap."""

    port: PortPolicy
    descriptor: int

    @property
    def mac(self) -> str:
        return self.port.mac

    @property
    def ip(self) -> str:
        return self.port.ipv4[0]

    @property
    def link_local(self) -> str:
        return self.port.link_local

    def send(self, *sent: bytes) -> None:
        for frame in sent:
            os.write(self.descriptor, VIRTIO_HEADER + frame)

    def receive(self, timeout_s: float = 0.0) -> bytes | None:
        """The next frame; None when none comes in that time."""
        ready, _, _ = select.select([self.descriptor], [], [], timeout_s)
        return os.read(self.descriptor, 65536)[len(VIRTIO_HEADER) :] if ready else None

    def drain(self) -> list[bytes]:
        """All frames that have arrived."""
        arrived = []
        while (frame := self.receive()) is not None:
            arrived.append(frame)
        return arrived

    def wait_for(self, wanted: bytes) -> list[bytes]:
        """The frames up to and without the one that contains ``wanted``."""
        arrived: list[bytes] = []
        while (frame := self.receive(PATIENCE_S)) is not None:
            if wanted in frame:
                return arrived
            arrived.append(frame)
        raise AssertionError(f"{wanted!r} did not arrive; these did: {[one.hex() for one in arrived]}")


class Lab:
    """One switch with guests. Close with ``close``."""

    def __init__(self, namespace: str, directory: Path, switch: SwitchPolicy, inn_id: str = INN_ID) -> None:
        self.namespace = namespace
        self.switch = switch
        self.inn_id = inn_id
        self._loop = asyncio.Runner()
        self.runner = SwitchRunner(inn_id, directory, namespace=namespace)
        self.guests: dict[str, Guest] = {}
        self._marks = 0
        self.do(self.runner.start([Standing(switch)]))

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        return self._loop.run(work)

    def plug(self, port: PortPolicy) -> Guest:
        self.do(self.runner.add_port(self.switch.bridge, port))
        return self.open(port)

    def open(self, port: PortPolicy) -> Guest:
        """Open the tap of a port that stands, and wait until the bridge has noticed; ``close`` closes it."""
        guest = Guest(port, self.do(self.runner.open_tap(port.tap)))
        self.guests[port.tap] = guest
        deadline = time.monotonic() + PATIENCE_S
        while "state forwarding" not in run_in(self.namespace, "bridge", "link", "show", "dev", port.tap):
            assert time.monotonic() < deadline, f"{port.tap} does not forward"
            time.sleep(0.01)
        return guest

    def set_port(self, guest: Guest, port: PortPolicy) -> None:
        self.do(self.runner.update_port(port))
        guest.port = port

    def unplug(self, guest: Guest) -> None:
        os.close(guest.descriptor)
        del self.guests[guest.port.tap]
        self.do(self.runner.remove_port(guest.port.tap))

    def deliver(self, sender: Guest, receiver: Guest, *sent: bytes) -> list[bytes]:
        """What ``receiver`` gets before an honest packet sent after ``sent``, without what the host itself says."""
        self._marks += 1
        mark = b"honest packet %d;" % self._marks
        receiver.drain()
        sender.send(*sent, self.honest(sender, receiver, mark))
        arrived, host = receiver.wait_for(mark), frames.mac(self.switch.mac)
        known = {frame.rstrip(b"\0") for frame in sent}
        return [frame for frame in arrived if frame[6:12] != host or frame.rstrip(b"\0") in known]

    def honest(self, sender: Guest, receiver: Guest, payload: bytes) -> bytes:
        datagram = frames.udp(sender.ip, receiver.ip, 4000, 4000, payload)
        return frames.ethernet(receiver.mac, sender.mac, 0x0800, frames.ipv4(sender.ip, receiver.ip, 17, datagram))

    def forwarding(self) -> dict[str, str]:
        """Mac -> device, of what the bridge learned and was told."""
        table: dict[str, str] = {}
        for line in run_in(self.namespace, "bridge", "fdb", "show", "br", self.switch.bridge).splitlines():
            words = line.split()
            if not words[0].startswith(("33:33", "01:")):
                table[words[0]] = words[words.index("dev") + 1]
        return table

    def dropped(self, guest: Guest) -> dict[str, int]:
        return self.do(self.runner.counters(guest.port.tap))

    def close(self) -> None:
        for guest in self.guests.values():
            os.close(guest.descriptor)
        self.do(self.runner.remove_all())
        self.do(self.runner.close())
        self._loop.close()


@contextmanager
def new_lab(switch: SwitchPolicy) -> Iterator[Lab]:
    """A lab in a fresh namespace with a directory that dnsmasq can reach; both vanish with the block."""
    with tempfile.TemporaryDirectory(prefix="inn-lab-") as folder, new_namespace("switch") as namespace:
        Path(folder).chmod(0o755)
        lab = Lab(namespace, Path(folder) / "switches", switch)
        try:
            yield lab
        finally:
            lab.close()


def in_namespace(namespace: str, function: Callable[[], T]) -> T:
    """Call ``function`` in a thread that is in the namespace; sockets that it makes stay there."""

    async def call() -> T:
        thread = NetworkThread(namespace)
        try:
            return await thread.call(function)
        finally:
            await thread.close()

    return asyncio.run(call())


class Machine:
    """A guest with a network stack: a namespace whose ``eth0`` is wired to a port's tap by a thread."""

    def __init__(self, namespace: str, guest: Guest) -> None:
        self.namespace = namespace
        self.guest = guest
        self._card = in_namespace(namespace, self._make_card)
        run_in(namespace, "ip", "link", "set", "eth0", "address", guest.mac, "up")
        self._stop_reader, self._stop_writer = os.pipe()
        self._pump = threading.Thread(target=self._carry, name=f"wire of {namespace}")
        self._pump.start()

    @staticmethod
    def _make_card() -> int:
        descriptor = open_tap("intp-eth0")
        run = subprocess.run(["ip", "link", "set", "intp-eth0", "name", "eth0"], check=False)
        assert run.returncode == 0
        return descriptor

    def give_address(self, gateway: str) -> None:
        """The port's own address, and the way out."""
        run_in(self.namespace, "ip", "addr", "add", f"{self.guest.ip}/24", "dev", "eth0")
        run_in(self.namespace, "ip", "route", "add", "default", "via", gateway)

    def _carry(self) -> None:
        ends = {self._card: self.guest.descriptor, self.guest.descriptor: self._card}
        while True:
            ready, _, _ = select.select([*ends, self._stop_reader], [], [])
            if self._stop_reader in ready:
                return
            for descriptor in ready:
                os.write(ends[descriptor], os.read(descriptor, 65536 + len(VIRTIO_HEADER)))

    def close(self) -> None:
        os.close(self._stop_writer)
        self._pump.join()
        os.close(self._stop_reader)
        os.close(self._card)


@contextmanager
def new_machine(name: str, guest: Guest) -> Iterator[Machine]:
    with new_namespace(name) as namespace:
        machine = Machine(namespace, guest)
        try:
            yield machine
        finally:
            machine.close()
