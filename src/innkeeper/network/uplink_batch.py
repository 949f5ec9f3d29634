"""Steps of an uplink's move as one netlink message batch.

The kernel works through all messages of a batch within one system call: a process that is killed has either sent it or
not, and nothing of the host's runs in between. Blocking; of the network namespace of the thread that made it.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import struct
from collections.abc import Callable, Iterable
from typing import Any

from pyroute2.netlink.rtnl.fibmsg import fibmsg
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.ndmsg import ndmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from innkeeper.model.problems import Failed
from innkeeper.model.uplink import HostAddress, HostHop, HostNeighbour, HostRoute, HostRule
from innkeeper.network.uplink_plan import Step

_REQUEST, _ACK, _REPLACE, _CREATE, _APPEND = 0x1, 0x4, 0x100, 0x400, 0x800
_SETLINK, _ERROR = 19, 2
_TYPES = {HostAddress: 20, HostRoute: 24, HostNeighbour: 28, HostRule: 32}
"""RTM_NEW…; the one that deletes is the next number."""
_ADD_FLAGS = {
    HostAddress: _CREATE | _REPLACE,
    HostRoute: _CREATE | _APPEND,
    HostNeighbour: _CREATE | _REPLACE,
    HostRule: _CREATE | 0x200,
}
_TOLERATED = {
    "add": {errno.EEXIST},
    "delete": {errno.ESRCH, errno.ENOENT, errno.EADDRNOTAVAIL, errno.ENODEV},
    "join": set[int](),
    "leave": {errno.ENODEV, errno.EINVAL},
    "up": set[int](),
    "down": set[int](),
}
"""What says that it is so already."""
_FOREVER = 0xFFFFFFFF
_NODAD, _MANAGETEMPADDR, _NOPREFIXROUTE = 0x2, 0x100, 0x200
_ONLINK, _IFF_UP = 0x4, 0x1
_FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}
_SEND_BYTES = 4 << 20

IndexOf = Callable[[str], int]
"""Device name -> its index; 0 for a device that is gone."""


def run_batch(steps: Iterable[Step], index_of: IndexOf) -> list[str]:
    """Have the kernel do ``steps`` in order, in one system call; returns what it refused, in words.

    What is so already is no refusal. Raises ``Failed`` (``link.refused``) when the kernel cannot be reached at all.
    """
    messages = [(step, message) for step in steps if (message := _encoded(step, index_of)) is not None]
    if not messages:
        return []
    for number, (_, message) in enumerate(messages):
        # Only the last is acknowledged: refusals are told of anyway, and thousands of answers would overflow.
        message["header"]["sequence_number"] = number + 1
        message["header"]["flags"] |= _REQUEST | (_ACK if number == len(messages) - 1 else 0)
        message.encode()
    try:
        answers = _exchange(b"".join(bytes(message.data) for _, message in messages), len(messages))
    except OSError as refused:
        raise Failed(
            "link.refused", "the kernel cannot be reached", cause=str(refused), remedy="see 'inn doctor'"
        ) from refused
    return [
        f"{step}: {os.strerror(answers[number])}"
        for number, (step, _) in enumerate(messages, start=1)
        if answers.get(number, 0) not in {0, *_TOLERATED[step.verb]}
    ]


def _exchange(sent: bytes, last: int) -> dict[int, int]:
    """Send the batch; sequence number -> errno of what was refused."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE) as netlink:
        netlink.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BYTES)
        netlink.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SEND_BYTES)
        netlink.settimeout(10.0)
        netlink.bind((0, 0))
        netlink.send(sent)
        answers: dict[int, int] = {}
        while last not in answers:
            received = netlink.recv(1 << 20)
            place = 0
            while place < len(received):
                length, kind, _, number, _ = struct.unpack_from("=IHHII", received, place)
                if kind == _ERROR:
                    (answers[number],) = struct.unpack_from("=i", received, place + 16)
                    answers[number] = -answers[number]
                place += (length + 3) & ~3
        return answers


def _encoded(step: Step, index_of: IndexOf) -> Any:
    index = index_of(step.device)
    if index == 0 and not isinstance(step.item, HostRule):
        return None  # a device that is gone has nothing and gets nothing
    if step.item is None:
        message = ifinfmsg()
        message["index"] = index
        if step.verb in ("up", "down"):
            message.update(flags=_IFF_UP if step.verb == "up" else 0, change=_IFF_UP)
        else:
            message["attrs"] = [("IFLA_MASTER", index_of(step.master) if step.master else 0)]
        message["header"].update(type=_SETLINK, flags=0)
        return message
    item = step.item
    adding = step.verb == "add"
    made = _made(item, index, step.device, index_of, adding=adding)
    made["header"].update(type=_TYPES[type(item)] + (not adding), flags=_ADD_FLAGS[type(item)] if adding else 0)
    return made


