"""What is measured of cards' ports in Prometheus' text format; directions are the vm's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from prometheus_client.core import CounterMetricFamily, Metric

from innkeeper.observe.exposition import text_of


@dataclass(frozen=True, slots=True)
class PortFacts:
    """A card and what has passed its port since that stands; ``dropped`` by guard, ``metered`` (remote, way, bytes)."""

    nic: str
    out_bytes: int
    out_packets: int
    in_bytes: int
    in_packets: int
    dropped: Mapping[str, int]
    metered: tuple[tuple[str, str, int], ...]


_TEXTS = {
    "out_bytes": "Bytes of frames from the vm.",
    "out_packets": "Frames from the vm.",
    "in_bytes": "Bytes of frames towards the vm.",
    "in_packets": "Frames towards the vm.",
}


def exposition(ports: Sequence[PortFacts], host_dropped: Mapping[str, int]) -> str:
    """The text for those ports, and for what was dropped on its way to the host, by where it came from."""
    families: list[Metric] = []
    for name, text in _TEXTS.items():
        family = CounterMetricFamily(f"innkeeper_port_{name}", text, labels=["nic"])
        for port in ports:
            family.add_metric([port.nic], getattr(port, name))
        families.append(family)
    dropped = CounterMetricFamily(
        "innkeeper_port_dropped_packets", "Frames that a guard dropped.", labels=["nic", "guard"]
    )
    metered = CounterMetricFamily(
        "innkeeper_port_metered_bytes",
        "Bytes between the vm and a remote prefix, as its meters counted them.",
        labels=["nic", "remote", "direction"],
    )
    for port in ports:
        for guard, packets in port.dropped.items():
            dropped.add_metric([port.nic, guard], packets)
        for remote, direction, octets in port.metered:
            metered.add_metric([port.nic, remote, direction], octets)
    of_host = CounterMetricFamily(
        "innkeeper_host_dropped_packets",
        "Packets to the host that its rules dropped: of guests, and from outside by its firewall.",
        labels=["source"],
    )
    for source, packets in host_dropped.items():
        of_host.add_metric([source], packets)
    return text_of([*families, dropped, metered, of_host])
