"""Leases of the host on an external switch are renewed there: messages, times, and a real DHCP server."""

from __future__ import annotations

import socket
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from host_lab import BRIDGE, MAC, Host, new_host, until
from hypothesis import given, strategies as st
from switch_lab import run_in

from innkeeper.model.uplink import HostAddress
from innkeeper.network.uplink_lease import Lease, Leases, read_answer, request

LEASED = "192.0.2.110"


def answer(kind: int, *, number: int = 7, seconds: int = 600, mac: str = MAC, address: str = LEASED) -> bytes:
    asked = request(number, mac, address, b"")
    options = bytes((53, 1, kind, 0, 51, 4)) + struct.pack("!I", seconds) + b"\xff"
    return b"\x02" + asked[1:12] + bytes(4) + socket.inet_aton(address) + asked[20:240] + options


def test_a_request_says_who_asks_for_what() -> None:
    asked = request(0x01020304, MAC, LEASED, b"\x01\x02")
    assert len(asked) == 300 and asked[:4] == b"\x01\x01\x06\x00" and asked[4:8] == b"\x01\x02\x03\x04"
    assert asked[12:16] == socket.inet_aton(LEASED) and asked[28:34] == bytes.fromhex(MAC.replace(":", ""))
    assert asked[236:248] == b"\x63\x82\x53\x63" + b"\x35\x01\x03" + b"\x3d\x02\x01\x02" + b"\x37"
    assert b"\x3d" not in request(1, MAC, LEASED, b"")[240:246]


def test_only_the_answer_to_the_request_is_one() -> None:
    assert read_answer(answer(5), 7, MAC, LEASED) == (5, 600)
    assert read_answer(answer(6), 7, MAC, LEASED) == (6, 0)
    assert read_answer(answer(2), 7, MAC, LEASED) is None
    assert read_answer(answer(5), 8, MAC, LEASED) is None
    assert read_answer(answer(5), 7, "02:00:00:00:00:11", LEASED) is None
    assert read_answer(answer(5), 7, MAC, "192.0.2.111") is None
    assert read_answer(request(7, MAC, LEASED, b""), 7, MAC, LEASED) is None


@given(st.binary(max_size=60), st.integers(0, 260))
def test_a_malformed_answer_is_none(options: bytes, length: int) -> None:
    for message in (answer(5)[:length], answer(5)[:240] + options):
        found = read_answer(message, 7, MAC, LEASED)
        assert found is None or found[0] in (5, 6)


def test_what_is_held_outlives_the_daemon_and_only_leases_are(tmp_path: Path) -> None:
    Leases(tmp_path, lambda: 100.0).hold(
        BRIDGE,
        [
            HostAddress(address=LEASED, prefix_length=24, lifetime_s=60),
            HostAddress(address="192.0.2.10", prefix_length=24),
            HostAddress(address="2001:db8::5", prefix_length=128, lifetime_s=60),
        ],
        "ff01",
    )
    later = Leases(tmp_path)
    assert later.held(BRIDGE) == [Lease(address=LEASED, client_id="ff01", due_s=100.0, expires_s=160.0)]
    assert later.look(BRIDGE, MAC, []) is None and later.held(BRIDGE) == [], "it has gone from the bridge"


# --- with a real server -----------------------------------------------------------------------------------------------


@contextmanager
def serving(host: Host, first: str, last: str) -> Iterator[None]:
    argv = ["ip", "netns", "exec", host.world, "dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--port=0"]
    argv += ["--interface=out", f"--dhcp-range={first},{last},255.255.255.0,2h", "--no-ping", "--user=root"]
    argv += [
        "--dhcp-authoritative",
        "--dhcp-leasefile=/dev/null",
        "--bind-interfaces",
        "--pid-file=",
        "--log-facility=-",
    ]
    server = subprocess.Popen(argv, stderr=subprocess.DEVNULL)
    try:
        assert until(lambda: ":67 " in run_in(host.world, "ss", "-uln"))
        yield
    finally:
        server.terminate()
        server.wait()


def held(host: Host) -> Lease:
    (lease,) = Leases(host.directory.parent / "uplinks").held(BRIDGE)
    return lease


def due(host: Host, *, expired: bool = False) -> None:
    """As if the time to ask again had come."""
    leases = Leases(host.directory.parent / "uplinks")
    now = held(host)
    leases._keep(BRIDGE, [now.model_copy(update={"due_s": 0.0, "expires_s": 0.0 if expired else now.expires_s})])


def problems(host: Host) -> list[str]:
    return [one.code for one in host.do(host.runner.repair()).problems.values()]


@pytest.mark.root
def test_a_lease_is_renewed_on_the_bridge() -> None:
    with new_host() as host:
        host.ip(f"addr add {LEASED}/24 dev eth0 valid_lft 300 preferred_lft 300")
        with serving(host, "192.0.2.100", "192.0.2.120"):
            host.do(host.runner.ensure(host.policy()))
            began = held(host).expires_s
            assert until(lambda: problems(host) == [] and held(host).expires_s > began + 6000), (
                "two hours, from the server"
            )
            renewed = held(host)
            due(host)
            assert until(lambda: problems(host) == [] and held(host).expires_s > renewed.expires_s)
        assert f"inet {LEASED}/24" in host.ip(f"addr show {BRIDGE}")
        due(host, expired=True)
        assert problems(host) == ["switch.uplink_lease"], "nobody answers any more"
        with serving(host, "192.0.2.200", "192.0.2.210"):
            due(host)
            assert until(lambda: problems(host) == ["switch.uplink_lease"] and held(host).refused)
        with serving(host, "192.0.2.100", "192.0.2.120"):
            due(host)
            assert until(lambda: problems(host) == [])
        assert f"inet {LEASED}/24" in host.ip(f"addr show {BRIDGE}"), (
            "the host keeps its address whatever the server says"
        )
        host.do(host.runner.remove(BRIDGE))
        assert not list(host.directory.parent.glob("uplinks/*.leases"))
