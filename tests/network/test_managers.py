"""What manages a network card is found in the files that it keeps."""

from __future__ import annotations

from pathlib import Path

import pytest

from innkeeper.network.managers import advice, find_client_id, find_manager

INTERFACES = """\
auto lo
iface lo inet loopback
allow-hotplug eth0
iface eth0 inet dhcp
iface eth0 inet6 auto
iface eth01 inet static
"""


def put(root: Path, name: str, text: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ({}, ""),
        ({"etc/network/interfaces": INTERFACES}, "dhcp and auto"),
        ({"etc/network/interfaces.d/lan": "iface eth0 inet static\n  address 192.0.2.5/24\n"}, "static"),
        ({"etc/network/interfaces": "iface eth01 inet dhcp\n"}, ""),
        (
            {"run/systemd/netif/links/2": "ADMIN_STATE=configured\nNETWORK_FILE=/etc/systemd/network/10-lan.network\n"},
            "systemd-networkd (10-lan.network)",
        ),
        (
            {
                "run/systemd/netif/links/2": "ADMIN_STATE=configured\n"
                "NETWORK_FILE=/run/systemd/network/10-netplan-eth0.network\n"
            },
            "netplan",
        ),
        ({"run/systemd/netif/links/2": "ADMIN_STATE=unmanaged\n"}, ""),
        ({"run/systemd/netif/links/3": "ADMIN_STATE=configured\n"}, ""),
        (
            {"run/NetworkManager/devices/2": "[device]\nmanaged=true\nconnection-uuid=0af3\n"},
            "NetworkManager (connection 0af3)",
        ),
        ({"run/NetworkManager/devices/2": "[device]\nmanaged=false\n"}, ""),
        ({"run/NetworkManager/devices/2": "no section\n"}, ""),
    ],
)
def test_a_manager_is_named_with_where_it_says_so(tmp_path: Path, files: dict[str, str], found: str) -> None:
    for name, text in files.items():
        put(tmp_path, name, text)
    named = find_manager("eth0", 2, tmp_path)
    assert found in named and bool(found) == bool(named)


def test_each_manager_keeps_its_configuration() -> None:
    for manager in ("systemd-networkd (a.network)", "NetworkManager", "ifupdown (/etc/network/interfaces, dhcp)"):
        said = advice("eth0", manager, "inbr-t3st1")
        assert manager in said and "leave what it has for eth0" in said
    assert "nmcli device set eth0 managed no" in advice("eth0", "NetworkManager", "inbr-t3st1")


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ({}, ""),
        ({"run/systemd/netif/leases/2": "# This is private data.\nADDRESS=192.0.2.5\nCLIENTID=ff5B50\n"}, "ff5b50"),
        ({"run/systemd/netif/leases/3": "CLIENTID=ff5b50\n"}, ""),
        ({"run/systemd/netif/leases/2": "CLIENTID=zz\n"}, ""),
        (
            {
                "var/lib/dhcp/dhclient.eth0.leases": "lease {\n  option dhcp-client-identifier 1:2:0:0:0:0:9;\n}\n"
                "lease {\n  option dhcp-client-identifier 1:2:0:0:0:0:10;\n}\n"
            },
            "01020000000010",
        ),
        ({"run/NetworkManager/devices/2": "[device]\nmanaged=full\n"}, "01020000000010"),
    ],
)
def test_the_identifier_of_the_dhcp_client_is_found(tmp_path: Path, files: dict[str, str], found: str) -> None:
    for name, text in files.items():
        put(tmp_path, name, text)
    assert find_client_id("eth0", 2, "02:00:00:00:00:10", tmp_path) == found
