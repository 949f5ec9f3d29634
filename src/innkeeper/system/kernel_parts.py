"""Which parts the running kernel has, built in, loaded, or there to be loaded. Loads none: some make devices."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

_SHOWN = {"nf_tables": "/proc/net/netfilter", "tun": "/dev/net/tun", "br_netfilter": "/proc/sys/net/bridge"}
"""Where a kernel that has the part shows it."""
_SYMBOLS = {
    "8021q": "vlan_dev_hard_start_xmit",
    "act_mirred": "tcf_mirred_act",
    "act_police": "tcf_police_act",
    "bonding": "bond_create",
    "bridge_vlan_filtering": "br_vlan_enabled",
    "cls_u32": "u32_classify",
    "ifb": "ifb_xmit",
    "ip_gre": "gre_tap_xmit",
    "nf_conntrack_bridge": "nf_ct_bridge_pre",
    "nfnetlink_log": "nfulnl_log_packet",
    "nft_log": "nft_log_eval",
    "sch_htb": "htb_enqueue",
    "sch_tbf": "tbf_enqueue",
    "vxlan": "vxlan_xmit",
}
"""What a kernel that has the part built in or loaded names in its table of symbols."""


def kernel_parts(parts: Iterable[str]) -> dict[str, bool]:
    """Part (a module's name, or ``bridge_vlan_filtering``, an option of the bridge) -> whether this kernel has it."""
    modules = Path("/lib/modules", os.uname().release)
    listed = _read(modules / "modules.dep") + _read(modules / "modules.builtin")
    exported = _read(modules / "modules.symbols")
    named = {line.split()[2] for line in _read(Path("/proc/kallsyms")).splitlines()}
    return {part: _has(part, named, listed, exported) for part in parts}


def _has(part: str, named: set[str], listed: str, exported: str) -> bool:
    if Path("/sys/module", part).exists() or (part in _SHOWN and Path(_SHOWN[part]).exists()):
        return True
    symbol = _SYMBOLS.get(part)
    if symbol is not None and (symbol in named or f"alias symbol:{symbol} " in exported):
        return True
    # A kernel without modules has its bridge built in, or the inn cannot do anything at all.
    return f"/{part}.ko" in listed or (part == "bridge" and not listed)


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
