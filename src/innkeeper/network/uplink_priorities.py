"""802.1p priorities in the kernel: filters where frames leave by an uplink. Blocking.

Touches only filters of its own preference, and the hook for them where nobody else has any.
"""

from __future__ import annotations

import json
from collections.abc import Set

from innkeeper.network.features import PRIORITIES, lacking, lacks
from innkeeper.network.priorities import PREFERENCE, Priority, commands, listed
from innkeeper.network.uplink_guard import index_of
from innkeeper.system import process
from innkeeper.system.kernel_parts import kernel_parts

_NONE = frozenset[Priority]()


class UplinkPriorities:
    """Keeps the filters of uplinks as their switches' ports ask. Raises ``Unavailable`` (``network.kernel_lacks``),
    ``Failed`` (``process.failed``).
    """

    def __init__(self) -> None:
        self._applied: dict[str, Set[Priority] | None] = {}
        """None: nobody knows, since what was begun last did not end well."""

    def ensure(self, device: str | None, wanted: Set[Priority], *, verify: bool = False) -> list[str]:
        """Have what leaves by ``device`` carry these priorities; returns what was done.

        ``verify``: look, whatever was done before.
        """
        if device is None or (not verify and self._applied.get(device, _NONE) == wanted):
            return []
        if index_of(device) == 0:
            self._applied.pop(device, None)
            return []
        for part in lacking(PRIORITIES, kernel_parts(PRIORITIES.parts)) if wanted else ():
            raise lacks(part, "an 802.1p priority", PRIORITIES.still)
        self._applied[device] = None
        changed = self._apply(device, wanted)
        self._applied[device] = wanted
        return [f"set priorities at {device}"] if changed else []

    def _apply(self, device: str, wanted: Set[Priority]) -> bool:
        has_hook = _has_hook(device)
        present = listed(_filters(device, "egress")) if has_hook else _NONE
        if present == wanted:
            return False
        lines = [] if has_hook else [f"qdisc add dev {device} clsact"]
        lines += [f"filter del dev {device} egress pref {PREFERENCE}"] if present else []
        lines += commands(device, wanted)
        process.run(["tc", "-batch", "-"], stdin="".join(f"{line}\n" for line in lines).encode())
        if not wanted and not any(json.loads(_filters(device, hook) or b"[]") for hook in ("ingress", "egress")):
            process.run(["tc", "qdisc", "del", "dev", device, "clsact"])
        return True


def _has_hook(device: str) -> bool:
    queues = json.loads(process.run(["tc", "-j", "qdisc", "show", "dev", device]).stdout or b"[]")
    return any(queue["kind"] == "clsact" for queue in queues)


def _filters(device: str, hook: str) -> bytes:
    return process.run(["tc", "-j", "filter", "show", "dev", device, hook]).stdout
