"""The host's firewall: what it is compiled to, and what real packets of a host's network come to."""

from __future__ import annotations

import ipaddress
import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from host_lab import BRIDGE, HOST4, HOST6, WORLD4, WORLD6, Host, new_host, until
from hypothesis import given, strategies as st
from knocking import listening, reaches
from switch_lab import INN_ID, Lab, in_namespace, new_machine, new_namespace, run_in
from switch_world import GATEWAY, SWITCH, port_of

from innkeeper.model.host_firewall import HostFirewall, read_service, read_source
from innkeeper.network.host_firewall import Surroundings, contradictions, firewall_elements
from innkeeper.network.ruleset import Element
from innkeeper.network.sources import listed_prefix
from innkeeper.network.switch import SwitchRunner
from innkeeper.network.transaction import Schema, compile_elements, replace as replace_all

NOWHERE = Surroundings({})
ON = HostFirewall(enabled=True)
TABLE = "inn_t3st"


def standing(wish: HostFirewall, around: Surroundings = NOWHERE) -> frozenset[Element]:
    return firewall_elements("standing", wish, around)


# --- compiling --------------------------------------------------------------------------------------------------------


def test_a_firewall_that_is_off_is_nothing_at_all() -> None:
    off = HostFirewall(management=["eth1"], allow=["tcp/22"])
    assert standing(off) == frozenset()
    assert "chain host_firewall" not in replace_all(Schema("k3f9"), compile_elements([]))
    assert "chain host_firewall" in replace_all(Schema("k3f9"), compile_elements([], standing(ON)))


def test_what_stands_for_a_firewall() -> None:
    wish = HostFirewall(
        enabled=True, management=["eth1", "192.0.2.0/28"], allow=["tcp/22@2001:db8::/64%lan", "udp/53"], echo=False
    )
    around = Surroundings({"lan": ("inbr-k3f91", "eth0")}, frozenset({"198.51.100.2"}))
    assert {(each.container, " . ".join(each.key)) for each in firewall_elements("trial", wish, around)} == {
        ("trial_closed", "ipv4"),
        ("trial_closed", "ipv6"),
        ("trial_management_on4", "eth1 . 0.0.0.0/0"),
        ("trial_management_on6", "eth1 . ::/0"),
        ("trial_management4", "192.0.2.0/28"),
        ("trial_allow4", "17 . 53 . 0.0.0.0/0"),
        ("trial_allow6", "17 . 53 . ::/0"),
        ("trial_allow_on6", "inbr-k3f91 . 6 . 22 . 2001:db8::/64"),
        ("trial_allow_on6", "eth0 . 6 . 22 . 2001:db8::/64"),
        ("tunnel_peers", "198.51.100.2"),
    }


def test_interfaces_may_be_called_like_words_of_nftables() -> None:
    text = replace_all(
        Schema("k3f9"), standing(HostFirewall(enabled=True, management=["ip"], allow=["tcp/22%eth0.10"]))
    )
    assert 'standing_management_on4 { "ip" . 0.0.0.0/0 }' in text
    assert 'standing_allow_on6 { "eth0.10" . 6 . 22 . ::/0 }' in text


_addresses = st.one_of(
    st.integers(0x0A000000, 0x0A0000FF).map(ipaddress.IPv4Address),
    st.integers(0x20010DB8 << 96, (0x20010DB8 << 96) + 255).map(ipaddress.IPv6Address),
)
_prefixes = st.builds(
    lambda address, bits: (
        str(ipaddress.ip_network((int(address), address.max_prefixlen - bits), strict=False))
        if address.version == 4
        else str(ipaddress.IPv6Network((int(address), address.max_prefixlen - bits), strict=False))
    ),
    _addresses,
    st.integers(0, 6),
)
_places = st.sampled_from(["", "%eth0", "%eth1", "%lan"])
_of = st.one_of(st.just(""), _prefixes.map("@{}".format))
_ports = st.builds(
    lambda low, more: f"{low}-{low + more}" if more else str(low), st.integers(20, 25), st.integers(0, 4)
)
_services = st.one_of(
    st.builds("{}/{}{}{}".format, st.sampled_from(["tcp", "udp"]), _ports, _of, _places),
    st.builds("gre{}{}".format, _of, _places),
)
_asked = st.one_of(st.tuples(st.sampled_from([6, 17]), st.integers(19, 30)), st.just((47, 1234)))
_wishes = st.builds(
    HostFirewall,
    enabled=st.just(True),
    management=st.lists(
        st.one_of(st.sampled_from(["eth0", "lan"]), st.builds("{}{}".format, _prefixes, _places)), max_size=4
    ),
    allow=st.lists(_services, max_size=6),
)
AROUND = Surroundings({"lan": ("inbr-k3f91", "eth2"), "eth2": ("inbr-k3f91", "eth2")})


