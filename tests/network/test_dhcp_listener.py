"""Who is heard at an uplink: servers beyond it and clients on this side, and nobody in the other's name."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Iterator
from dataclasses import replace

import frames as f
import pytest
from host_lab import BRIDGE, Host, dhcp_outside, external_port, new_host, plugged, send_from_world
from switch_lab import PATIENCE_S, Guest

from innkeeper.network.dhcp_listener import Listener
from innkeeper.network.dhcp_messages import Message
from innkeeper.network.policy import GuardPolicy

pytestmark = pytest.mark.root
LEASE = bytes([51, 4]) + struct.pack("!I", 3600)


@pytest.fixture
def host() -> Iterator[Host]:
    with new_host() as made:
        made.do(made.runner.ensure(made.policy()))
        yield made


def broadcast(source: str, ports: tuple[int, int], message: bytes, tags: tuple[tuple[int, int], ...] = ()) -> bytes:
    ours = "0.0.0.0" if ports[0] == 68 else "192.0.2.1"
    packet = f.ipv4(ours, "255.255.255.255", 17, f.udp(ours, "255.255.255.255", *ports, message))
    return f.ethernet(f.BROADCAST, source, 0x0800, packet, tags)


def acknowledgement(to: Guest, number: int, address: str) -> bytes:
    return f.dhcp(2, 5, to.mac, yours=address, options=LEASE, xid=number)


async def until_heard(listener: Listener, wanted: int) -> list[Message]:
    """All messages up to the transaction with that number; then nobody listens any more."""
    heard: list[Message] = []
    batches = aiter(listener)
    async with asyncio.timeout(PATIENCE_S):
        async for messages in batches:
            heard += messages
            if any(message.number == wanted for message in messages):
                break
    await batches.aclose()  # type: ignore[attr-defined]
    return heard


def test_servers_outside_and_clients_inside_are_heard(host: Host) -> None:
    rogue = replace(external_port(2), guards=GuardPolicy(dhcp=False))
    with plugged(host, external_port(1)) as guest, plugged(host, rogue) as attacker:
        listener = host.do(host.runner.listen("eth0"))
        guest.send(broadcast(guest.mac, (68, 67), f.dhcp(1, 1, guest.mac, xid=1)))
        attacker.send(broadcast(attacker.mac, (67, 68), acknowledgement(guest, 2, "192.0.2.66")))
        guest.wait_for(f.ip("192.0.2.66"))
        server = "02:00:00:00:00:20"
        send_from_world(
            host,
            broadcast(server, (67, 68), acknowledgement(guest, 3, "192.0.2.67"), ((0x8100, 5),)),
            broadcast(server, (68, 67), f.dhcp(1, 3, guest.mac, xid=4)),
            broadcast(server, (67, 68), acknowledgement(guest, 5, "192.0.2.68")),
        )
        heard = host.do(until_heard(listener, 5))
    assert [(message.kind, message.number, message.vlan_id) for message in heard if message.number < 10] == [
        ("ask", 1, None),
        ("give", 3, 5),
        ("give", 5, None),
    ]
    assert heard[-1].given == (("192.0.2.68", 3600),)


def test_a_real_server_is_heard(host: Host) -> None:
    with dhcp_outside(host), plugged(host, external_port(1)) as guest:
        listener = host.do(host.runner.listen("eth0"))
        options = bytes([50, 4]) + f.ip("192.0.2.110") + bytes([54, 4]) + f.ip("192.0.2.1")
        guest.send(broadcast(guest.mac, (68, 67), f.dhcp(1, 1, guest.mac, xid=8, options=options[:6])))
        guest.wait_for(f.ip("192.0.2.110"))
        guest.send(broadcast(guest.mac, (68, 67), f.dhcp(1, 3, guest.mac, xid=9, options=options)))
        heard = host.do(until_given(listener))
        assert heard.mac == guest.mac and heard.given == (("192.0.2.110", 3600),)


async def until_given(listener: Listener) -> Message:
    async with asyncio.timeout(PATIENCE_S):
        async for messages in aiter(listener):
            for message in messages:
                if message.kind == "give":
                    return message
    raise AssertionError("the device has gone")


def test_it_ends_with_the_device(host: Host) -> None:
    listener = host.do(host.runner.listen("eth0"))

    async def read() -> list[list[Message]]:
        async with asyncio.timeout(PATIENCE_S):
            return [messages async for messages in aiter(listener)]

    host.do(host.runner.remove(BRIDGE))
    host.ip("link del eth0")
    assert all(messages == [] for messages in host.do(read()))
