"""Switches in a real kernel: made, used, broken, repaired, adopted and removed."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import frames as f
import pytest
from switch_lab import INN_ID, PATIENCE_S, Guest, Lab, in_namespace, new_lab, new_machine, new_namespace, run_in

from innkeeper.model.problems import Conflict, Failed, NotFound
from innkeeper.network.plan import Standing
from innkeeper.network.policy import Forward, PortPolicy, SwitchPolicy
from innkeeper.network.switch import SwitchRunner

pytestmark = pytest.mark.root

SWITCH = SwitchPolicy("lan", "inbr-t3st1", kind="nat", subnet="10.66.0.0/24")
GATEWAY = "10.66.0.1"
OUTSIDE_HOST = "198.51.100.1"
OUTSIDE = "198.51.100.2"
_IP_FREEBIND = 15
FOREIGN_TABLE = "table inet others { chain forward { type filter hook forward priority 0; policy accept; }; }"


def _port(number: int) -> PortPolicy:
    return PortPolicy(
        f"intp-t3st{number}", f"52:54:00:00:00:0{number}", (f"10.66.0.1{number}",), hostname=f"guest{number}"
    )


@pytest.fixture
def lab() -> Iterator[Lab]:
    with new_lab(SWITCH) as made:
        yield made


def _until(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def _state(namespace: str) -> str:
    """Rules without counts, links with their addresses; not the macs of taps, which are random."""
    rules = run_in(namespace, "nft", "-s", "list", "ruleset")
    links = run_in(namespace, "ip", "-o", "-4", "addr", "show") + run_in(namespace, "ip", "-o", "link", "show")
    links = re.sub(r"NO-CARRIER,|,LOWER_UP| state \w+", "", links)  # the kernel follows these with a delay
    lines = [line.split(": ", 1)[1] for line in links.splitlines(keepends=True)]
    return rules + "".join(line.split("\\")[0] + "\n" if line.startswith("intp-") else line for line in lines)


def _dnsmasq_pid(lab: Lab) -> int:
    return int((_directory(lab) / "dnsmasq.pid").read_text())


def _directory(lab: Lab) -> Path:
    return Path(lab.runner._directory) / SWITCH.bridge


# --- made and removed ------------------------------------------------------------------------------------------------


def test_a_switch_can_be_made_again_without_a_change(lab: Lab) -> None:
    ports = [_port(1), _port(2)]
    assert lab.do(lab.runner.ensure(SWITCH, ports)) != []
    before = _state(lab.namespace)
    assert lab.do(lab.runner.ensure(SWITCH, ports)) == []
    assert lab.do(lab.runner.repair()).done == []
    assert _state(lab.namespace) == before


def test_removing_leaves_nothing_and_others_untouched(lab: Lab) -> None:
    run_in(lab.namespace, "nft", FOREIGN_TABLE)
    run_in(lab.namespace, "ip", "link", "add", "virbr0", "type", "bridge")
    before = _state(lab.namespace)
    bridge = "inbr-t3st2"
    second = SwitchPolicy("second", bridge, kind="internal", subnet="10.67.0.0/24")
    lab.do(lab.runner.ensure(second, [PortPolicy("intp-t3st7", "52:54:00:00:00:07", ("10.67.0.7",))]))
    pid = int((_directory(lab).parent / bridge / "dnsmasq.pid").read_text())
    assert lab.do(lab.runner.remove(bridge))
    assert _state(lab.namespace) == before
    assert not Path(f"/proc/{pid}").exists()
    assert not (_directory(lab).parent / bridge).exists()
    assert lab.do(lab.runner.remove(bridge)) == []

    lab.do(lab.runner.remove_all())
    assert run_in(lab.namespace, "nft", "list", "tables") == "table inet others\n"
    assert "virbr0" in run_in(lab.namespace, "ip", "link")
    assert "in" not in [line.split(": ")[1][:2] for line in run_in(lab.namespace, "ip", "-o", "link").splitlines()]
    assert not _directory(lab).parent.exists()


def test_ports_come_and_go(lab: Lab) -> None:
    one = lab.plug(_port(1))
    two = lab.plug(_port(2))
    assert lab.deliver(one, two) == []
    empty = {"mac": 0, "ip": 0, "arp": 0, "dhcp": 0, "router": 0, "frame": 0}
    assert lab.dropped(one) == empty
    assert lab.do(lab.runner.all_counters())[one.port.tap] == empty
    lab.unplug(one)
    assert "intp-t3st1" not in _state(lab.namespace)
    assert lab.do(lab.runner.remove_port("intp-t3st1")) == []
    with pytest.raises(NotFound, match="plugged into no switch"):
        lab.do(lab.runner.counters("intp-t3st1"))
    with pytest.raises(NotFound):
        lab.do(lab.runner.open_tap("intp-t3st1"))


def test_a_counter_goes_on_when_something_else_changes(lab: Lab) -> None:
    one, two = lab.plug(_port(1)), lab.plug(_port(2))
    assert lab.deliver(one, two, f.arp(one.mac, 2, one.mac, GATEWAY, two.mac, two.ip)) == []
    assert lab.dropped(one)["arp"] == 1
    lab.set_port(one, replace(one.port, guards=replace(one.port.guards, router=False)))
    lab.plug(_port(3))
    assert lab.dropped(one)["arp"] == 1


def test_a_tap_belongs_to_the_uid_of_its_vm(lab: Lab) -> None:
    lab.do(lab.runner.add_port(SWITCH.bridge, replace(_port(1), owner_uid=200_007)))
    assert "user 200007" in run_in(lab.namespace, "ip", "-d", "link", "show", "intp-t3st1")
    lab.do(lab.runner.add_port(SWITCH.bridge, _port(2)))
    assert "user root" in run_in(lab.namespace, "ip", "-d", "link", "show", "intp-t3st2")


def test_a_tap_is_opened_once(lab: Lab) -> None:
    lab.plug(_port(1))
    with pytest.raises(Conflict) as busy:
        lab.do(lab.runner.open_tap("intp-t3st1"))
    assert busy.value.code == "nic.tap_busy"


# --- failures leave nothing half-made --------------------------------------------------------------------------------


def test_a_refused_transaction_names_the_rule_and_changes_nothing(lab: Lab) -> None:
    lab.plug(_port(1))
    kernel = lab.runner._open
    before = _state(lab.namespace)
    text = "add element bridge inn_t3st ports { intp-t3st5 }\nadd element bridge inn_t3st nowhere { intp-t3st5 }\n"
    with pytest.raises(Failed) as refused:
        lab.do(lab.runner._thread.call(kernel._nft.apply, text))
    assert refused.value.code == "nft.refused"
    assert refused.value.cause == "add element bridge inn_t3st nowhere { intp-t3st5 }"
    assert _state(lab.namespace) == before


def test_a_new_switch_that_fails_leaves_nothing(lab: Lab) -> None:
    run_in(lab.namespace, "ip", "link", "add", "intp-t3st7", "type", "bridge")
    before = _state(lab.namespace)
    second = SwitchPolicy("second", "inbr-t3st2", kind="internal", subnet="10.67.0.0/24")
    with pytest.raises(Conflict) as taken:
        lab.do(lab.runner.ensure(second, [PortPolicy("intp-t3st7", "52:54:00:00:00:07", ("10.67.0.7",))]))
    assert taken.value.code == "nic.device_taken"
    assert _state(lab.namespace) == before
    assert lab.runner.standing("inbr-t3st2") is None


def test_a_switch_whose_change_fails_is_as_before(lab: Lab) -> None:
    lab.plug(_port(1))
    before = _state(lab.namespace)
    run_in(lab.namespace, "ip", "link", "add", "intp-t3st7", "type", "bridge")
    with pytest.raises(Conflict):
        lab.do(lab.runner.ensure(SWITCH, [_port(1), replace(_port(2), tap="intp-t3st7")]))
    run_in(lab.namespace, "ip", "link", "del", "intp-t3st7")
    assert _state(lab.namespace) == before
    with pytest.raises(Conflict):  # the tap is open, so it cannot be given away
        lab.do(lab.runner.update_port(replace(_port(1), owner_uid=200_001, ipv4=("10.66.0.99",))))
    assert _state(lab.namespace) == before


def test_a_port_whose_dhcp_fails_leaves_nothing(lab: Lab) -> None:
    lab.plug(_port(1))
    before = _state(lab.namespace)
    hosts = _directory(lab) / "hosts"
    hosts.unlink()
    hosts.mkdir()
    with pytest.raises(Failed) as failed:
        lab.do(lab.runner.add_port(SWITCH.bridge, _port(2)))
    assert failed.value.code == "switch.directory"
    hosts.rmdir()
    assert _state(lab.namespace) == before
    assert lab.do(lab.runner.repair()).problems == {}


def test_dhcp_that_cannot_start_says_why(lab: Lab) -> None:
    second = SwitchPolicy("second", "inbr-t3st2", kind="internal", subnet="10.67.0.0/24")

    def take_port() -> socket.socket:
        taken = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        taken.setsockopt(socket.IPPROTO_IP, _IP_FREEBIND, 1)
        taken.bind(("10.67.0.1", 53))
        return taken

    with in_namespace(lab.namespace, take_port):
        with pytest.raises(Failed) as failed:
            lab.do(lab.runner.ensure(second))
    assert failed.value.code == "switch.dhcp_failed"
    assert "Address already in use" in (failed.value.cause or "")
    assert "inbr-t3st2" not in _state(lab.namespace)


# --- broken and repaired ---------------------------------------------------------------------------------------------


def _break_flush(lab: Lab) -> None:
    run_in(lab.namespace, "nft", "flush", "ruleset")


def _break_rule(lab: Lab) -> None:
    run_in(lab.namespace, "nft", "flush", "chain", "bridge", "inn_t3st", "from_arp")


def _break_added_rule(lab: Lab) -> None:
    run_in(lab.namespace, "nft", "insert", "rule", "bridge", "inn_t3st", "prerouting", "accept")


def _break_element(lab: Lab) -> None:
    run_in(lab.namespace, "nft", "delete", "element", "bridge", "inn_t3st", "guard_arp", "{ intp-t3st1 }")
    run_in(lab.namespace, "nft", "add", "element", "bridge", "inn_t3st", "addresses4", "{ intp-t3st1 . 10.66.0.1 }")
    run_in(lab.namespace, "nft", "flush", "set", "inet", "inn_t3st", "nat_subnets")


def _break_links(lab: Lab) -> None:
    run_in(lab.namespace, "ip", "link", "del", "intp-t3st2")
    run_in(lab.namespace, "ip", "link", "set", "intp-t3st1", "nomaster")
    run_in(lab.namespace, "ip", "addr", "flush", "dev", SWITCH.bridge)
    run_in(lab.namespace, "ip", "link", "add", "inbr-t3st9", "type", "bridge")


def _break_bridge(lab: Lab) -> None:
    run_in(lab.namespace, "ip", "link", "del", SWITCH.bridge)


def _break_dhcp(lab: Lab) -> None:
    pid = _dnsmasq_pid(lab)
    os.kill(pid, signal.SIGKILL)
    assert _until(lambda: not Path(f"/proc/{pid}/cmdline").exists() or not Path(f"/proc/{pid}/cmdline").read_bytes())


@pytest.mark.parametrize(
    "damage",
    [_break_flush, _break_rule, _break_added_rule, _break_element, _break_links, _break_bridge, _break_dhcp],
    ids=lambda damage: damage.__name__.removeprefix("_break_"),
)
def test_damage_is_found_and_repaired(lab: Lab, damage: Callable[[Lab], None]) -> None:
    lab.do(lab.runner.ensure(SWITCH, [_port(1), _port(2)]))
    before = sorted(_state(lab.namespace).splitlines())
    damage(lab)
    report = lab.do(lab.runner.repair())
    assert report.done != [] and report.problems == {}
    assert lab.do(lab.runner.repair()).done == []
    assert sorted(_state(lab.namespace).splitlines()) == before
    assert Path(f"/proc/{_dnsmasq_pid(lab)}").exists()
    one, two = lab.open(_port(1)), lab.open(_port(2))
    assert lab.deliver(one, two, f.arp(one.mac, 2, one.mac, GATEWAY, two.mac, two.ip)) == []


def test_a_change_repairs_flushed_rules_on_its_way(lab: Lab) -> None:
    lab.plug(_port(1))
    _break_flush(lab)
    lab.plug(_port(2))
    assert lab.do(lab.runner.repair()).done == []


def test_what_fails_for_one_switch_does_not_keep_the_others_from_being_repaired(lab: Lab) -> None:
    second = SwitchPolicy("second", "inbr-t3st2", kind="private")
    lab.do(lab.runner.ensure(second))
    run_in(lab.namespace, "ip", "link", "del", SWITCH.bridge)
    run_in(lab.namespace, "ip", "link", "del", second.bridge)
    run_in(lab.namespace, "ip", "link", "add", SWITCH.bridge, "type", "veth", "peer", "name", "other")
    report = lab.do(lab.runner.repair())
    assert report.problems["lan"].code == "switch.device_taken"
    assert "make bridge inbr-t3st2" in report.done
    run_in(lab.namespace, "ip", "link", "del", SWITCH.bridge)


def test_a_later_daemon_takes_over_without_a_change(lab: Lab) -> None:
    one, two = lab.plug(_port(1)), lab.plug(_port(2))
    lab.deliver(one, two, f.arp(one.mac, 2, one.mac, GATEWAY, two.mac, two.ip))
    before, pid, counted = _state(lab.namespace), _dnsmasq_pid(lab), lab.dropped(one)
    desired = lab.runner.standing(SWITCH.bridge)
    assert desired is not None

    async def take_over() -> tuple[list[str], dict[str, int]]:
        later = SwitchRunner(INN_ID, lab.runner._directory, namespace=lab.namespace)
        try:
            return (await later.start([desired])).done, await later.counters(one.port.tap)
        finally:
            await later.close()

    assert lab.do(take_over()) == ([], counted)
    assert counted["arp"] == 1
    assert (_state(lab.namespace), _dnsmasq_pid(lab)) == (before, pid)


def test_a_later_daemon_removes_what_belongs_to_nothing(lab: Lab) -> None:
    lab.do(lab.runner.add_port(SWITCH.bridge, _port(1)))
    pid = _dnsmasq_pid(lab)

    async def take_over() -> None:
        later = SwitchRunner(INN_ID, lab.runner._directory, namespace=lab.namespace)
        try:
            await later.start([])
        finally:
            await later.close()

    lab.do(take_over())
    assert SWITCH.bridge not in _state(lab.namespace) and "intp-t3st1" not in _state(lab.namespace)
    assert _until(lambda: not Path(f"/proc/{pid}/cmdline").exists() or not Path(f"/proc/{pid}/cmdline").read_bytes())


def test_two_inns_share_a_namespace(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> None:
    one = lab.plug(_port(1))
    before = _state(lab.namespace)
    other_directory = lab.runner._directory.parent / "other"

    async def live_beside() -> str:
        other = SwitchRunner("0ther"[:4], other_directory, namespace=lab.namespace)
        try:
            await other.start([Standing(SwitchPolicy("lan", "inbr-0the1", subnet="10.68.0.0/24"))])
            await other.add_port("inbr-0the1", replace(_port(2), tap="intp-0the1", ipv4=("10.68.0.2",)))
            return await asyncio.to_thread(_state, lab.namespace)
        finally:
            await other.remove_all()
            await other.close()

    beside = lab.do(live_beside())
    assert "inn_0the" in beside and "intp-0the1" in beside
    assert _state(lab.namespace) == before
    assert lab.do(lab.runner.repair()).done == []
    assert lab.dropped(one)["frame"] == 0


# --- dhcp and dns ----------------------------------------------------------------------------------------------------


def _dhcp_options(message: bytes) -> dict[int, bytes]:
    options, rest = {}, message[240:]
    while rest and rest[0] != 255:
        options[rest[0]] = rest[2 : 2 + rest[1]]
        rest = rest[2 + rest[1] :]
    return options


def _dhcp_exchange(guest: Guest, frame: bytes) -> tuple[int, str, dict[int, bytes]]:
    """Send a DHCP frame; the answer's kind, the address it gives, and its options."""
    guest.send(frame)
    while True:
        answer = guest.receive(PATIENCE_S)
        assert answer is not None, "no answer of DHCP"
        if answer[12:14] == b"\x08\x06" and answer[38:42] == f.ip(guest.ip):
            guest.send(f.arp(guest.mac, 2, guest.mac, guest.ip, SWITCH.mac, GATEWAY))
        if answer[12:14] == b"\x08\x00" and answer[23] == 17 and answer[36:38] == struct.pack("!H", 68):
            message = answer[42:]
            options = _dhcp_options(message)
            return options[53][0], socket.inet_ntoa(message[16:20]), options