def wanted(
    wish: HostFirewall, device: str, source: ipaddress.IPv4Address | ipaddress.IPv6Address, asked: tuple[int, int]
) -> bool:
    """Whether a packet for that service may pass, by the wish itself."""
    services = [read_service(one) for one in wish.allow]
    sources = [read_source(one) for one in wish.management]
    sources += [one.source for one in services if one.covers(*asked)]
    return any(
        (one.prefix is None or source in one.prefix) and (one.on is None or device in AROUND.of(one)) for one in sources
    )


def passes(
    elements: frozenset[Element],
    device: str,
    source: ipaddress.IPv4Address | ipaddress.IPv6Address,
    asked: tuple[int, int],
) -> bool:
    """The same by the rules of a generation: each looks up one set."""
    service = (str(asked[0]), str(asked[1]))
    keys = {"management_on": (device,), "management": (), "allow": service, "allow_on": (device, *service)}
    return any(
        each.container == f"standing_{name}{source.version}"
        and all(_holds(part, field) for part, field in zip(each.key[:-1], fields, strict=True))
        and source in ipaddress.ip_network(each.key[-1])
        for name, fields in keys.items()
        for each in elements
    )


def _holds(part: str, field: str) -> bool:
    """Whether a field is the element's, or in its range."""
    low, dash, high = part.partition("-")
    return int(low) <= int(field) <= int(high) if dash and low.isdigit() else part == field


@given(_wishes, st.sampled_from(["eth0", "eth1", "eth2", "inbr-k3f91"]), _addresses, _asked)
def test_a_packet_passes_the_rules_when_the_wish_lets_it(
    wish: HostFirewall, device: str, source: ipaddress.IPv4Address | ipaddress.IPv6Address, asked: tuple[int, int]
) -> None:
    assert passes(standing(wish, AROUND), device, source, asked) == wanted(wish, device, source, asked)


@given(_wishes)
def test_no_two_ranges_of_a_set_overlap(wish: HostFirewall) -> None:
    found: dict[tuple[str, ...], list[tuple[range, ipaddress.IPv4Network | ipaddress.IPv6Network]]] = {}
    for each in standing(wish, AROUND):
        if not each.container.endswith(("closed", "echo")):
            *fields, prefix = each.key
            low, _, high = fields.pop().partition("-") if "_allow" in each.container else ("0", "", "")
            area = (range(int(low), int(high or low) + 1), ipaddress.ip_network(prefix))
            found.setdefault((each.container, *fields), []).append(area)
    for areas in found.values():
        for at, (ports, network) in enumerate(areas):
            assert not any(set(ports) & set(others) and network.overlaps(other) for others, other in areas[:at])


def test_what_will_not_have_been_meant_is_told() -> None:
    assert contradictions(HostFirewall(management=["eth9"]), {}) == [], "it is off"
    assert [text.partition(":")[0] for text in contradictions(ON, {})] == [
        "nothing of the host is reached from outside"
    ]
    wish = HostFirewall(enabled=True, management=["eth9", "eth1"], allow=["tcp/22%eth9"])
    assert contradictions(wish, {"eth1": "br0"}) == [
        "there is no interface or external switch eth9 now, so nothing comes in there",
        "eth1 is a part of br0, so nothing comes in at eth1 but all at br0",
    ]
    assert contradictions(wish, {"eth1": None, "eth9": None}) == []
    assert listed_prefix({"prefix": {"addr": "::", "len": 0}}) == "::/0" and listed_prefix("eth0") is None


# --- packets ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def host() -> Iterator[Host]:
    with new_host() as made:
        yield made


def hold(host: Host, *, around: Surroundings = NOWHERE, **wish: Any) -> None:
    """Have that firewall, and nothing but what was written."""
    host.do(host.runner.set_firewall(standing(HostFirewall(enabled=True, **wish), around)))
    assert host.do(host.runner.repair()).done == [], "what nft lists is what was written"


def knocks(host: Host, kind: int, service: socket.socket) -> tuple[bool, bool]:
    """Whether the world reaches the service by IPv4 and by IPv6."""
    four, six = (reaches(host.world, address, kind, 3142, service) for address in (HOST4, HOST6))
    return four, six


def pings(namespace: str, address: str) -> bool:
    return "1 received" in run_in(namespace, "ping", "-c1", "-W1", address, check=False)


