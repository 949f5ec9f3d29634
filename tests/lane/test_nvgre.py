"""Virtual networks with NVGRE, which needs GRE taps."""

from __future__ import annotations

import subprocess

import frames as f
from overlay_lab import INNS, PROVIDERS, TENANTS, new_hosts, packet, two_tenants
from switch_lab import run_in


def test_tenants_with_the_same_addresses_reach_their_own_over_gre() -> None:
    subprocess.run(["modprobe", "tun"], check=True)
    with new_hosts(two_tenants("nvgre")) as hosts:
        for tenant in TENANTS:
            here, there = hosts.guests["a", tenant], hosts.guests["b", tenant]
            here.send(f.arp(here.mac, 1, here.mac, here.ip, "00" * 6, there.ip))
            assert here.wait_for(f.mac(there.mac) + f.ip(there.ip)) == []
            nobody = f.arp(here.mac, 1, here.mac, here.ip, "00" * 6, "10.5.0.99")
            here.send(nobody, packet(here, there, b"over gre;"))
            assert there.wait_for(b"over gre;") == []
            there.send(packet(there, here, b"and back;"))
            here.wait_for(b"and back;")
        passed = hosts.on_the_wire()
        assert {vni for vni, _ in passed} == set(TENANTS.values())
        assert all(frame[0] & 1 == 0 for _, frame in passed), "no broadcast and no multicast"
        assert not any(b";" in frame for guest in hosts.guests.values() for frame in guest.drain())

        lab = hosts.labs["a"]
        assert lab.do(lab.runner.repair()).done == []
        links = run_in(lab.namespace, "ip", "-o", "link", "show", "type", "gretap")
        tunnels = [line.split(": ")[1].partition("@")[0] for line in links.splitlines() if "inov-" in line]
        assert len(tunnels) == len(TENANTS)
        for damage in (["ip", "link", "del", tunnels[0]], ["ip", "link", "set", tunnels[1], "nomaster"]):
            run_in(lab.namespace, *damage)
            assert lab.do(lab.runner.repair()).done != []
            assert lab.do(lab.runner.repair()).done == []
        red_a, red_b = hosts.guests["a", "red"], hosts.guests["b", "red"]
        red_a.send(packet(red_a, red_b, b"again;"))
        red_b.wait_for(b"again;")
        for tenant in TENANTS:
            lab.do(lab.runner.remove(hosts.bridge("a", tenant)))
        assert "inov-" not in run_in(lab.namespace, "ip", "link", "show")
        assert INNS["a"] not in run_in(lab.namespace, "ip", "link", "show")
        assert PROVIDERS["b"] not in run_in(lab.namespace, "nft", "list", "ruleset")