def _dhcp_broadcast(guest: Guest, kind: int, options: bytes = b"") -> bytes:
    message = f.dhcp(1, kind, guest.mac, options=options)
    packet = f.ipv4("0.0.0.0", "255.255.255.255", 17, f.udp("0.0.0.0", "255.255.255.255", 68, 67, message))
    return f.ethernet(f.BROADCAST, guest.mac, 0x0800, packet)


def test_dhcp_gives_the_reserved_address_and_renews_it(lab: Lab) -> None:
    lab.plug(_port(2))
    guest = lab.plug(_port(1))
    offer, address, options = _dhcp_exchange(guest, _dhcp_broadcast(guest, 1))
    assert (offer, address) == (2, guest.ip)
    assert options[3] == options[6] == options[54] == f.ip(GATEWAY)
    assert options[26] == struct.pack("!H", 1500)
    wanted = bytes([50, 4]) + f.ip(guest.ip) + bytes([54, 4]) + f.ip(GATEWAY)
    assert _dhcp_exchange(guest, _dhcp_broadcast(guest, 3, wanted))[:2] == (5, guest.ip)

    renewal = bytearray(f.dhcp(1, 3, guest.mac))
    renewal[12:16] = f.ip(guest.ip)
    packet = f.ipv4(guest.ip, GATEWAY, 17, f.udp(guest.ip, GATEWAY, 68, 67, bytes(renewal)))
    assert _dhcp_exchange(guest, f.ethernet(SWITCH.mac, guest.mac, 0x0800, packet))[:2] == (5, guest.ip)
    leases = lab.do(lab.runner.leases(SWITCH.bridge))
    assert [(lease.address, lease.mac, lease.hostname) for lease in leases] == [(guest.ip, guest.mac, "guest1")]
    assert sum(lab.dropped(guest).values()) == 0