@pytest.mark.root
@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM], ids=["tcp", "udp"])
def test_the_host_is_reached_as_far_as_its_firewall_says(host: Host, kind: int) -> None:
    name, other = ("tcp", "udp") if kind == socket.SOCK_STREAM else ("udp", "tcp")
    with listening(host.namespace, kind, 3142) as service:
        assert knocks(host, kind, service) == (True, True), "it is off"
        hold(host)
        assert knocks(host, kind, service) == (False, False)
        assert host.do(host.runner.firewall_dropped()) >= 2
        for wish, expected in (
            ({"allow": [f"{other}/3142", f"{name}/3143"]}, (False, False)),
            ({"allow": [f"{name}/3142"]}, (True, True)),
            ({"allow": [f"{name}/3100-3199@192.0.2.0/24", f"{name}/3142-3200", "gre"]}, (True, True)),
            ({"allow": [f"{name}/3143-3200", f"{name}/1-3141", f"{name}/3142-3150@192.0.2.0/24"]}, (True, False)),
            ({"allow": [f"{name}/3142@192.0.2.0/24", f"{name}/3142@192.0.2.0/28"]}, (True, False)),
            ({"allow": [f"{name}/3142@192.0.2.128/25", f"{name}/3142@{WORLD6}"]}, (False, True)),
            ({"allow": [f"{name}/3142%eth0"]}, (True, True)),
            ({"allow": [f"{name}/3142%eth1", f"{name}/3142@10.0.0.0/8%eth0"]}, (False, False)),
            ({"allow": [f"{name}/3142@2001:db8::/64%eth0"]}, (False, True)),
            ({"management": ["eth0"]}, (True, True)),
            ({"management": ["eth1", "ip", "eth0.10"]}, (False, False)),
            ({"management": [WORLD4]}, (True, False)),
            ({"management": ["2001:db8::/32%eth0", "192.0.2.0/24%eth1"]}, (False, True)),
            ({"management": ["0.0.0.0/0", "::/0"]}, (True, True)),
        ):
            hold(host, **wish)
            assert knocks(host, kind, service) == expected, wish
        host.do(host.runner.set_firewall(frozenset()))
        assert knocks(host, kind, service) == (True, True)


@pytest.mark.root
def test_what_a_host_needs_passes_a_firewall_that_allows_nothing(host: Host) -> None:
    with listening(host.namespace, socket.SOCK_STREAM, 3142):

        def connect() -> socket.socket:
            return socket.create_connection((HOST4, 3142), 5)

        with in_namespace(host.world, connect) as standing_connection:
            hold(host)
            standing_connection.send(b"still there")
            time.sleep(0.1)
            sent = run_in(host.world, "ss", "-tnH", "dst", HOST4).split()
            assert sent[0] == "ESTAB" and sent[2] == "0", "all that was sent has been acknowledged"
    for namespace in (host.namespace, host.world):
        run_in(namespace, "ip", "neigh", "flush", "all")
    assert host.reaches(), "the host reaches the world, whose neighbours and answers it hears"
    assert pings(host.world, HOST4) and pings(host.world, HOST6)
    hold(host, echo=False)
    run_in(host.world, "ip", "neigh", "flush", "all")
    assert not pings(host.world, HOST4) and not pings(host.world, HOST6)
    assert host.reaches()
    assert pings(host.namespace, HOST4) and pings(host.namespace, "127.0.0.1"), "the host itself"


@pytest.mark.root
def test_the_host_hears_how_large_its_packets_may_be(host: Host) -> None:
    far4, far6 = "203.0.113.2", "2001:db8:9::2"
    with new_namespace("far") as far:
        for namespace, command in (
            (host.world, f"ip link add way mtu 1300 type veth peer name eth0 netns {far}"),
            (host.world, "ip addr add 203.0.113.1/24 dev way"),
            (host.world, "ip addr add 2001:db8:9::1/64 dev way nodad"),
            (host.world, "ip link set way up"),
            (host.world, "sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1"),
            (far, f"ip addr add {far4}/24 dev eth0"),
            (far, f"ip addr add {far6}/64 dev eth0 nodad"),
            (far, "ip link set eth0 mtu 1300 up"),
            (far, "ip route add default via 203.0.113.1"),
            (far, "ip route add default via 2001:db8:9::1"),
        ):
            run_in(namespace, *command.split())
        hold(host, echo=False)
        for address in (far4, far6):
            assert until(lambda address=address: pings(host.namespace, address)), address
            run_in(host.namespace, "ping", "-c1", "-W1", "-M", "do", "-s", "1350", address, check=False)
            assert "mtu 1300" in host.ip(f"route get {address}"), "a router on the way said so"


@pytest.mark.root
def test_tunnels_of_virtual_switches_pass_from_where_they_lead(host: Host) -> None:
    with listening(host.namespace, socket.SOCK_DGRAM, 4789) as service:
        hold(host)
        assert not reaches(host.world, HOST4, socket.SOCK_DGRAM, 4789, service)
        hold(host, around=Surroundings({}, frozenset({WORLD4})))
        assert reaches(host.world, HOST4, socket.SOCK_DGRAM, 4789, service)


