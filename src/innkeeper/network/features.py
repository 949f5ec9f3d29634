"""What of the switch needs parts of the kernel that not every kernel has, and what works without them. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from innkeeper.model.problems import Problem, Unavailable

REMEDY = "boot Debian's own kernel (linux-image-amd64)"


@dataclass(frozen=True, slots=True)
class Feature:
    """``parts`` as ``system.kernel_parts`` names them; ``need`` is what cannot be done without, ``still`` what can."""

    name: str
    parts: tuple[str, ...]
    need: str
    still: str = "all else works"


VLAN_FILTERING = Feature(
    "VLAN filtering",
    ("bridge_vlan_filtering",),
    "cards cannot be trunks (--vlan trunk:…), nor have a VLAN on an external switch",
    "access VLANs and private VLANs of other switches, and all else, work; a VLAN device of the host can be an uplink",
)
ACL_LOG = Feature(
    "log of ACLs",
    ("nft_log", "nfnetlink_log"),
    "rules of access control lists cannot log (--log)",
    "they allow and deny all the same, and all else works",
)
PRIORITIES = Feature(
    "802.1p priorities",
    ("cls_flower", "act_vlan", "sch_ingress"),
    "cards cannot be given a priority (--pcp)",
    "their own are trusted, and all else works",
)
FEATURES = (
    VLAN_FILTERING,
    ACL_LOG,
    PRIORITIES,
    Feature(
        "traffic control",
        ("sch_tbf", "ifb", "cls_u32", "act_mirred"),
        "cards cannot have a maximum bandwidth (--max-in, --max-out) or be mirrored",
    ),
    Feature("vxlan", ("vxlan",), "virtual networks cannot use VXLAN", "NVGRE and all else work"),
    Feature("nvgre", ("ip_gre",), "virtual networks cannot use --encapsulation nvgre", "VXLAN and all else work"),
    Feature(
        "uplink teaming",
        ("bonding",),
        "external switches cannot make a team of several cards (--team)",
        "one card, or a bridge of the host's own, can be the uplink",
    ),
    Feature("minimum bandwidth", ("sch_htb",), "cards cannot have a minimum bandwidth (--min-weight, --min-out)"),
)


def lacking(feature: Feature, parts: Mapping[str, bool]) -> list[str]:
    """The parts of ``feature`` that a kernel with ``parts`` has not."""
    return [part for part in feature.parts if not parts.get(part, False)]


def lacks(part: str, feature: str, still: str = "all else works without") -> Problem:
    """The problem of a kernel without ``part``, which ``feature`` needs; ``still`` is what works all the same."""
    return Unavailable(
        "network.kernel_lacks",
        f"this kernel has no {part}, which {feature} needs",
        cause="it was built without that part, or its module is not installed",
        remedy=f"{REMEDY}, or take the setting back; {still}",
    )
