"""Whether a service of a namespace is reached from another: one that listens, and one that knocks."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager

from switch_lab import in_namespace

PATIENCE_S = 0.4


@contextmanager
def listening(namespace: str, kind: int, port: int) -> Iterator[socket.socket]:
    """A service of the host on every address."""

    def make() -> socket.socket:
        service = socket.socket(socket.AF_INET6, kind)
        service.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        service.bind(("::", port))
        if kind == socket.SOCK_STREAM:
            service.listen()
        service.settimeout(PATIENCE_S)
        return service

    with in_namespace(namespace, make) as service:
        yield service


def reaches(machine: str, address: str, kind: int, port: int, service: socket.socket) -> bool:
    """Whether a packet from ``machine`` comes to the service."""

    def knock() -> bool:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        place = socket.getaddrinfo(address, port, family, kind)[0][4]
        with socket.socket(family, kind) as client:
            client.settimeout(PATIENCE_S)
            try:
                client.connect(place)
                client.send(b"knock")
            except OSError:
                return False
            if kind == socket.SOCK_STREAM:
                return True
            try:
                return service.recv(100) == b"knock"
            except TimeoutError:
                return False

    return in_namespace(machine, knock)
