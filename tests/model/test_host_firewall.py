"""Services and sources as they are written."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given, strategies as st
from pydantic import BaseModel, ValidationError

from innkeeper.model.host_firewall import (
    HostFirewall,
    HostFirewallSet,
    HostService,
    Service,
    Source,
    read_service,
    read_source,
)

_fours = st.builds(
    lambda base, length: ipaddress.ip_network((base, length), strict=False), st.integers(0, 2**29), st.integers(0, 32)
)
_sixes = st.builds(
    lambda base, length: ipaddress.IPv6Network((base, length), strict=False),
    st.integers(0x2000 << 112, 0x3FFF << 112),
    st.integers(4, 128),
)
_sources = st.builds(
    Source, st.one_of(st.none(), _fours, _sixes), st.one_of(st.none(), st.sampled_from(["eth1", "eth0.10", "lan-ext"]))
)


_ranges = st.tuples(st.integers(1, 65535), st.integers(1, 65535)).map(lambda pair: (min(pair), max(pair)))


@given(
    st.one_of(
        st.builds(Service, st.sampled_from(["tcp", "udp", "sctp"]), _ranges, _sources),
        st.builds(Service, st.sampled_from(["gre", "vrrp"]), st.none(), _sources),
    )
)
def test_what_is_written_is_read_again(service: Service) -> None:
    assert read_service(str(service)) == service
    if service.source != Source():
        assert read_source(str(service.source)) == service.source


def test_what_a_service_covers() -> None:
    some, echo = read_service("tcp/8000-8100@192.0.2.0/24"), read_service("icmp%eth1")
    assert [some.covers(6, port) for port in (7999, 8000, 8100, 8101)] == [False, True, True, False]
    assert not some.covers(17, 8000) and not some.covers(6, None)
    assert echo.covers(1, None) and not echo.covers(58, None)
    assert (echo.version, some.version) == (4, None)


def test_a_single_address_needs_no_length() -> None:
    assert str(read_service("tcp/22@192.0.2.7/32")) == "tcp/22@192.0.2.7"
    assert str(read_source("2001:DB8::0/64%eth1")) == "2001:db8::/64%eth1"
    assert read_source("10") == Source(on="10"), "an interface may be called so"


@pytest.mark.parametrize(
    "wrong",
    [
        "tcp/0",
        "tcp/65536",
        "tcp/022",
        "tcp/9-8",
        "tcp/8-",
        "tcp/8-65536",
        "gre/1",
        "47",
        "icmp@2001:db8::/64",
        "icmpv6@10.0.0.0/8",
        "icmp/8",
        "tcp",
        "22",
        "tcp/22@",
        "tcp/22%",
        "tcp/22@10.0.0.1/24",
        "tcp/22@10.0.0.0/33",
        "tcp/22@nowhere",
        "tcp/22@224.0.0.0/4",
        "tcp/22@::ffff:10.0.0.1",
        "tcp/22@10.0.0.0/8%eth 0",
        "tcp/22@10.0.0.0/8%eth0;drop",
        'tcp/22%"',
    ],
)
def test_what_is_no_service_is_refused(wrong: str) -> None:
    with pytest.raises(ValueError, match="."):
        read_service(wrong)


@pytest.mark.parametrize("wrong", ["", "10.0.0.1/24", "/24", "eth0/24", "::1.2.3.4", "ff02::/16", "a b", "%eth0"])
def test_what_is_no_source_is_refused(wrong: str) -> None:
    with pytest.raises(ValueError, match="."):
        read_source(wrong)


class Asked(BaseModel):
    services: list[HostService]


def test_a_switchs_services_are_for_its_own_guests() -> None:
    asked = Asked(services=["tcp/22@10.77.0.0/28", "udp/123@FD00::/8", "tcp/3142"])
    assert asked.services == ["tcp/22@10.77.0.0/28", "udp/123@fd00::/8", "tcp/3142"]
    with pytest.raises(ValidationError, match="leave out %eth0"):
        Asked(services=["tcp/22%eth0"])


def test_a_change_names_places_anew_and_leaves_the_rest() -> None:
    before = HostFirewall(enabled=True, management=["old"], allow=["tcp/22%old"])
    change = HostFirewallSet(allow=["tcp/22%lan", "tcp/80@10.0.0.0/8%lan", "tcp/22%lan"], echo=False)
    after = change.applied_to(before, str.upper)
    assert after == HostFirewall(
        enabled=True, management=["old"], allow=["tcp/22%LAN", "tcp/80@10.0.0.0/8%LAN"], echo=False
    )
    assert after.places == ["old", "LAN"]
    with pytest.raises(ValidationError):
        HostFirewallSet(confirm_within_s=0)