def test_dhcp_follows_a_changed_address_without_a_restart(lab: Lab) -> None:
    guest, pid = lab.plug(_port(1)), _dnsmasq_pid(lab)
    lab.set_port(guest, replace(guest.port, ipv4=("10.66.0.200",)))
    assert _dhcp_exchange(guest, _dhcp_broadcast(guest, 1))[1] == "10.66.0.200"
    assert _dnsmasq_pid(lab) == pid


def test_dhcp_gives_nothing_to_a_stranger(lab: Lab) -> None:
    guest = lab.plug(replace(_port(1), guards=replace(_port(1).guards, mac=False)))
    stranger = replace(guest, port=replace(guest.port, mac="52:54:aa:aa:aa:aa"))
    guest.send(_dhcp_broadcast(stranger, 1))
    assert _dhcp_exchange(guest, _dhcp_broadcast(guest, 1))[1] == guest.ip


def _ask_dns(machine_namespace: str, name: str) -> str:
    """The IPv4 address that the switch's DNS gives for ``name``; empty for none."""
    question = b"".join(bytes([len(label)]) + label.encode() for label in name.split(".")) + b"\0"
    query = struct.pack("!HHHHHH", 7, 0x0100, 1, 0, 0, 0) + question + struct.pack("!HH", 1, 1)

    def ask() -> bytes:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
            asking.settimeout(PATIENCE_S)
            asking.connect((GATEWAY, 53))
            asking.send(query)
            return asking.recv(4096)

    answer = in_namespace(machine_namespace, ask)
    count = struct.unpack("!H", answer[6:8])[0]
    return socket.inet_ntoa(answer[-4:]) if count else ""


