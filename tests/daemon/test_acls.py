"""Named ACLs on cards: what holds for a port."""

from __future__ import annotations

from innkeeper.daemon.ports import acl_lists, traffic_policy
from innkeeper.model.acl import AclEntry, AclRule, NicAcl
from innkeeper.model.resources import Acl, Nic, new_id
from innkeeper.model.traffic import NicTraffic
from innkeeper.network.traffic import Meter

DENY = AclRule(weight=1, action="deny", direction="in")
METER = AclEntry(action="meter", direction="in", remote="10.0.0.0/8")


def test_a_cards_own_lines_come_first_and_meters_of_all_count() -> None:
    servers = Acl(name="servers", entries=[METER], rules=[DENY])
    nic = Nic(
        name="web-0",
        vm_id=new_id(),
        switch_id=new_id(),
        mac="52:54:00:00:00:01",
        traffic=NicTraffic(meters=["10.0.0.0/8"]),
        acl=NicAcl(rules=[DENY], sets=[servers.id]),
    )
    acls = {servers.id: servers}
    assert [name for name, _ in acl_lists(nic, acls)] == ["", "servers"]
    assert traffic_policy(nic, acls).meters == (Meter("in", "10.0.0.0/8"), Meter("out", "10.0.0.0/8"))
