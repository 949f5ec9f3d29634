from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from innkeeper.model.problems import Failed
from innkeeper.network import dhcp
from innkeeper.network.dhcp import Lease, Server, compile_files, parse_leases
from innkeeper.network.policy import PortPolicy, SwitchPolicy

LAN = SwitchPolicy("lan", "inbr-k3f91", subnet="10.77.0.0/24", dns_domain="inn")
WEB = PortPolicy("intp-k3f91", "52:54:00:00:00:01", ("10.77.0.2", "10.77.0.9"), hostname="Web_1")
FAR = PortPolicy("intp-k3f92", "52:54:00:00:00:02", ("192.0.2.7",), hostname="far")
BARE = PortPolicy("intp-k3f93", "52:54:00:00:00:03", hostname="bare")
DIRECTORY = Path("/run/inn/switches/lan")


def test_reservations_and_names() -> None:
    files = compile_files(LAN, [FAR, WEB, BARE], DIRECTORY, "nobody")
    assert files.reservations == "52:54:00:00:00:01,10.77.0.2,web-1\n"
    assert files.hosts == "10.77.0.1 gateway.inn gateway\n10.77.0.2 web-1.inn web-1\n192.0.2.7 far.inn far\n"


def test_order_does_not_matter() -> None:
    assert compile_files(LAN, [WEB, FAR], DIRECTORY, "nobody") == compile_files(LAN, [FAR, WEB], DIRECTORY, "nobody")


def test_it_serves_its_bridge_only_and_not_as_root() -> None:
    lines = compile_files(LAN, [], DIRECTORY, "nobody").configuration.splitlines()
    assert {"interface=inbr-k3f91", "except-interface=lo", "bind-dynamic", "user=nobody"} <= set(lines)
    assert "dhcp-range=10.77.0.0,static,255.255.255.0,3600" in lines


def test_guests_do_not_choose_names() -> None:
    assert "dhcp-ignore-names" in compile_files(LAN, [], DIRECTORY, "nobody").configuration.splitlines()


def test_only_nat_gives_a_way_out() -> None:
    nat = compile_files(LAN, [], DIRECTORY, "nobody").configuration.splitlines()
    inside = compile_files(replace(LAN, kind="internal"), [], DIRECTORY, "nobody").configuration.splitlines()
    assert "dhcp-option=option:router,10.77.0.1" in nat and "no-resolv" not in nat
    assert "dhcp-option=option:router" in inside and "no-resolv" in inside


def test_a_private_switch_serves_none() -> None:
    with pytest.raises(Failed):
        compile_files(replace(LAN, kind="private"), [], DIRECTORY, "nobody")


def test_leases() -> None:
    text = (
        "1764000000 52:54:00:00:00:01 10.77.0.2 web 01:52:54:00:00:00:01\n"
        "0 52:54:00:00:00:02 10.77.0.3 * *\n"
        "duid 00:01\nhalf a line\n"
    )
    assert parse_leases(text) == [
        Lease("10.77.0.2", "52:54:00:00:00:01", "web", 1764000000),
        Lease("10.77.0.3", "52:54:00:00:00:02", "", 0),
    ]


def test_a_process_that_ends_before_it_is_told_is_started_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Vanishing(Server):
        started = 0

        def pid(self) -> int | None:
            return 2**22 + 1

        def _start(self, switch: SwitchPolicy) -> None:
            self.started += 1

    monkeypatch.setattr(dhcp, "_is_here", lambda _: True)
    monkeypatch.setattr(Server, "_prepare", lambda self: self._directory.mkdir(exist_ok=True))
    server = Vanishing(tmp_path / "lan")
    server.ensure(LAN, [])
    assert server.started == 1, "its configuration is new, and stopping what is gone is no error"
    assert server.ensure(LAN, [WEB]) == ["start DHCP and DNS of switch lan"]
    assert server.started == 2
