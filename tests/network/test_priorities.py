"""802.1p at the uplink: which filters are wanted for which cards, and that what the kernel lists is understood."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from innkeeper.model.problems import Failed
from innkeeper.network import uplink_priorities
from innkeeper.network.policy import PortPolicy, SwitchPolicy
from innkeeper.network.priorities import Priority, commands, listed, priorities
from innkeeper.network.traffic import TrafficPolicy
from innkeeper.network.uplink_policy import UplinkPolicy
from innkeeper.network.uplink_priorities import UplinkPriorities
from innkeeper.network.vlan_policy import UNTAGGED, VlanPolicy

OUTSIDE = SwitchPolicy("out", "inbr-k3f91", kind="external", uplink=UplinkPolicy(("eth0",)))
FIRST, SECOND, VIRTUAL = "52:54:00:00:00:01", "52:54:00:00:00:02", "00:00:5e:00:01:01"


def port(mac: str, vlan: VlanPolicy, pcp: int | None, *extra: str) -> PortPolicy:
    return PortPolicy("intp-k3f91", mac, extra_macs=extra, vlan=vlan, traffic=TrafficPolicy(pcp=pcp))


def test_who_is_not_trusted_has_a_filter_for_each_mac_and_vlan_with_a_tag_outside() -> None:
    cards = [
        port(FIRST, VlanPolicy("access", 10), 5, VIRTUAL),
        port(SECOND, VlanPolicy("trunk", 1, ((20, 21),)), 0),
        port("52:54:00:00:00:03", VlanPolicy("access", 10), None),
        port("52:54:00:00:00:04", UNTAGGED, 7),
    ]
    wanted = priorities(OUTSIDE, cards)
    assert wanted == {
        Priority(FIRST, 10, 5),
        Priority(VIRTUAL, 10, 5),
        Priority(SECOND, 20, 0),
        Priority(SECOND, 21, 0),
    }
    assert priorities(SwitchPolicy("in", "inbr-k3f91", kind="private"), cards) == frozenset()
    assert len(commands("eth0", wanted)) == 4
    assert commands("eth0", [Priority(FIRST, 10, 5)]) == [
        f"filter add dev eth0 egress pref 18766 protocol 802.1Q handle 0x1 flower src_mac {FIRST} vlan_id 10 "
        "action vlan modify id 10 priority 5 continue"
    ]


def test_filters_of_others_are_no_priorities() -> None:
    keys = {"vlan_id": 10, "src_mac": FIRST}
    own = {"handle": 1, "keys": keys, "actions": [{"kind": "vlan", "vlan_action": "modify", "id": 10, "priority": 5}]}
    printed = [
        {"pref": 18766, "kind": "flower"},
        {"pref": 18766, "kind": "flower", "options": own},
        {"pref": 18766, "kind": "flower", "options": {"keys": keys, "actions": [{"kind": "gact"}]}},
        {"pref": 10, "kind": "flower", "options": own},
    ]
    assert listed(json.dumps(printed).encode()) == {Priority(FIRST, 10, 5)}
    assert listed(b"") == frozenset()


@pytest.mark.parametrize("former", [(5,), ()])
def test_what_was_done_half_way_is_looked_at_anew(monkeypatch: pytest.MonkeyPatch, former: tuple[int, ...]) -> None:
    """A batch that ends half-way has taken filters away, or added some; the undo must not believe that it knows."""
    looks: list[list[str]] = []
    batches: list[str] = []

    def run(argv: list[str], *, stdin: bytes = b"") -> SimpleNamespace:
        if "-batch" not in argv:
            looks.append(argv)
            return SimpleNamespace(stdout=b'[{"kind": "clsact"}]' if "qdisc" in argv else b"[]")
        batches.append(stdin.decode())
        if "priority 3" in batches[-1]:
            raise Failed("tool.failed", "tc failed")
        return SimpleNamespace(stdout=b"")

    monkeypatch.setattr(uplink_priorities, "index_of", lambda _: 7)
    monkeypatch.setattr(uplink_priorities, "kernel_parts", lambda parts: dict.fromkeys(parts, True))
    monkeypatch.setattr(uplink_priorities.process, "run", run)
    before, after = {Priority(FIRST, 10, pcp) for pcp in former}, {Priority(FIRST, 10, 3)}
    kept = UplinkPriorities()
    kept.ensure("eth0", before)
    looks.clear()
    assert kept.ensure("eth0", before) == [] and looks == []
    with pytest.raises(Failed):
        kept.ensure("eth0", after)
    looks.clear()
    kept.ensure("eth0", before)
    assert looks != []
    assert not former or "priority 5" in batches[-1]
