"""A host with one network card, and the world behind it: two namespaces, for switches that take the card.

The host's ``eth0`` is a veth with addresses and default routes; in the world ``out`` answers for the router, with
dnsmasq for DHCP and router advertisements where asked for.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from switch_lab import INN_ID, PATIENCE_S, Guest, in_namespace, new_namespace, run_in

from innkeeper.network.policy import PortPolicy, SwitchPolicy
from innkeeper.network.switch import SwitchRunner
from innkeeper.network.uplink_plan import NicFacts
from innkeeper.network.uplink_policy import UplinkPolicy

T = TypeVar("T")
BRIDGE = f"inbr-{INN_ID}1"
HOST4, HOST6 = "192.0.2.10", "2001:db8::10"
WORLD4, WORLD6 = "192.0.2.1", "2001:db8::1"
MAC = "02:00:00:00:00:10"
SETUP = (
    "link set eth0 up",
    f"addr add {HOST4}/24 brd + dev eth0",
    f"addr add {HOST6}/64 dev eth0 nodad",
    f"route add default via {WORLD4} dev eth0",
    f"-6 route add default via {WORLD6} dev eth0",
)


@dataclass
class Host:
    """The host's namespace and the world's; ``directory`` is where the runner keeps what it runs."""

    namespace: str
    world: str
    directory: Path
    runner: SwitchRunner
    _loop: asyncio.Runner = field(default_factory=asyncio.Runner)

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        return self._loop.run(work)

    def ip(self, command: str) -> str:
        return run_in(self.namespace, "ip", *command.split())

    def facts(self, name: str = "eth0") -> NicFacts:
        found = self.do(self.runner.nic_facts(name))
        assert found is not None
        return found

    def policy(self, **changes: Any) -> SwitchPolicy:
        """An external switch on ``eth0`` as it is now."""
        facts = self.facts()
        uplink = UplinkPolicy(("eth0",), mac=facts.mac, network=facts.network)
        return SwitchPolicy("lan", BRIDGE, kind="external", mtu=facts.mtu, uplink=replace(uplink, **changes))

    def reaches(self) -> bool:
        """Whether the host and the world reach each other, by both IP versions and through the default routes."""
        targets = (WORLD4, WORLD6, "198.51.100.1", "2001:db8:1::1")
        return all(
            run_in(self.namespace, "ping", "-c1", "-W2", target, check=False).count("1 received") for target in targets
        )

    def network(self) -> dict[str, set[str]]:
        """The host's addresses and routes by device, without what passes (lifetimes) and link-local ones."""
        found: dict[str, set[str]] = {}
        for line in self.ip("-o addr show").splitlines():
            device = line.split()[1]
            if device != "lo" and "scope link" not in line:
                text = re.sub(r"^\d+: \S+ +|\\.*| (nodad|dynamic)\b|:home\b", "", line)
                found.setdefault(device, set()).add(text.replace(f" {device}", "").strip())
        for line in (self.ip("route show table all") + self.ip("-6 route show table all")).splitlines():
            match = re.search(r" dev (\S+)", line)
            if match and match[1] != "lo" and "table local" not in line and not line.startswith(("fe80", "ff00")):
                text = re.sub(r" expires \d+sec| linkdown| dev \S+", "", line).strip()
                found.setdefault(match[1], set()).add(text)
        return found

    def close(self) -> None:
        self.do(self.runner.remove_all())
        self.do(self.runner.close())
        self._loop.close()


def external_port(number: int) -> PortPolicy:
    """The port of guest ``number``, whose address is not known yet."""
    return PortPolicy(f"intp-{INN_ID}{number}", f"52:54:00:00:00:0{number}")


@contextmanager
def plugged(host: Host, port: PortPolicy) -> Iterator[Guest]:
    """A guest on the switch of the host, with its tap open."""
    host.do(host.runner.add_port(BRIDGE, port))
    guest = Guest(port, host.do(host.runner.open_tap(port.tap)))
    try:
        assert until(lambda: "state forwarding" in run_in(host.namespace, "bridge", "link", "show", "dev", port.tap))
        yield guest
    finally:
        os.close(guest.descriptor)
        host.do(host.runner.remove_port(port.tap))