@pytest.mark.root
def test_the_host_is_reached_where_its_network_has_moved_to(host: Host) -> None:
    around = Surroundings({"eth0": (BRIDGE, "eth0")})
    with listening(host.namespace, socket.SOCK_STREAM, 3142) as service:
        hold(host, management=["eth0"], around=around)
        host.do(host.runner.ensure(host.policy()))
        assert knocks(host, socket.SOCK_STREAM, service) == (True, True)
        hold(host, management=["eth0"])
        assert knocks(host, socket.SOCK_STREAM, service) == (False, False), "nothing comes in at a bridge's port"


@pytest.mark.root
def test_guests_have_their_gateway_still(lab: Lab) -> None:
    lab.do(lab.runner.set_firewall(standing(ON)))
    with new_machine("guest", lab.plug(port_of(1))) as machine:
        machine.give_address(GATEWAY)
        run_in(machine.namespace, "ping", "-c1", "-W5", GATEWAY)
        with listening(lab.namespace, socket.SOCK_STREAM, 3142) as service:
            assert reaches(machine.namespace, GATEWAY, socket.SOCK_STREAM, 53, service)
            assert not reaches(machine.namespace, GATEWAY, socket.SOCK_STREAM, 3142, service)
            served = replace(SWITCH, host_services=("tcp/3142",))
            lab.do(lab.runner.ensure(served, [machine.guest.port]))
            assert reaches(machine.namespace, GATEWAY, socket.SOCK_STREAM, 3142, service)


# --- trials, repairs --------------------------------------------------------------------------------------------------


@pytest.mark.root
def test_a_trial_ends_by_itself_though_nobody_lives(host: Host) -> None:
    with listening(host.namespace, socket.SOCK_STREAM, 3142) as service:
        before = standing(HostFirewall(enabled=True, allow=["tcp/3142@192.0.2.0/24"]))
        host.do(host.runner.set_firewall(before))
        trial = firewall_elements("trial", HostFirewall(enabled=True, allow=["tcp/3142@2001:db8::/32"]), NOWHERE)
        host.do(host.runner.try_firewall(before | trial, 2.0))
        assert host.do(host.runner.firewall_left_s()) in (1.0, 2.0)
        assert knocks(host, socket.SOCK_STREAM, service) == (False, True)
        assert host.do(host.runner.repair()).done == [], "a repair does not end it"
        host.do(host.runner.close())
        assert until(lambda: knocks(host, socket.SOCK_STREAM, service) == (True, False))
    host.runner = SwitchRunner(INN_ID, host.directory, namespace=host.namespace)
    assert host.do(host.runner.start([], before)).done == [f"set the rules of {TABLE} right"]
    assert host.do(host.runner.firewall_left_s()) is None


@pytest.mark.root
def test_a_trial_from_nothing_leads_back_to_nothing(host: Host) -> None:
    with listening(host.namespace, socket.SOCK_STREAM, 3142) as service:
        trial = firewall_elements("trial", ON, NOWHERE)
        host.do(host.runner.try_firewall(trial, 1.5))
        assert knocks(host, socket.SOCK_STREAM, service) == (False, False)
        host.do(host.runner.try_firewall(trial, 1.0))
        assert until(lambda: knocks(host, socket.SOCK_STREAM, service) == (True, True))


@pytest.mark.root
def test_what_is_confirmed_holds_at_once_and_for_good(host: Host) -> None:
    with listening(host.namespace, socket.SOCK_STREAM, 3142) as service:
        host.do(host.runner.try_firewall(firewall_elements("trial", ON, NOWHERE), 1.0))
        host.do(host.runner.set_firewall(standing(ON)))
        time.sleep(1.2)
        assert knocks(host, socket.SOCK_STREAM, service) == (False, False)


@pytest.mark.root
@pytest.mark.parametrize(
    "damage",
    [
        "flush ruleset",
        f"flush chain inet {TABLE} standing",
        f"delete chain inet {TABLE} host_firewall",
        f"flush set inet {TABLE} standing_closed",
        f"insert rule inet {TABLE} host_firewall accept",
    ],
)
def test_damage_is_repaired(host: Host, damage: str) -> None:
    with listening(host.namespace, socket.SOCK_STREAM, 3142) as service:
        hold(host, allow=["tcp/22%eth0"])
        host.do(host.runner.touched(0))
        run_in(host.namespace, "nft", *damage.split())
        assert knocks(host, socket.SOCK_STREAM, service) == (True, True)
        assert f"table inet {TABLE}" in host.do(host.runner.touched(10))
        assert host.do(host.runner.repair()).done != []
        assert knocks(host, socket.SOCK_STREAM, service) == (False, False)


@pytest.mark.root
def test_nothing_is_left_of_it_when_the_inn_goes(host: Host) -> None:
    with listening(host.namespace, socket.SOCK_STREAM, 3142) as service:
        hold(host)
        host.do(host.runner.remove_all())
        assert knocks(host, socket.SOCK_STREAM, service) == (True, True)
