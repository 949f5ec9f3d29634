"""What is measured of ports, as Prometheus reads it."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from innkeeper.observe.ports import PortFacts, exposition


def test_ports_are_exposed_with_directions_of_the_vm() -> None:
    facts = PortFacts("web-0", 100, 1, 2000, 3, {"arp": 4}, (("10.0.0.0/8", "out", 90),))
    found = {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(exposition([facts], {"guests": 7, "outside": 0}))
        for sample in family.samples
    }
    nic = ("nic", "web-0")
    assert found == {
        ("innkeeper_port_out_bytes_total", (nic,)): 100,
        ("innkeeper_port_out_packets_total", (nic,)): 1,
        ("innkeeper_port_in_bytes_total", (nic,)): 2000,
        ("innkeeper_port_in_packets_total", (nic,)): 3,
        ("innkeeper_port_dropped_packets_total", (("guard", "arp"), nic)): 4,
        ("innkeeper_host_dropped_packets_total", (("source", "guests"),)): 7,
        ("innkeeper_host_dropped_packets_total", (("source", "outside"),)): 0,
        ("innkeeper_port_metered_bytes_total", (("direction", "out"), nic, ("remote", "10.0.0.0/8"))): 90,
    }
