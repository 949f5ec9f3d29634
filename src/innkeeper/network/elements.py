"""The elements that stand, counted by container; and base chains that stand only while elements need them. Pure.

Every frame pays for every base chain of its way (50 to 70 ns), whether or not a rule of it concerns the frame's port.
So a base chain whose rules all look into one set stands while that set has elements, and not before.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable

from innkeeper.network.ruleset import Element

HOOK = "hook"
"""The container of elements that are base chains."""
NEEDED_BY: dict[str, tuple[str, ...]] = {
    "meter_from_ports": ("metered",),
    "meter_between_ports": ("metered",),
    "meter_from_host": ("metered",),
    "mark_from_ports": ("dscp_of",),
    "from_outside": ("uplink_macs",),
    "lease_from_outside": ("learning_ports",),
    "overlay": ("overlays",),
    "acl_from_port": ("acl_out",),
    "acl_to_port": ("acl_in",),
    "acl_from_host": ("acl_in",),
    "vlan_from_ports": ("vlan_ports",),
    "vlan_between_ports": ("vlan_ports",),
    "vlan_to_host": ("vlan_ports", "vlan_routed", "vlan_routed6"),
    "vlan_from_host": ("vlan_ports",),
    "share_uplinks": ("minimum_class",),
    "host_firewall": ("standing_closed", "trial_closed"),
}
"""Base chain -> the sets and maps of which one must have an element for it to do anything."""
_INET = frozenset({"host_firewall"})
"""Those of them that are the inet table's; the others are the bridge table's."""


def family_of(chain: str) -> str:
    """The family of the table that a chain of ``NEEDED_BY`` belongs to."""
    return "inet" if chain in _INET else "bridge"


def chains_of(family: str) -> frozenset[str]:
    """The chains of ``NEEDED_BY`` that are a table's."""
    return frozenset(chain for chain in NEEDED_BY if family_of(chain) == family)


def split(body: str) -> tuple[str, dict[str, str]]:
    """A schema's text without the chains of ``NEEDED_BY``, and those of them that it has, by name."""
    chains = {}
    for name in NEEDED_BY:
        if found := re.search(rf"^  chain {name} {{\n.*?^  }}\n", body, re.MULTILINE | re.DOTALL):
            chains[name] = found[0]
            body = body.replace(found[0], "")
    return body, chains


def hooks(containers: Collection[str]) -> frozenset[Element]:
    """The base chains that are needed when just those sets and maps have elements."""
    return frozenset(
        Element(family_of(chain), HOOK, (chain,))
        for chain, needs in NEEDED_BY.items()
        if any(container in containers for container in needs)
    )


class Elements:
    """A set of elements that is changed in place: a change costs what it changes, however many stand."""

    def __init__(self, elements: Iterable[Element] = ()) -> None:
        self._all = set(elements)
        self._count = Counter(element.container for element in self._all)

    def __contains__(self, element: Element) -> bool:
        return element in self._all

    def difference(
        self, old: frozenset[Element], new: frozenset[Element]
    ) -> tuple[frozenset[Element], frozenset[Element]]:
        """What goes and what comes when ``old`` elements become ``new``, with the base chains that follow from it."""
        gone = frozenset(one for one in old - new if one.container != HOOK)
        come = frozenset(one for one in new - old if one.container != HOOK)
        count = Counter(one.container for one in come if one not in self._all)
        count.subtract(one.container for one in gone if one in self._all)
        changed = {container for container, by in count.items() if by}
        before = hooks({container for container in changed if self._count[container] > 0})
        after = hooks({container for container in changed if self._count[container] + count[container] > 0})
        kept = hooks(
            {container for container in self._count if self._count[container] > 0 and container not in changed}
        )
        return gone | (before - after - kept), come | (after - before - kept)

    def move(self, gone: frozenset[Element], come: frozenset[Element]) -> None:
        """Make a difference be so."""
        self._count.subtract(one.container for one in gone & self._all)
        self._all -= gone
        self._count.update(one.container for one in come - self._all)
        self._all |= come

    def moved(self, gone: frozenset[Element], come: frozenset[Element]) -> frozenset[Element]:
        """All elements as they would be after a difference."""
        return frozenset(self._all - gone | come)
