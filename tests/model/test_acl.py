"""What lines of access control can be, how they are named, and what a card keeps of ACLs that are gone."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from innkeeper.model.acl import AclEntry, AclLists, AclRule, NicAcl, NicAclSet
from innkeeper.model.resources import Acl


def entry(**members: Any) -> AclEntry:
    return AclEntry(**{"action": "deny", "direction": "in", **members})


def rule(**members: Any) -> AclRule:
    return AclRule(**{"weight": 10, "action": "allow", "direction": "in", **members})


def test_addresses_are_kept_in_their_shortest_form() -> None:
    assert entry(remote="10.0.0.9").remote == "10.0.0.9/32"
    assert entry(local="2001:DB8:0::/32").local == "2001:db8::/32"
    assert entry(remote="52-54-00-AA-00-01").remote == "52:54:00:aa:00:01"
    assert rule(protocol="6").protocol == "tcp" and rule(protocol="47").number == 47
    assert rule(protocol="tcp", local_ports="080-0090").local_ports == "80-90"


@pytest.mark.parametrize(
    "members",
    [
        {},
        {"remote": "any", "local": "any"},
        {"remote": "10.0.0.1/8"},
        {"remote": "web"},
        {"remote": "10.0.0.0/33"},
        {"action": "meter", "local": "10.0.0.0/8"},
        {"action": "meter", "remote": "52:54:00:00:00:01"},
        {"direction": "both", "remote": "any"},
    ],
)
def test_what_is_no_entry(members: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        entry(**members)


@pytest.mark.parametrize(
    "members",
    [
        {"weight": -1},
        {"weight": 65_536},
        {"action": "meter"},
        {"local_ports": "80"},
        {"protocol": "icmp", "remote_ports": "80"},
        {"protocol": "tcp", "remote_ports": "90-80"},
        {"protocol": "tcp", "remote_ports": "65536"},
        {"protocol": "256"},
        {"local": "10.0.0.0/8", "remote": "2001:db8::/32"},
        {"protocol": "icmpv6", "remote": "10.0.0.0/8"},
        {"protocol": "icmp", "remote": "2001:db8::/32"},
        {"action": "deny", "stateful": True},
        {"protocol": "sctp", "stateful": True},
        {"stateful": True, "idle_timeout_s": 0},
        {"remote": "52:54:00:00:00:01"},
    ],
)
def test_what_is_no_rule(members: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        rule(**members)


def test_lines_are_named_and_stand_once() -> None:
    assert entry(remote="10.0.0.0/8").line == "in/remote/10.0.0.0/8"
    assert entry(action="meter", remote="any").line == "in/meter/any"
    assert rule().line == "in/10"
    for lists in ({"entries": [entry(remote="any"), entry(action="allow", remote="any")]}, {"rules": [rule(), rule()]}):
        with pytest.raises(ValidationError, match="two lines"):
            AclLists(**lists)
        with pytest.raises(ValidationError, match="two lines"):
            NicAclSet(**lists)


def test_rules_say_what_they_match() -> None:
    said = str(rule(protocol="tcp", remote="10.0.0.0/8", local_ports="443", stateful=True))
    assert said == "weight 10: allow in tcp local port 443 remote 10.0.0.0/8 stateful 255 s"
    assert str(rule(direction="out")) == "weight 10: allow out any"
    assert str(rule(direction="out", log=True)) == "weight 10: allow out any log"
    assert str(entry(remote="any")) == "deny in remote any"


def test_a_change_leaves_what_it_does_not_name() -> None:
    acl = NicAcl(entries=[entry(remote="any")], rules=[rule()], sets=["a"])
    assert NicAclSet(sets=[]).applied_to(acl) == NicAcl(entries=acl.entries, rules=acl.rules)
    assert NicAclSet(rules=[]).applied_to(acl) == NicAcl(entries=acl.entries, sets=["a"])


def test_a_card_keeps_the_lines_of_acls_that_are_gone() -> None:
    gone = Acl(name="old", entries=[entry(remote="any")], rules=[rule(action="deny"), rule(weight=9)])
    card = NicAcl(rules=[rule()], sets=["other", gone.id])
    kept = card.with_lines_of([gone])
    assert kept.sets == ["other"] and kept.entries == gone.entries
    assert {one.line: one.action for one in kept.rules} == {"in/10": "allow", "in/9": "allow"}
