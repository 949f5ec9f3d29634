"""The VLANs that a bridge filters by itself, for switches with trunks: it adds and takes tags where ports need it.

Who may reach whom is in the rules (``vlans``) as everywhere; what rules cannot do is to give a frame of an access port
the tag that a trunk expects. A switch without trunks has a bridge that knows nothing of VLANs.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from innkeeper.network.features import VLAN_FILTERING, lacks
from innkeeper.network.links import Device
from innkeeper.network.policy import PortPolicy
from innkeeper.network.vlan_policy import VlanPolicy
from innkeeper.system import process

TAGGED, UNTAGGED, STRANGE = "", "pvid untagged", "?"
"""How a port carries a VLAN, in the words of ``bridge vlan add``; ``STRANGE`` is in no way of the inn's."""


def has_trunk(ports: Iterable[PortPolicy]) -> bool:
    return any(port.vlan.mode == "trunk" for port in ports)


def membership(policy: VlanPolicy) -> dict[int, str]:
    """VLAN id -> how the port carries it."""
    carried = {one: TAGGED for first, last in policy.tagged() for one in range(first, last + 1)}
    return carried if policy.vlan_id is None else carried | {policy.vlan_id: UNTAGGED}


def commands(tap: str, actual: Mapping[int, str], wanted: Mapping[int, str]) -> list[str]:
    """The lines for ``bridge -batch`` from ``actual`` to ``wanted``."""
    surplus = [one for one in actual if one not in wanted]
    missing = [one for one, how in wanted.items() if actual.get(one) != how]
    tagged = [one for one in missing if wanted[one] == TAGGED]
    changed = [one for one in tagged if one in actual]  # a flag that is not named goes only with the entry
    return (
        [f"vlan del dev {tap} vid {text}" for text in _texts(surplus + changed)]
        + [f"vlan add dev {tap} vid {text}" for text in _texts(tagged)]
        + [f"vlan add dev {tap} vid {one} {UNTAGGED}" for one in missing if wanted[one] == UNTAGGED]
    )


def ensure(bridge: Device, ports: Iterable[PortPolicy]) -> list[str]:
    """Make the bridge filter if it has a trunk, and its ports be in their VLANs; returns what was done.

    Raises ``Unavailable`` (``network.kernel_lacks``) when there is a trunk and this kernel's bridges do not filter.
    """
    plugged = list(ports)
    wanted = has_trunk(plugged)
    if wanted and bridge.vlan_filtering is None:
        raise lacks(VLAN_FILTERING.parts[0], "a trunk", VLAN_FILTERING.still)
    done = []
    if wanted:
        present = listed(process.run(["bridge", "-j", "vlan", "show"]).stdout)
        lines: list[str] = []
        for port in plugged:
            if changes := commands(port.tap, present.get(port.tap, {}), membership(port.vlan)):
                done.append(f"put {port.tap} into its VLANs")
                lines += changes
        if lines:
            process.run(["bridge", "-batch", "-"], stdin="".join(f"{line}\n" for line in lines).encode())
    if wanted != bool(bridge.vlan_filtering):
        process.run(["ip", "link", "set", "dev", bridge.name, "type", "bridge", "vlan_filtering", str(int(wanted))])
        done.append(f"let bridge {bridge.name} {'filter VLANs' if wanted else 'filter no VLANs'}")
    return done


def listed(text: bytes) -> dict[str, dict[int, str]]:
    """Port -> VLAN id -> how it carries it, of what ``bridge -j vlan show`` prints."""
    found: dict[str, dict[int, str]] = {}
    for port in json.loads(text or b"[]"):
        members = found.setdefault(port["ifname"], {})
        for entry in port["vlans"]:
            how = _how(entry)
            members.update(dict.fromkeys(range(entry["vlan"], entry.get("vlanEnd", entry["vlan"]) + 1), how))
    return found


def _how(entry: Mapping[str, Any]) -> str:
    flags = set(entry.get("flags", ()))
    if not flags:
        return TAGGED
    return UNTAGGED if flags == {"PVID", "Egress Untagged"} else STRANGE


def _texts(ids: Iterable[int]) -> list[str]:
    """Ids as the fewest ranges."""
    ranges: list[list[int]] = []
    for one in sorted(ids):
        if ranges and ranges[-1][1] + 1 == one:
            ranges[-1][1] = one
        else:
            ranges.append([one, one])
    return [f"{first}-{last}" if last > first else f"{first}" for first, last in ranges]
