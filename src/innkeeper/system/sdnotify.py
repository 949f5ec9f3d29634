"""Tells systemd how this process is doing (the sd_notify protocol); does nothing where systemd did not start it."""

from __future__ import annotations

import os
import socket


def notify(*assignments: str) -> bool:
    """Send ``assignments`` such as ``READY=1`` or ``STATUS=...``; True when somebody was there to hear them."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return False
    if address.startswith("@"):  # an abstract socket
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as speaker:
        try:
            speaker.sendto("\n".join(assignments).encode(), address)
        except OSError:  # a supervisor that went away must not take the supervised process with it
            return False
    return True