# --- with network stacks ---------------------------------------------------------------------------------------------


@pytest.fixture
def world(lab: Lab) -> Iterator[tuple[Lab, str]]:
    """The lab with a host outside, reached by routing, which knows the way to the guests."""
    with new_namespace("outside") as outside:
        commands = f"""
            ip link add up0 type veth peer name eth0 netns {outside}
            ip addr add {OUTSIDE_HOST}/24 dev up0
            ip link set up0 up
        """
        for command in commands.strip().splitlines():
            run_in(lab.namespace, *command.split())
        run_in(outside, "ip", "addr", "add", f"{OUTSIDE}/24", "dev", "eth0")
        run_in(outside, "ip", "link", "set", "eth0", "up")
        run_in(outside, "ip", "route", "add", "10.66.0.0/24", "via", OUTSIDE_HOST)
        yield lab, outside


def _listen(address: str, port: int) -> Callable[[], socket.socket]:
    def listen() -> socket.socket:
        listening = socket.create_server((address, port))
        listening.settimeout(PATIENCE_S)
        return listening

    return listen


def _connect(address: str, port: int) -> Callable[[], socket.socket]:
    return lambda: socket.create_connection((address, port), timeout=PATIENCE_S)


def _speak(client_namespace: str, address: str, port: int, server: socket.socket) -> str:
    """Connect and exchange a word; the address that the server sees."""
    with in_namespace(client_namespace, _connect(address, port)) as client:
        accepted, peer = server.accept()
        with accepted:
            accepted.settimeout(PATIENCE_S)
            client.sendall(b"word")
            assert accepted.recv(4) == b"word"
            accepted.sendall(b"back")
            assert client.recv(4) == b"back"
    return str(peer[0])


