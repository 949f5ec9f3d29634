"""What others change of the inn's is noticed at once; what the inn does itself, and what is not its own, is let be."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest
from hypothesis import given, strategies as st
from switch_lab import Lab, run_in
from switch_world import SWITCH, port_of

from innkeeper.network.drift import ANYTHING, addressed, links, tables
from innkeeper.network.kernel import Kernel
from innkeeper.network.report import Report

TABLE = "inn_t3st"


def message(kind: int, body: bytes, attributes: dict[int, bytes]) -> bytes:
    for key, value in attributes.items():
        body += struct.pack("=HH", 4 + len(value), key) + value + bytes(-len(value) % 4)
    return struct.pack("=IHHII", 16 + len(body), kind, 0, 0, 0) + body


@given(st.binary(max_size=300), st.integers(0, 3000))
def test_no_message_makes_the_reader_fail(noise: bytes, kind: int) -> None:
    framed = message(kind, noise.ljust(16, b"\0"), {3: noise[:40]})
    assert {one.partition(" ")[2] for one, _ in tables(framed, TABLE)} <= {TABLE}
    assert len(list(links(framed))) <= 1 and len(addressed(framed)) <= 1


def test_messages_are_read() -> None:
    rule = message(10 << 8 | 6, bytes([7, 0, 0, 0]), {1: TABLE.encode() + b"\0"})
    other = message(10 << 8 | 6, bytes([2, 0, 0, 0]), {1: b"filter\0"})
    assert list(tables(rule + other, TABLE)) == [(f"bridge {TABLE}", 0)]
    link = message(16, struct.pack("=BxHiII", 0, 1, 7, 1, 0), {3: b"intp-t3st1\0", 4: struct.pack("=I", 1500)})
    bridge_port = message(17, struct.pack("=BxHiII", 7, 1, 7, 1, 0), {3: b"intp-t3st1\0"})
    assert [(news.name, news.facts) for news in links(link + bridge_port)] == [("intp-t3st1", (7, 0, 1500, True))]


DAMAGES: dict[str, tuple[str, str]] = {
    "flush": ("nft flush ruleset", f"table bridge {TABLE}"),
    "table": (f"nft delete table inet {TABLE}", f"table inet {TABLE}"),
    "rule": (f"nft flush chain bridge {TABLE} from_arp", f"table bridge {TABLE}"),
    "added rule": (f"nft insert rule bridge {TABLE} prerouting accept", f"table bridge {TABLE}"),
    "element": (f"nft delete element bridge {TABLE} guard_arp {{ intp-t3st1 }}", f"table bridge {TABLE}"),
    "tap": ("ip link del intp-t3st2", "intp-t3st2"),
    "unplugged": ("ip link set intp-t3st1 nomaster", "intp-t3st1"),
    "down": ("ip link set intp-t3st1 down", "intp-t3st1"),
    "bridge": (f"ip link del {SWITCH.bridge}", SWITCH.bridge),
    "address": (f"ip addr flush dev {SWITCH.bridge}", SWITCH.bridge),
    "stray": ("ip link add inbr-t3st9 type bridge", "inbr-t3st9"),
}


@pytest.mark.root
@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_noticed_and_named_and_repaired(lab: Lab, damage: str) -> None:
    command, named = DAMAGES[damage]
    lab.do(lab.runner.ensure(SWITCH, [port_of(1), port_of(2)]))
    assert lab.do(lab.runner.touched(0)) == frozenset()
    run_in(lab.namespace, *command.split())
    assert named in lab.do(lab.runner.touched(10))
    assert lab.do(lab.runner.repair()).done != []
    assert lab.do(lab.runner.touched(0.1)) == frozenset(), "the repair is the inn's own doing"
    assert lab.do(lab.runner.repair()).done == []


@pytest.mark.root
def test_own_and_foreign_changes_are_let_be(lab: Lab) -> None:
    lab.do(lab.runner.touched(0))
    guest = lab.plug(port_of(1))
    lab.do(lab.runner.ensure(SWITCH, [port_of(1), port_of(2)]))
    lab.do(lab.runner.touched(0.2))  # a new device's state may follow later
    run_in(lab.namespace, "nft", "add", "table", "inet", "administrator")
    run_in(lab.namespace, "ip", "link", "add", "virbr0", "type", "bridge")
    os.close(guest.descriptor)  # the carrier of a tap goes with QEMU
    del lab.guests[guest.port.tap]
    lab.do(lab.runner.remove_port(guest.port.tap))
    assert lab.do(lab.runner.touched(0.2)) == frozenset()


@pytest.mark.root
def test_changes_too_many_to_be_told_are_noticed(lab: Lab, tmp_path: Path) -> None:
    lab.do(lab.runner.touched(0))
    members = ", ".join(f"other{number} . 52:54:00:00:00:01" for number in range(20_000))
    file = tmp_path / "many.nft"
    file.write_text(f"add element bridge {TABLE} macs {{ {members} }}\n")
    run_in(lab.namespace, "nft", "-f", str(file))
    assert ANYTHING in lab.do(lab.runner.touched(10))
    assert lab.do(lab.runner.repair()).done != []


@pytest.mark.root
def test_what_others_delete_while_the_inn_works_is_noticed(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody who deletes one table after the other comes while the first is repaired."""
    lab.do(lab.runner.ensure(SWITCH, [port_of(1)]))
    assert lab.do(lab.runner.touched(0)) == frozenset()
    run_in(lab.namespace, "nft", "delete", "table", "bridge", TABLE)
    assert f"table bridge {TABLE}" in lab.do(lab.runner.touched(10))
    repair = Kernel.repair

    def disturbed(kernel: Kernel) -> Report:
        report = repair(kernel)
        run_in(lab.namespace, "nft", "delete", "table", "inet", TABLE)
        return report

    with monkeypatch.context() as patched:
        patched.setattr(Kernel, "repair", disturbed)
        lab.do(lab.runner.repair())
    assert lab.do(lab.runner.touched(0)) == {f"table inet {TABLE}"}
    assert lab.do(lab.runner.repair()).done != []
    assert lab.do(lab.runner.touched(0.1)) == frozenset()
