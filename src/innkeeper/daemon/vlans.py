"""What a card's VLAN needs of its switch and of this host's kernel."""

from __future__ import annotations

from innkeeper.daemon.ports import vlan_policy
from innkeeper.model.problems import Invalid
from innkeeper.model.resources import Switch, SwitchKind
from innkeeper.model.vlan import NicVlan
from innkeeper.network.features import VLAN_FILTERING, lacking, lacks
from innkeeper.network.vlan_policy import UNTAGGED
from innkeeper.system.kernel_parts import kernel_parts


def takes_vlans(switch: Switch) -> bool:
    """Whether cards on that switch can have a VLAN: what leaves it for other hosts would carry no tag."""
    return switch.switch_kind not in (SwitchKind.EXTERNAL, SwitchKind.VIRTUAL)


def check_vlan(switch: Switch, vlan: NicVlan) -> None:
    """Raises ``Invalid`` (``nic.vlan``) for what a card on that switch cannot be, ``Unavailable``
    (``network.kernel_lacks``) for what this kernel cannot do.
    """
    if not takes_vlans(switch) and vlan_policy(vlan) != UNTAGGED:
        raise Invalid(
            "nic.vlan",
            f"cards on the {switch.switch_kind.value} switch {switch.name!r} cannot have a VLAN",
            cause="what leaves it for other hosts carries no tag",
            remedy="make a switch for each: of an external one a VLAN device of the host can be the uplink",
        )
    if vlan.mode == "trunk":
        for part in lacking(VLAN_FILTERING, kernel_parts(VLAN_FILTERING.parts)):
            raise lacks(part, "a trunk", VLAN_FILTERING.still)
