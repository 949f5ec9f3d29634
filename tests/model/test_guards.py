"""Guards of cards over those of switches, and documents from before."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from innkeeper.model.guards import GUARD_NAMES, Guards, GuardsSet, NicGuards
from innkeeper.model.resources import Nic, new_id


def card(guards: dict[str, object]) -> NicGuards:
    ids = {"vm_id": new_id(), "switch_id": new_id()}
    return Nic.model_validate(
        {"name": "web-0", "number": 1, "mac": "52:54:00:00:00:01", "guards": guards, **ids}
    ).guards


def test_a_card_is_as_its_switch_but_for_what_it_says() -> None:
    switch = Guards(arp=False, ethertypes=[0x88CC], broadcast_per_s=5)
    assert NicGuards().over(switch) == switch
    mine = NicGuards(arp=True, mac=False, ethertypes=[]).over(switch)
    assert (mine.arp, mine.mac, mine.ethertypes, mine.broadcast_per_s) == (True, False, [], 5)


def test_null_is_as_the_switch_has_it_and_absence_changes_nothing() -> None:
    card_guards = NicGuards(arp=False, nd=False)
    assert GuardsSet.model_validate({"arp": None, "mac": False}).applied_to(card_guards) == NicGuards(
        mac=False, nd=False
    )
    changed = GuardsSet.model_validate({"arp": None, "storm": False}).applied_to_switch(Guards(arp=False, ip=False))
    assert (changed.arp, changed.ip, changed.storm) == (True, False, False)


def test_documents_that_know_five_guards_are_understood() -> None:
    on = dict.fromkeys(("mac", "ip", "arp", "dhcp", "router"), True)
    assert card(on) == NicGuards()
    assert card({**on, "arp": False}) == NicGuards(arp=False, nd=False)
    assert card(dict.fromkeys(on, False)) == NicGuards(**dict.fromkeys(GUARD_NAMES, False))
    again = card({**on, "arp": False}).model_dump()
    assert card(again) == NicGuards(arp=False, nd=False)


@pytest.mark.parametrize("ethertype", [0x8100, 0x88A8, 0x9100, 0x0800, 0x05DC, 0x10000])
def test_no_tag_can_be_allowed(ethertype: int) -> None:
    with pytest.raises(ValidationError):
        Guards(ethertypes=[ethertype])
