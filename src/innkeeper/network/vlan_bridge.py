"""The VLANs that a bridge filters by itself, where a port has tags: it adds and takes them as its ports need it.

Who may reach whom is in the rules (``vlans``) as everywhere; what rules cannot do is to give a frame of an access port
the tag that a trunk expects. The port that leads outside is a trunk of the VLANs that the switch's cards are in. A
switch without trunks, and an external one without VLANs, has a bridge that knows nothing of them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from innkeeper.network.features import VLAN_FILTERING, lacks
from innkeeper.network.links import Device
from innkeeper.network.policy import PortPolicy, SwitchPolicy
from innkeeper.network.vlan_policy import OWN_VLAN, UNTAGGED as NO_VLAN, VlanPolicy, carried_outside, ranges
from innkeeper.system import process

TAGGED, UNTAGGED, STRANGE = "", "pvid untagged", "?"
"""How a port carries a VLAN, in the words of ``bridge vlan add``; ``STRANGE`` is in no way of the inn's."""


def has_tags(switch: SwitchPolicy, ports: Iterable[PortPolicy]) -> bool:
    """Whether frames carry a tag at any port of the switch."""
    policies = [port.vlan for port in ports]
    trunk = any(policy.mode == "trunk" for policy in policies)
    return trunk or (switch.outside is not None and any(policy != NO_VLAN for policy in policies))


def membership(policy: VlanPolicy) -> dict[int, str]:
    """VLAN id -> how the port carries it."""
    carried = {one: TAGGED for first, last in policy.tagged() for one in range(first, last + 1)}
    return carried if policy.vlan_id is None else carried | {policy.vlan_id: UNTAGGED}


def memberships(switch: SwitchPolicy, ports: Iterable[PortPolicy]) -> dict[str, dict[int, str]]:
    """Device -> VLAN id -> how it carries the VLAN, of all ports of the bridge."""
    found = {port.tap: membership(port.vlan) for port in ports}
    if switch.outside is not None:
        outside = VlanPolicy("trunk", OWN_VLAN, carried_outside([port.vlan for port in ports]))
        found[switch.outside] = membership(outside)
    return found


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


def ensure(switch: SwitchPolicy, bridge: Device, ports: Iterable[PortPolicy]) -> list[str]:
    """Make the bridge filter if a port has tags, and its ports be in their VLANs; returns what was done.

    What is no port of the bridge now, as an uplink that another bridge has, is left for the next time.
    Raises ``Unavailable`` (``network.kernel_lacks``) when there are tags and this kernel's bridges do not filter.
    """
    plugged = list(ports)
    wanted = has_tags(switch, plugged)
    if wanted and bridge.vlan_filtering is None:
        raise lacks(VLAN_FILTERING.parts[0], "a trunk, or a VLAN that leads outside,", VLAN_FILTERING.still)
    done = []
    if wanted:
        present = listed(process.run(["bridge", "-j", "vlan", "show"]).stdout)
        lines: list[str] = []
        ours = ports_of(bridge.name, process.run(["bridge", "-j", "link", "show"]).stdout)
        for device, carried in memberships(switch, plugged).items():
            if device in ours and (changes := commands(device, present.get(device, {}), carried)):
                done.append(f"put {device} into its VLANs")
                lines += changes
        if lines:
            process.run(["bridge", "-batch", "-"], stdin="".join(f"{line}\n" for line in lines).encode())
    if wanted != bool(bridge.vlan_filtering):
        process.run(["ip", "link", "set", "dev", bridge.name, "type", "bridge", "vlan_filtering", str(int(wanted))])
        done.append(f"let bridge {bridge.name} {'filter VLANs' if wanted else 'filter no VLANs'}")
    return done


def ports_of(bridge: str, text: bytes) -> set[str]:
    """The ports of ``bridge``, of what ``bridge -j link show`` prints."""
    return {port["ifname"] for port in json.loads(text or b"[]") if port.get("master") == bridge}


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
    return [f"{first}-{last}" if last > first else f"{first}" for first, last in ranges(ids)]
