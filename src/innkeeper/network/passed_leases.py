"""Leases that pass on their way in from outside, noted by the kernel itself.

So a guest may use a new address in the very moment it hears of it, and also while no daemon runs: the daemon takes over
what was noted (``innkeeper.daemon.learning``), and says when it ends. An acknowledgement is known by its type, which
servers send as the first option; where one does not, the daemon is as quick as it can be.
"""

from __future__ import annotations

import contextlib
import ipaddress
from collections.abc import Iterable

from innkeeper.model.problems import Problem
from innkeeper.network.nft import Nft
from innkeeper.network.policy import PortPolicy, SwitchPolicy

KEPT_S = 86_400
"""So long the kernel keeps what nobody takes over."""

SCHEMA = f"""\
  set learning_ports {{ type ifname; }}
  set passed_leases {{ typeof oifname . @th,192,32; size 65536; flags dynamic,timeout; timeout {KEPT_S}s; }}
  chain lease_from_outside {{
    type filter hook forward priority -250; policy accept;
    iifname @trusted_ports oifname @learning_ports meta protocol ip ip frag-off & 0x3fff == 0 udp dport 68 \
@th,1984,24 0x350105 oifname . @th,288,48 @nd_link update @passed_leases {{ oifname . @th,192,32 }} \
comment "a server outside gives a card of this port an address"
  }}
"""


def is_learning(switch: SwitchPolicy, port: PortPolicy) -> bool:
    return port.learns and switch.outside is not None


def passed_leases(nft: Nft, table: str) -> list[tuple[str, str]]:
    """(tap, address) of what passed and was not taken over. Raises ``Failed`` (``nft.refused``) without the rules."""
    found = []
    for item in nft.read(f"list set bridge {table} passed_leases"):
        for entry in item.get("set", {}).get("elem", ()):
            tap, raw = entry["elem"]["val"]["concat"]
            number = raw if isinstance(raw, int) else int(raw, 0)
            found.append((tap, str(ipaddress.IPv4Address(number))))
    return found


def forget_passed(nft: Nft, table: str, taps: Iterable[str]) -> None:
    """They are taken over, or nobody's any more."""
    wanted = set(taps)
    for tap, address in passed_leases(nft, table):
        if tap in wanted:
            key = f"{tap} . {int(ipaddress.IPv4Address(address)):#x}"
            with contextlib.suppress(Problem):  # its time was over
                nft.apply(f"delete element bridge {table} passed_leases {{ {key} }}\n")
