"""``--vlan`` as it is typed."""

from __future__ import annotations

import click
import pytest

from innkeeper.cli.vlan import VLAN, vlan_option
from innkeeper.model.vlan import NicVlan


def test_what_is_typed_becomes_a_vlan() -> None:
    typed = VLAN.convert("promiscuous:100,103,101-102", None, None)
    assert typed == NicVlan(mode="promiscuous", primary_vlan_id=100, secondary_vlan_ids="101-103")
    assert VLAN.convert(typed, None, None) is typed


@pytest.mark.parametrize("wrong", ["access", "access:4095", "isolated:1,1", "vlan:7", "trunk:native=1"])
def test_what_makes_no_sense_is_refused(wrong: str) -> None:
    with pytest.raises(click.BadParameter):
        VLAN.convert(wrong, None, None)


def test_a_command_takes_it() -> None:
    @click.command()
    @vlan_option
    def command(vlan: NicVlan | None) -> None:
        assert str(vlan) == "trunk:10,20-30,native=1"

    command.main(["--vlan", "trunk:20-30,10,native=1"], standalone_mode=False)
