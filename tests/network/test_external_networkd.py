"""systemd-networkd set the card up by DHCP: the host keeps its address, its lease and its uplink under the inn."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
from host_lab import BRIDGE, Host, new_host, until
from switch_lab import run_in

from innkeeper.network import managers
from innkeeper.network.plan import Standing
from innkeeper.network.uplink_lease import Leases

NETWORKD = Path("/usr/lib/systemd/systemd-networkd")
pytestmark = [pytest.mark.root, pytest.mark.skipif(not NETWORKD.exists(), reason="systemd-networkd is not installed")]
SETTINGS = "[Match]\nName=eth0\n[Network]\nDHCP=ipv4\nIPv6AcceptRA=no\n"
START = """\
mount --bind "$1/systemd" /run/systemd
mount -t tmpfs none /etc/systemd/network
mount -o remount,ro /sys
exec "$2"
"""
PATIENCE_S = 30.0


@contextmanager
def networkd(host: Host, root: Path) -> Iterator[None]:
    """It manages the host's namespace, and keeps its files below ``root``."""
    folder = root / "run/systemd"
    for name in ("network", "netif/links", "netif/leases", "netif/lldp"):
        (folder / name).mkdir(parents=True)
    (folder / "network/10-lan.network").write_text(SETTINGS)
    subprocess.run(["chown", "-R", "systemd-network", str(folder / "netif")], check=True)
    argv = ["ip", "netns", "exec", host.namespace, "unshare", "-m", "sh", "-ec", START, "sh", str(root / "run")]
    with subprocess.Popen(
        [*argv, str(NETWORKD)], env={**os.environ, "container": "lxc"}, stderr=subprocess.DEVNULL
    ) as run:
        try:
            yield
        finally:
            run.terminate()


@contextmanager
def serving(host: Host) -> Iterator[None]:
    argv = ["ip", "netns", "exec", host.world, "dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--port=0"]
    argv += ["--interface=out", "--dhcp-range=192.0.2.100,192.0.2.120,255.255.255.0,2h", "--no-ping", "--user=root"]
    argv += [f"--dhcp-leasefile={host.directory.parent}/leases", "--bind-interfaces", "--pid-file="]
    with subprocess.Popen(argv, stderr=subprocess.DEVNULL) as server:
        try:
            yield
        finally:
            server.terminate()


def test_its_lease_goes_on_and_it_leaves_the_card_in_the_switch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with new_host() as host, serving(host):
        for command in ("-6 route del default", "addr flush dev eth0 scope global"):
            host.ip(command)
        with networkd(host, tmp_path):
            assert until(lambda: "proto dhcp" in host.ip("route show default"), PATIENCE_S)
            index = host.facts().index
            assert until(lambda: bool(managers.find_client_id("eth0", index, "", tmp_path)), PATIENCE_S)
            assert managers.find_manager("eth0", index, tmp_path) == "systemd-networkd (10-lan.network)"
            monkeypatch.setattr(managers, "find_client_id", partial(managers.find_client_id, root=tmp_path))
            before, policy = host.network(), host.policy()
            host.do(host.runner.ensure(policy))
            leases = Leases(host.directory.parent / "uplinks")
            began = leases.held(BRIDGE)[0]
            assert began.client_id.startswith("ff"), "networkd's own"
            assert until(lambda: host.do(host.runner.repair()).problems == {} and leases.held(BRIDGE)[0] != began)
            assert not leases.held(BRIDGE)[0].refused and leases.held(BRIDGE)[0].expires_s > began.expires_s - 60
            noted = (host.directory.parent / "leases").read_text().split()
            assert began.address in noted and began.client_id == noted[4].replace(":", "")
            assert host.network() == {BRIDGE: before["eth0"]}
            assert f"master {BRIDGE}" in host.ip("link show eth0")
            assert "1 received" in run_in(host.namespace, "ping", "-c1", "-W2", "192.0.2.1", check=False)
            assert host.do(host.runner.start([Standing(policy)])).problems == {}