def until(condition: Callable[[], bool], patience_s: float = PATIENCE_S) -> bool:
    deadline = time.monotonic() + patience_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def plug_in(host: str, world: str) -> None:
    """Give the host its card, wired to the world, as at boot."""
    for namespace in (host, world):  # nobody else is there, and to look for duplicates takes seconds
        for setting in ("accept_dad", "dad_transmits"):
            run_in(namespace, "sysctl", "-qw", f"net.ipv6.conf.default.{setting}=0")
    run_in(host, "ip", "link", "add", "eth0", "address", MAC, "type", "veth", "peer", "name", "out", "netns", world)
    for command in SETUP:
        run_in(host, "ip", *command.split())
    for command in (
        "link set out up",
        f"addr add {WORLD4}/24 dev out",
        f"addr add {WORLD6}/64 dev out nodad",
        "addr replace 198.51.100.1/32 dev lo",
        "addr replace 2001:db8:1::1/128 dev lo",
    ):
        run_in(world, "ip", *command.split())
    assert until(lambda: "tentative" not in run_in(host, "ip", "addr"))


@contextmanager
def new_host() -> Iterator[Host]:
    """A host on its network, without a switch."""
    with (
        tempfile.TemporaryDirectory(prefix="inn-lab-") as folder,
        new_namespace("host") as namespace,
        new_namespace("world") as world,
    ):
        Path(folder).chmod(0o755)
        plug_in(namespace, world)
        directory = Path(folder) / "switches"
        host = Host(namespace, world, directory, SwitchRunner(INN_ID, directory, namespace=namespace))
        host.do(host.runner.start([]))
        try:
            yield host
        finally:
            host.close()


def send_from_world(host: Host, *sent: bytes) -> None:
    def send() -> None:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as wire:
            wire.bind(("out", 0))
            for frame in sent:
                wire.send(frame)

    in_namespace(host.world, send)


@contextmanager
def dhcp_outside(host: Host, *options: str) -> Iterator[None]:
    """A DHCP server of the network outside, with further ``options`` of dnsmasq's."""
    with dhcp_at_out(host.world, *options):
        yield


@contextmanager
def dhcp_at_out(namespace: str, *options: str) -> Iterator[None]:
    """A DHCP server at ``out``, which is in that namespace and has an address of 192.0.2.0/24."""
    argv = ["ip", "netns", "exec", namespace, "dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--port=0"]
    argv += ["--interface=out", "--dhcp-range=192.0.2.100,192.0.2.120,255.255.255.0", "--no-ping", "--user=root"]
    argv += ["--dhcp-leasefile=/dev/null", "--log-facility=/dev/null", "--bind-interfaces", "--pid-file="]
    server = subprocess.Popen([*argv, *options])
    try:
        assert until(lambda: ":67 " in run_in(namespace, "ss", "-uln"))
        yield
    finally:
        server.terminate()
        server.wait()


@contextmanager
def pinging(host: Host, target: str = HOST4, interval_s: float = 0.01) -> Iterator[Callable[[], int]]:
    """Ping the host from the world during the block; the function given tells afterwards how many were lost."""
    argv = ["ip", "netns", "exec", host.world, "ping", "-i", str(interval_s), target]
    pinger = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    answered: list[str] = []

    def lost() -> int:
        match = re.search(r"(\d+) packets transmitted, (\d+) received", answered[0])
        assert match and int(match[2]) > 10, answered[0]
        return int(match[1]) - int(match[2])

    try:
        time.sleep(20 * interval_s)
        yield lost
        time.sleep(20 * interval_s)
    finally:
        pinger.send_signal(signal.SIGINT)
        answered.append(pinger.communicate()[0])
