"""The host's firewall in the kernel: what holds, what is tried until it is confirmed, what it dropped. Blocking.

A trial ends by itself: the kernel takes the elements of the set ``armed`` away when their time is up.
"""

from __future__ import annotations

from innkeeper.model.problems import Problem
from innkeeper.network.host_firewall import ARMED, DROPPED
from innkeeper.network.host_input import DROPPED_OF_GUESTS
from innkeeper.network.nft import Nft
from innkeeper.network.rules import Rules
from innkeeper.network.ruleset import Element


class FirewallInKernel:
    """``elements`` is what is desired of it. Raises ``Failed`` (``nft.refused``): what stood before stands."""

    def __init__(self, table: str, nft: Nft, rules: Rules) -> None:
        self._table, self._nft, self._rules = table, nft, rules
        self.elements: frozenset[Element] = frozenset()

    def become(self, elements: frozenset[Element]) -> None:
        """Make it be so; a trial that is no longer among the elements is over in the same instant."""
        self._rules.change(self.elements, elements)
        self.elements = elements

    def try_out(self, elements: frozenset[Element], seconds: float) -> None:
        """Make it be so, and its trial hold for that long."""
        before = self.elements
        self.disarm()
        self.become(elements)
        life = f"timeout {max(1, round(seconds * 1000))}ms"
        try:
            self._nft.apply(
                f"flush set inet {self._table} {ARMED}\n"
                f"add element inet {self._table} {ARMED} {{ ipv4 {life}, ipv6 {life} }}\n"
            )
        except Problem:
            self.become(before)
            raise

    def disarm(self) -> None:
        """No trial holds."""
        if self.left_s() is not None:
            self._nft.apply(f"flush set inet {self._table} {ARMED}\n")

    def left_s(self) -> float | None:
        """How long the trial holds still, in whole seconds; None when none does."""
        if not self._nft.table_exists("inet", self._table):
            return None
        listed = self._nft.read(f"list set inet {self._table} {ARMED}")
        living = [one["elem"]["expires"] for item in listed for one in item.get("set", {}).get("elem", ())]
        return float(max(living)) if living else None

    def dropped(self) -> int:
        """Packets that it dropped since the rules were loaded."""
        return self.all_dropped().get("outside", 0)

    def all_dropped(self) -> dict[str, int]:
        """Packets to the host that were dropped since the rules were loaded: of guests, and from outside."""
        if not self._nft.table_exists("inet", self._table):
            return {}
        counters = [item["counter"] for item in self._nft.read(f"list counters table inet {self._table}")]
        names = {DROPPED_OF_GUESTS: "guests", DROPPED: "outside"}
        return {names[one["name"]]: one["packets"] for one in counters if one["name"] in names}
