"""What a bridge is told of the VLANs of its ports leads from what it knows to what it shall know."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
from hypothesis import given, strategies as st

from innkeeper.model.problems import Unavailable
from innkeeper.network import vlan_bridge
from innkeeper.network.links import Device
from innkeeper.network.policy import PortPolicy, SwitchPolicy
from innkeeper.network.uplink_policy import UplinkPolicy
from innkeeper.network.vlan_bridge import STRANGE, TAGGED, UNTAGGED, commands, ensure, listed, membership, memberships
from innkeeper.network.vlan_policy import VlanPolicy

TAP = "intp-k3f91"
INSIDE = SwitchPolicy("lan", "inbr-k3f91", kind="private")
OUTSIDE = SwitchPolicy("out", "inbr-k3f91", kind="external", uplink=UplinkPolicy(("eth0",)))
_ids = st.integers(1, 12)
_carried = st.dictionaries(_ids, st.sampled_from([TAGGED, UNTAGGED, STRANGE]), max_size=8)
_wanted = st.builds(
    lambda tagged, native: dict.fromkeys(tagged, TAGGED) | ({} if native is None else {native: UNTAGGED}),
    st.sets(_ids, max_size=8),
    st.none() | _ids,
)


def _apply(lines: list[str], members: dict[int, str]) -> dict[int, str]:
    """A model of ``bridge -batch``; a port has one VLAN for untagged frames."""
    members = dict(members)
    for line in lines:
        _, verb, _, tap, _, ids, *flags = line.split()
        assert tap == TAP
        first, _, last = ids.partition("-")
        for one in range(int(first), int(last or first) + 1):
            if verb == "del":
                del members[one]
            elif flags:
                members[one] = UNTAGGED
            else:
                assert one not in members, "flags that are not named stay"
                members[one] = TAGGED
    return members


@given(_carried, _wanted)
def test_the_commands_lead_from_what_is_to_what_shall_be(actual: dict[int, str], wanted: dict[int, str]) -> None:
    assert _apply(commands(TAP, actual, wanted), actual) == wanted
    assert commands(TAP, wanted, wanted) == []


def test_a_port_carries_what_its_policy_says() -> None:
    assert membership(VlanPolicy()) == {1: UNTAGGED}
    assert membership(VlanPolicy("trunk", 11, ((10, 12),))) == {10: TAGGED, 11: UNTAGGED, 12: TAGGED}
    assert membership(VlanPolicy("trunk", None, ((10, 10),))) == {10: TAGGED}
    assert membership(VlanPolicy("isolated", 100, ((101, 101),))) == {100: UNTAGGED}


def test_a_wide_trunk_is_few_commands() -> None:
    wide = membership(VlanPolicy("trunk", 5, ((1, 4094),)))
    assert commands(TAP, {1: UNTAGGED}, wide) == [
        f"vlan del dev {TAP} vid 1",
        f"vlan add dev {TAP} vid 1-4",
        f"vlan add dev {TAP} vid 6-4094",
        f"vlan add dev {TAP} vid 5 pvid untagged",
    ]


def test_what_the_bridge_prints_is_understood() -> None:
    printed = [
        {"ifname": TAP, "vlans": [{"vlan": 1, "flags": ["PVID", "Egress Untagged"]}, {"vlan": 20, "vlanEnd": 21}]},
        {"ifname": "eth0", "vlans": [{"vlan": 7, "flags": ["Egress Untagged"]}]},
    ]
    assert listed(json.dumps(printed).encode()) == {TAP: {1: UNTAGGED, 20: TAGGED, 21: TAGGED}, "eth0": {7: STRANGE}}
    assert listed(b"") == {}


def test_a_bridge_that_cannot_filter_refuses_tags_only() -> None:
    bridge = Device("inbr-k3f91", 1, "bridge", "", 1500, True, 0, None, vlan_filtering=None)
    plain = PortPolicy(TAP, "52:54:00:00:00:01")
    access = replace(plain, vlan=VlanPolicy("access", 10))
    trunk = replace(plain, vlan=VlanPolicy("trunk", None, ((10, 10),)))
    assert ensure(INSIDE, bridge, [access]) == []
    assert ensure(OUTSIDE, bridge, [plain]) == []
    for switch, ports in ((INSIDE, [access, trunk]), (OUTSIDE, [plain, access])):
        with pytest.raises(Unavailable) as refused:
            ensure(switch, bridge, ports)
        assert refused.value.code == "network.kernel_lacks"


def test_the_uplink_carries_what_the_cards_need() -> None:
    policies = [
        VlanPolicy(),
        VlanPolicy("access", 10),
        VlanPolicy("trunk", 5, ((20, 22),)),
        VlanPolicy("trunk", None, ((1, 1), (21, 23))),
        VlanPolicy("isolated", 100, ((101, 101),)),
    ]
    ports = [PortPolicy(f"intp-k3f9{number}", "52:54:00:00:00:01", vlan=one) for number, one in enumerate(policies)]
    wanted = memberships(OUTSIDE, ports)
    assert wanted["eth0"] == {1: UNTAGGED} | dict.fromkeys((5, 10, 20, 21, 22, 23, 100), TAGGED)
    assert wanted["intp-k3f91"] == {10: UNTAGGED} and wanted["intp-k3f94"] == {100: UNTAGGED}
    assert "eth0" not in memberships(INSIDE, ports)


class Bridge:
    """A stand-in for ``bridge`` and ``ip``: what they say, and the lines that they are given."""

    def __init__(self, masters: dict[str, str]) -> None:
        self.masters = masters
        self.lines: list[str] = []

    def run(self, argv: list[str], *, stdin: bytes = b"") -> SimpleNamespace:
        flags = ["PVID", "Egress Untagged"]
        said: list[dict[str, object]] = []
        if argv[1:3] == ["-j", "vlan"]:
            said = [{"ifname": name, "vlans": [{"vlan": 1, "flags": flags}]} for name in self.masters]
        elif argv[1:3] == ["-j", "link"]:
            said = [{"ifname": name, "master": master} for name, master in self.masters.items()]
        elif argv[:2] == ["bridge", "-batch"]:
            self.lines += stdin.decode().splitlines()
        return SimpleNamespace(stdout=json.dumps(said).encode())


@pytest.mark.parametrize(("master", "told"), [("inbr-k3f91", True), ("br0", False), (None, False)])
def test_an_uplink_in_another_bridge_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, master: str | None, told: bool
) -> None:
    kernel = Bridge({TAP: OUTSIDE.bridge} | ({} if master is None else {"eth0": master}))
    monkeypatch.setattr(vlan_bridge.process, "run", kernel.run)
    bridge = Device(OUTSIDE.bridge, 1, "bridge", "", 1500, True, 0, None, vlan_filtering=True)
    done = ensure(OUTSIDE, bridge, [PortPolicy(TAP, "52:54:00:00:00:01", vlan=VlanPolicy("access", 10))])
    assert ("vlan add dev eth0 vid 10" in kernel.lines) == told
    assert f"vlan add dev {TAP} vid 10 pvid untagged" in kernel.lines
    assert ("put eth0 into its VLANs" in done) == told