def _made(item: object, index: int, device: str, index_of: IndexOf, *, adding: bool) -> Any:
    if isinstance(item, HostAddress):
        return _address(item, index, device, adding=adding)
    if isinstance(item, HostRoute):
        return _route(item, index, index_of, adding=adding)
    if isinstance(item, HostNeighbour):
        message = ndmsg()
        message.update(family=_FAMILY[ipaddress.ip_address(item.address).version], ifindex=index, state=0x80)
        message["attrs"] = [("NDA_DST", item.address), ("NDA_LLADDR", item.mac)]
        return message
    assert isinstance(item, HostRule)
    return _rule(item, device)


def _address(item: HostAddress, index: int, device: str, *, adding: bool) -> Any:
    message = ifaddrmsg()
    message.update(family=_FAMILY[item.version], prefixlen=item.prefix_length, scope=item.scope, index=index)
    attributes: list[tuple[str, object]] = [("IFA_LOCAL", item.address), ("IFA_ADDRESS", item.peer or item.address)]
    if adding:
        flags = (0 if item.prefix_route else _NOPREFIXROUTE) | (_MANAGETEMPADDR if item.autoconf else 0)
        # It was the host's a moment ago: to look again whether it is free would take it away for a second.
        flags |= _NODAD if item.version == 6 else 0
        attributes += [("IFA_FLAGS", flags)]
        attributes += [("IFA_BROADCAST", item.broadcast)] if item.broadcast else []
        if item.label is not None and item.label.startswith(f"{device}:"):  # a label must begin with its device's name
            attributes += [("IFA_LABEL", item.label)]
        attributes += [("IFA_RT_PRIORITY", item.metric)] if item.metric else []
        valid = _FOREVER if item.lifetime_s is None else item.lifetime_s
        preferred = _FOREVER if item.preferred_s is None else item.preferred_s
        ages = {"ifa_preferred": min(preferred, valid), "ifa_valid": valid, "cstamp": 0, "tstamp": 0}
        attributes += [("IFA_CACHEINFO", ages)]
    message["attrs"] = attributes
    return message


def _route(item: HostRoute, index: int, index_of: IndexOf, *, adding: bool) -> Any:
    network = ipaddress.ip_network(item.destination)
    message = rtmsg()
    message.update(
        family=_FAMILY[item.version],
        dst_len=network.prefixlen,
        tos=item.tos,
        table=item.table if item.table < 256 else 252,
        proto=item.protocol,
        scope=item.scope,
        type=item.route_type,
        flags=_ONLINK if item.onlink else 0,
    )
    attributes: list[tuple[str, object]] = [("RTA_TABLE", item.table)]
    if network.prefixlen:
        attributes.append(("RTA_DST", str(network.network_address)))
    if item.metric:
        attributes.append(("RTA_PRIORITY", item.metric))
    if item.source:
        attributes.append(("RTA_PREFSRC", item.source))
    if item.preference is not None and adding:
        attributes.append(("RTA_PREF", item.preference))
    if item.metrics and adding:
        attributes.append(("RTA_METRICS", {"attrs": [list(one) for one in item.metrics]}))
    if item.expires_s is not None and adding and item.version == 6:
        attributes.append(("RTA_EXPIRES", struct.pack("=I", item.expires_s)))
    if item.hops:
        attributes.append(("RTA_MULTIPATH", [_hop(hop, item.version, index, index_of) for hop in item.hops]))
    else:
        attributes += [("RTA_OIF", index), *_gateway(item.gateway, item.version)]
    message["attrs"] = attributes
    return message


def _hop(hop: HostHop, version: int, index: int, index_of: IndexOf) -> dict[str, object]:
    return {
        "oif": index_of(hop.device) if hop.device else index,
        "hops": hop.weight - 1,
        "flags": _ONLINK if hop.onlink else 0,
        "attrs": _gateway(hop.gateway, version),
    }


def _gateway(gateway: str | None, version: int) -> list[tuple[str, object]]:
    if gateway is None:
        return []
    if ipaddress.ip_address(gateway).version == version:
        return [("RTA_GATEWAY", gateway)]
    return [("RTA_VIA", {"family": socket.AF_INET6, "addr": gateway})]


def _rule(item: HostRule, device: str) -> Any:
    message = fibmsg()
    source = ipaddress.ip_network(item.source) if item.source else None
    target = ipaddress.ip_network(item.destination) if item.destination else None
    message.update(
        family=_FAMILY[item.version],
        src_len=source.prefixlen if source else 0,
        dst_len=target.prefixlen if target else 0,
        table=item.table if item.table < 256 else 252,
        action=1,
        flags=0x2 if item.invert else 0,
    )
    attributes: list[tuple[str, object]] = [("FRA_TABLE", item.table), ("FRA_PRIORITY", item.priority)]
    attributes += [("FRA_IIFNAME", device)] if item.is_in else []
    attributes += [("FRA_OIFNAME", device)] if item.is_out else []
    attributes += [("FRA_SRC", str(source.network_address))] if source else []
    attributes += [("FRA_DST", str(target.network_address))] if target else []
    attributes += [("FRA_FWMARK", item.mark)] if item.mark is not None else []
    attributes += [("FRA_FWMASK", item.mask)] if item.mask is not None else []
    message["attrs"] = attributes
    return message
