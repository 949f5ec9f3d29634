"""Minimum bandwidth in the kernel: an HTB at the uplink's root, a class for each port with a minimum.

Blocking; of the network namespace of the thread that made it. Touches only the root queue of a switch's uplink.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from innkeeper.model.problems import Failed
from innkeeper.network.features import lacks
from innkeeper.network.minimums import DEFAULT_MINOR, MAJOR, ROOT_MINOR, Shares

_HANDLE = MAJOR << 16

Facts = tuple[int, int, int]
"""Rate and ceiling (bytes a second) and quantum (bytes) of a class."""


class UplinkShares:
    """Keeps the queues of uplinks as their switches' ports ask.

    Raises ``Unavailable`` (``network.kernel_lacks``), ``Failed`` (``link.refused``).
    """

    def __init__(self) -> None:
        self._netlink = IPRoute()
        self._applied: dict[str, Shares] = {}
        """Device -> what it shares."""

    def close(self) -> None:
        self._netlink.close()

    def ensure(self, device: str | None, wanted: Shares | None, *, verify: bool = False) -> list[str]:
        """Make ``device`` share its rate so; None takes the inn's queue away. Returns what was done.

        ``verify``: look, whatever was done before.
        """
        if device is None or (not verify and self._applied.get(device) == wanted):
            return []
        index = self._index(device)
        if index is None:
            self._applied.pop(device, None)
            return []
        changed = self._remove(index, device) if wanted is None else self._share(index, device, wanted)
        if wanted is None:
            self._applied.pop(device, None)
            return [f"let {device} serve all alike"] if changed else []
        self._applied[device] = wanted
        return [f"share {device} by minimums"] if changed else []

    def _index(self, name: str) -> int | None:
        with _kernel(f"{name} cannot be looked up"):
            found = self._netlink.link_lookup(ifname=name)
        return int(found[0]) if found else None

    def _stands(self, index: int) -> bool:
        with _kernel("traffic control cannot be read"):
            return any(
                message["index"] == index
                and message["handle"] == _HANDLE
                and message.get_attr("TCA_KIND") == "htb"
                and message.get_attr("TCA_OPTIONS").get_attr("TCA_HTB_INIT")["defcls"] == DEFAULT_MINOR
                for message in self._netlink.get_qdiscs(index=index)
            )

    def _remove(self, index: int, device: str) -> bool:
        if not self._stands(index):
            return False
        with _kernel(f"{device} cannot be changed"):
            self._netlink.tc("del", index=index, handle=_HANDLE, root=True)
        return True

    def _share(self, index: int, device: str, wanted: Shares) -> bool:
        changed = not self._stands(index)
        ceiling = wanted.rate_bytes_per_s
        classes = {ROOT_MINOR: (ceiling, ceiling, 0, wanted.burst_bytes)} | {
            number: (share.rate_bytes_per_s, ceiling, share.quantum_bytes, share.burst_bytes)
            for number, share in wanted.shares.items()
        }
        with _kernel(f"{device} cannot be shared", "sch_htb"):
            if changed:
                self._netlink.tc("replace", "htb", index, handle=_HANDLE, default=DEFAULT_MINOR)
            present = self._classes(index)
            for number, (rate, ceil, quantum, burst) in classes.items():
                if number in present and _same(present[number], (rate, ceil, quantum)):
                    continue
                self._netlink.tc(
                    "replace-class",
                    "htb",
                    index,
                    handle=_HANDLE | number,
                    parent=_HANDLE if number == ROOT_MINOR else _HANDLE | ROOT_MINOR,
                    rate=rate,
                    ceil=ceil,
                    quantum=quantum,
                    burst=burst,
                    cburst=wanted.burst_bytes,
                )
                changed = True
            for number in present.keys() - classes.keys():
                self._netlink.tc("del-class", index=index, handle=_HANDLE | number)
                changed = True
        return changed

    def _classes(self, index: int) -> dict[int, Facts]:
        """Minor number -> what the kernel says of the class."""
        found: dict[int, Facts] = {}
        for message in self._netlink.get_classes(index=index):
            if message["handle"] >> 16 == MAJOR:
                facts: Any = message.get_attr("TCA_OPTIONS").get_attr("TCA_HTB_PARMS")
                found[message["handle"] & 0xFFFF] = facts["rate"], facts["ceil"], facts["quantum"]
        return found


def _same(present: Facts, wanted: Facts) -> bool:
    """A class without a quantum of its own is given one by the kernel."""
    return present[:2] == wanted[:2] and wanted[2] in (0, present[2])


@contextmanager
def _kernel(what: str, part: str | None = None) -> Iterator[None]:
    try:
        yield
    except NetlinkError as refused:
        if part is not None and refused.code in (errno.ENOENT, errno.EOPNOTSUPP):
            raise lacks(part, "a minimum bandwidth") from refused
        raise Failed(
            "link.refused", what, cause=str(refused), remedy="'inn doctor' checks what this kernel can do"
        ) from refused
