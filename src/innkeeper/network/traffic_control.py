"""Traffic control of one network namespace through netlink: token buckets, the devices that frames are led through,
and copies of frames. Blocking; touches nothing but devices of the inn.
"""

from __future__ import annotations

import errno
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.rtnl.tcmsg.common import calc_xmittime

from innkeeper.model.problems import Failed
from innkeeper.network.features import lacks
from innkeeper.network.link_removal import remove_together
from innkeeper.network.policy import PortPolicy
from innkeeper.network.shaping import LIMITER_PREFIX, NOTHING, Bucket, Shape, shapes

_HANDLE = 0x494E_0000
"""Root queues of the inn carry it ("IN")."""
_CLSACT = 0xFFFF_FFF1
_INGRESS, _EGRESS = 0xFFFF_FFF2, 0xFFFF_FFF3
_PREFERENCE = {_INGRESS: 1, _EGRESS: 2}
"""Different ones: u32 lists the filters of both hooks of a device together when they have the same."""
_ALL_PROTOCOLS = 3
_REDIRECT, _MIRROR = 1, 2
_ABSENT = (errno.ENOENT, errno.ENODEV, errno.EINVAL)
_QUEUE_FRAMES = 1000

Actions = tuple[tuple[int, int], ...]
"""(redirect or mirror, device index) of a filter, in order."""


class TrafficControl:
    """Raises ``Unavailable`` (``network.kernel_lacks``) for what this kernel has not, ``Failed`` (``link.refused``)."""

    def __init__(self) -> None:
        self._netlink = IPRoute()

    def close(self) -> None:
        self._netlink.close()

    def make_limiter(self, name: str) -> int:
        """The index of the device that frames are led through; made if it is not there."""
        found = self._index(name)
        if found is None:
            with _kernel(f"{name} cannot be made", "ifb", "a maximum of what a vm sends"):
                self._netlink.link("add", ifname=name, kind="ifb", txqlen=_QUEUE_FRAMES)
            found = self._index(name)
        if found is None:
            raise Failed("link.refused", f"{name} has vanished while it was set up", remedy="try again")
        with _kernel(f"{name} cannot be set up", "ifb", "a maximum of what a vm sends"):
            self._netlink.link("set", index=found, state="up")
        return found

    def remove_limiters(self, devices: Iterable[str]) -> None:
        """Remove those of such devices that are there, in one step; other names are left alone."""
        found = [self._index(name) for name in devices if name.startswith(LIMITER_PREFIX)]
        try:
            remove_together(index for index in found if index is not None)
        except OSError as refused:
            raise Failed("link.refused", f"{len(found)} limiters cannot be removed", cause=str(refused)) from refused

    def set_shape(self, device: str, shape: Shape) -> bool:
        """Make traffic control at ``device`` be so; False when it was. A device that is not there has none."""
        index = self._index(device)
        if index is None:
            return False
        changed = self._set_root(index, device, shape.root)
        taken = [(_MIRROR, copy) for copy in shape.copy_in] + ([(_REDIRECT, shape.lead_in)] if shape.lead_in else [])
        sent = [(_MIRROR, copy) for copy in shape.copy_out]
        return self._set_filters(index, device, self._actions(taken), self._actions(sent)) or changed

    def clear(self, device: str) -> bool:
        """Take all of the inn's traffic control from ``device``."""
        return self.set_shape(device, NOTHING)

    def _index(self, name: str) -> int | None:
        with _kernel(f"{name} cannot be looked up"):
            found = self._netlink.link_lookup(ifname=name)
        return int(found[0]) if found else None

    def _actions(self, wanted: list[tuple[int, str]]) -> Actions:
        """Copies to devices that are gone are left out: their port comes back with a repair."""
        found = [(what, self._index(device)) for what, device in wanted]
        return tuple((what, index) for what, index in found if index is not None)

    # --- buckets ---

    def _set_root(self, index: int, device: str, wanted: Bucket | None) -> bool:
        present = self._root(index)
        if present == (_parameters(wanted) if wanted else None):
            return False
        with _kernel(f"{device} cannot be limited", "sch_tbf", "a maximum"):
            if wanted is None:
                with _absent_is_fine():
                    self._netlink.tc("del", index=index, handle=_HANDLE, root=True)
            else:
                self._netlink.tc(
                    "replace",
                    "tbf",
                    index,
                    handle=_HANDLE,
                    rate=wanted.rate_bytes_per_s,
                    burst=wanted.burst_bytes,
                    limit=wanted.queue_bytes,
                )
        return True

    def _root(self, index: int) -> tuple[int, int, int] | None:
        """Rate, burst in ticks and limit of the inn's bucket at a device."""
        for message in self._queues(index):
            if message["handle"] == _HANDLE and message.get_attr("TCA_KIND") == "tbf":
                facts = message.get_attr("TCA_OPTIONS").get_attr("TCA_TBF_PARMS")
                return facts["rate"], facts["buffer"], facts["limit"]
        return None

    def _queues(self, index: int) -> list[Any]:
        with _kernel("traffic control cannot be read"):
            return [message for message in self._netlink.get_qdiscs(index=index) if message["index"] == index]

    # --- filters ---

    def _set_filters(self, index: int, device: str, taken: Actions, sent: Actions) -> bool:
        stands = any(message.get_attr("TCA_KIND") == "clsact" for message in self._queues(index))
        if not taken and not sent:
            if stands:
                with _kernel(f"{device} cannot be changed"), _absent_is_fine():
                    self._netlink.tc("del", "clsact", index)
            return stands
        changed = not stands
        with _kernel(f"the filters of {device} cannot be set", "clsact, u32 or mirred", "mirroring, and a maximum"):
            if not stands:
                self._netlink.tc("add", "clsact", index)
            for parent, wanted in ((_INGRESS, taken), (_EGRESS, sent)):
                if self._filter(index, parent) != wanted:
                    self._replace_filter(index, parent, wanted)
                    changed = True
        return changed

    def _replace_filter(self, index: int, parent: int, wanted: Actions) -> None:
        with _absent_is_fine():
            self._netlink.tc("del-filter", index=index, parent=parent)
        if wanted:
            self._netlink.tc(
                "add-filter",
                "u32",
                index,
                parent=parent,
                prio=_PREFERENCE[parent],
                protocol=_ALL_PROTOCOLS,
                target=_HANDLE,
                keys=["0x0/0x0+0"],
                action=[
                    {
                        "kind": "mirred",
                        "direction": "egress",
                        "action": "mirror" if what == _MIRROR else "redirect",
                        "ifindex": device,
                    }
                    for what, device in wanted
                ],
            )

    def _filter(self, index: int, parent: int) -> Actions:
        found: list[tuple[int, int]] = []
        for message in self._netlink.get_filters(index=index, parent=parent):
            options = message.get_attr("TCA_OPTIONS")
            actions = options.get_attr("TCA_U32_ACT") if options is not None else None
            for _, action in actions["attrs"] if actions is not None else ():
                facts = action.get_attr("TCA_ACT_OPTIONS")
                mirred = facts.get_attr("TCA_MIRRED_PARMS")
                found.append((mirred["eaction"], mirred["ifindex"]))
        return tuple(found)