def test_guests_with_real_stacks(world: tuple[Lab, str]) -> None:
    lab, outside = world
    forwards = (
        Forward("tcp", 8080, "10.66.0.11", 80),
        Forward("tcp", 8081, "10.66.0.11", 80, host_address=OUTSIDE_HOST),
    )
    lab.do(lab.runner.ensure(replace(SWITCH, forwards=forwards), []))
    with (
        new_machine("guest1", lab.plug(_port(1))) as one,
        new_machine("guest2", lab.plug(_port(2))) as two,
    ):
        one.give_address(GATEWAY)
        two.give_address(GATEWAY)
        # neighbours, the host and its names
        run_in(one.namespace, "ping", "-c", "2", "-i", "0.2", "-W", "5", two.guest.ip)
        run_in(one.namespace, "ping", "-c", "1", "-s", "3000", "-W", "5", two.guest.ip)
        run_in(one.namespace, "ping", "-c", "1", "-W", "5", GATEWAY)
        assert _until(lambda: "tentative" not in run_in(one.namespace, "ip", "-6", "addr"))
        assert _until(lambda: "tentative" not in run_in(two.namespace, "ip", "-6", "addr"))
        run_in(one.namespace, "ping", "-c", "2", "-i", "0.2", "-W", "5", f"{two.guest.link_local}%eth0")
        assert _ask_dns(one.namespace, "guest2") == _ask_dns(one.namespace, "guest2.inn") == two.guest.ip
        assert _ask_dns(one.namespace, "nobody.inn") == ""
        # out
        with in_namespace(outside, _listen(OUTSIDE, 7000)) as server:
            assert _speak(one.namespace, OUTSIDE, 7000, server) == OUTSIDE_HOST
        # in, through a forward: from outside, from a neighbour, from the host itself
        with in_namespace(one.namespace, _listen(one.guest.ip, 80)) as server:
            assert _speak(outside, OUTSIDE_HOST, 8080, server) == OUTSIDE
            assert _speak(outside, OUTSIDE_HOST, 8081, server) == OUTSIDE
            assert _speak(two.namespace, GATEWAY, 8080, server) == GATEWAY
            _speak(lab.namespace, OUTSIDE_HOST, 8080, server)
            _speak(lab.namespace, one.guest.ip, 80, server)
            with pytest.raises(ConnectionRefusedError):
                in_namespace(two.namespace, _connect(GATEWAY, 8081))
        # nothing comes in unasked
        with in_namespace(outside, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as sender:
            sender.sendto(b"unasked", (one.guest.ip, 9))
            assert _until(lambda: "packets 0" not in run_in(lab.namespace, *_UNASKED))
        assert sum(lab.dropped(one.guest).values()) + sum(lab.dropped(two.guest).values()) == 0


_UNASKED = ("nft", "list", "counter", "inet", "inn_t3st", "drop_unasked")


def test_switches_do_not_reach_each_other_and_internal_ones_have_no_way_out(world: tuple[Lab, str]) -> None:
    lab, _ = world
    internal = SwitchPolicy("inside", "inbr-t3st2", kind="internal", subnet="10.67.0.0/24")
    inside = PortPolicy("intp-t3st7", "52:54:00:00:00:07", ("10.67.0.7",))
    lab.do(lab.runner.ensure(internal, [inside]))
    seven, one = lab.open(inside), lab.plug(_port(1))
    for sender, gateway_mac, targets in (
        (one, SWITCH.mac, ["10.67.0.7"]),
        (seven, internal.mac, [one.ip, OUTSIDE]),
    ):
        for target in targets:
            before = run_in(lab.namespace, *_BETWEEN)
            datagram = f.udp(sender.ip, target, 1, 2, b"across")
            sender.send(f.ethernet(gateway_mac, sender.mac, 0x0800, f.ipv4(sender.ip, target, 17, datagram)))
            assert _until(lambda before=before: run_in(lab.namespace, *_BETWEEN) != before)


_BETWEEN = ("nft", "list", "counter", "inet", "inn_t3st", "drop_between")


def test_the_host_is_no_part_of_a_private_switch(lab: Lab) -> None:
    private = SwitchPolicy("apart", "inbr-t3st2", kind="private")
    ports = [PortPolicy(f"intp-t3st{n}", f"52:54:00:00:00:0{n}", (f"192.0.2.{n}",)) for n in (7, 8)]
    lab.do(lab.runner.ensure(private, ports))
    seven, eight = (lab.open(port) for port in ports)
    assert lab.deliver(seven, eight) == []
    asks = f.arp(seven.mac, 1, seven.mac, seven.ip, "00" * 6, GATEWAY)
    solicits = f.icmpv6(seven.link_local, "ff02::1", 128, 0, bytes(8))
    everybody = f.ethernet(
        f.multicast_mac("ff02::1"), seven.mac, 0x86DD, f.ipv6(seven.link_local, "ff02::1", 58, solicits)
    )
    assert len(lab.deliver(seven, eight, asks, everybody)) == 2
    assert seven.drain() == []
    assert "inet" not in run_in(lab.namespace, "ip", "addr", "show", "dev", private.bridge)
    assert "packets 0" not in run_in(lab.namespace, "nft", "list", "counter", "bridge", "inn_t3st", "drop_private")


def test_the_host_believes_no_router_among_the_guests(lab: Lab) -> None:
    guest = lab.plug(replace(_port(1), guards=replace(_port(1).guards, router=False)))
    prefix = struct.pack("!BBBBIII", 3, 4, 64, 0xC0, 86400, 14400, 0) + f.ip("2001:db8:bad::")
    advert = f.icmpv6(guest.link_local, "ff02::1", 134, 0, struct.pack("!BBHII", 64, 0, 1800, 0, 0) + prefix)
    packet = f.ipv6(guest.link_local, "ff02::1", 58, advert, hop_limit=255)
    two = lab.plug(_port(2))
    assert lab.deliver(guest, two, f.ethernet(f.multicast_mac("ff02::1"), guest.mac, 0x86DD, packet)) != []
    assert "2001:db8" not in run_in(lab.namespace, "ip", "-6", "addr") + run_in(lab.namespace, "ip", "-6", "route")


def test_a_missing_library_or_namespace_is_named(tmp_path: Path) -> None:
    runner = SwitchRunner(INN_ID, tmp_path, namespace="inn-that-is-not-there")
    with pytest.raises(Failed) as missing:
        asyncio.run(runner.start([]))
    assert missing.value.code == "network.namespace"
    asyncio.run(runner.close())


def test_a_directory_that_dnsmasq_cannot_reach_is_named(lab: Lab) -> None:
    second = SwitchPolicy("second", "inbr-t3st2", kind="internal", subnet="10.67.0.0/24")
    top = lab.runner._directory.parent
    top.chmod(0o700)
    try:
        with pytest.raises(Failed) as closed:
            lab.do(lab.runner.ensure(second))
    finally:
        top.chmod(0o755)
    assert closed.value.code == "switch.directory"
    assert str(top) in (closed.value.cause or "")
    assert "inbr-t3st2" not in _state(lab.namespace)
