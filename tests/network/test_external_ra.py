"""Router advertisements of the network outside reach the host on an external switch's bridge, also when it forwards."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from host_lab import BRIDGE, Host, new_host, until
from switch_lab import run_in

pytestmark = pytest.mark.root
PREFIX = "2001:db8:9:"
PATIENCE_S = 40.0
"""dnsmasq advertises some seconds after its start, and then ever less often."""


@contextmanager
def advertising(host: Host) -> Iterator[None]:
    argv = ["ip", "netns", "exec", host.world, "dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--port=0"]
    argv += ["--interface=out", "--enable-ra", f"--dhcp-range={PREFIX}:,ra-only,64", "--user=root", "--pid-file="]
    argv += ["--dhcp-leasefile=/dev/null", "--bind-interfaces", "--log-facility=/dev/null"]
    server = subprocess.Popen(argv)
    try:
        yield
    finally:
        server.terminate()
        server.wait()


def heard(host: Host, device: str) -> bool:
    address = f"inet6 {PREFIX}" in host.ip(f"-6 addr show dev {device}")
    return address and "proto ra" in host.ip(f"-6 route show default dev {device}")


def test_the_bridge_hears_routers_as_the_card_did() -> None:
    with new_host() as host:
        run_in(host.world, "ip", "addr", "add", f"{PREFIX}:1/64", "dev", "out", "nodad")
        host.ip("-6 route del default")
        with advertising(host):
            assert until(lambda: heard(host, "eth0"), PATIENCE_S)
        host.do(host.runner.ensure(host.policy()))
        assert heard(host, BRIDGE) and host.reaches()
        run_in(host.namespace, "sysctl", "-qw", "net.ipv6.conf.all.forwarding=1")
        (address,) = [word for word in host.ip(f"-6 addr show dev {BRIDGE}").split() if word.startswith(PREFIX)]
        host.ip(f"addr del {address} dev {BRIDGE}")
        host.ip(f"-6 route flush proto ra dev {BRIDGE}")
        assert not heard(host, BRIDGE)
        with advertising(host):
            assert until(lambda: heard(host, BRIDGE), PATIENCE_S)
        assert address in host.ip(f"-6 addr show dev {BRIDGE}"), "the same one, of the same mac"
        assert PREFIX not in host.ip("-6 addr show dev eth0"), "a port has no IPv6 of its own"
        assert host.reaches()
        host.do(host.runner.remove(BRIDGE))
        assert address in host.ip("-6 addr show dev eth0") and host.reaches()