def _parameters(wanted: Bucket) -> tuple[int, int, int]:
    return (
        wanted.rate_bytes_per_s,
        calc_xmittime(wanted.rate_bytes_per_s, wanted.burst_bytes),
        wanted.queue_bytes,
    )


@contextmanager
def _kernel(what: str, part: str | None = None, feature: str = "") -> Iterator[None]:
    """``part`` of the kernel is what ``feature`` needs: without it the kernel answers that there is no such thing."""
    try:
        yield
    except NetlinkError as refused:
        if part is not None and refused.code in (errno.ENOENT, errno.EOPNOTSUPP):
            raise lacks(part, feature) from refused
        raise Failed(
            "link.refused", what, cause=str(refused), remedy="'inn doctor' checks what this kernel can do"
        ) from refused


@contextmanager
def _absent_is_fine() -> Iterator[None]:
    try:
        yield
    except NetlinkError as refused:
        if refused.code not in _ABSENT:
            raise


class Shaper:
    """Keeps traffic control at the devices of switches as their ports' policies say."""

    def __init__(self) -> None:
        self._control = TrafficControl()
        self._applied: dict[str, dict[str, Shape]] = {}
        """Bridge -> device -> shape."""

    def close(self) -> None:
        self._control.close()

    def ensure(
        self, bridge: str, ports: Iterable[PortPolicy], *, fresh: Collection[str] = (), verify: bool = False
    ) -> list[str]:
        """Shape the devices of one switch; returns what was done.

        Only what differs from the last time is looked at, and the taps in ``fresh``; ``verify`` looks at everything.
        """
        wanted, before = shapes(ports), self._applied.get(bridge, {})
        done = []
        going = sorted(before.keys() - wanted.keys())
        for device in going:
            if not device.startswith(LIMITER_PREFIX) and self._control.clear(device):
                done.append(f"let {device} go unlimited and unseen")
        self._control.remove_limiters(going)
        self._applied[bridge] = {device: shape for device, shape in before.items() if device in wanted}
        for device, shape in sorted(wanted.items(), key=lambda item: _limiters_last(item[0]), reverse=True):
            follows = fresh if not device.startswith(LIMITER_PREFIX) else ()
            if not verify and device not in follows and before.get(device) == shape:
                continue
            if device.startswith(LIMITER_PREFIX):
                self._control.make_limiter(device)
            self._applied[bridge].pop(device, None)
            if self._control.set_shape(device, shape):
                done.append(f"shape the traffic of {device}")
            self._applied[bridge][device] = shape
        return done

    def remove(self, bridge: str) -> None:
        """Take away what the switch's ports had beside their taps."""
        self._control.remove_limiters(self._applied.pop(bridge, {}))

    @property
    def limiters(self) -> set[str]:
        """The devices that frames of ports are led through."""
        return {device for shaped in self._applied.values() for device in shaped if device.startswith(LIMITER_PREFIX)}


def _limiters_last(device: str) -> tuple[bool, str]:
    return device.startswith(LIMITER_PREFIX), device
