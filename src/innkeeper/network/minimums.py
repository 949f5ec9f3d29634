"""Minimum bandwidth on a switch's uplink: what each port is sure of when all send, as the classes of an HTB. Pure.

A frame that leaves by the uplink carries the class of its port (``meta priority``); what has none, the host's own
traffic too, is in a default class. Each class is sure of its rate and may borrow all that others leave, in proportion.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from innkeeper.network.policy import PortPolicy, SwitchPolicy
from innkeeper.network.ruleset import TAP_PREFIX, Element

MAJOR = 0x494E
"""The handle of the inn's root queues ("IN")."""
ROOT_MINOR, DEFAULT_MINOR = 1, 0xFFFF
_FIRST_MINOR, _LAST_MINOR = 0x10, 0xFFFE
_INN_ID_LENGTH = 4
_WEIGHTS = 100
_LEAST_BYTES_PER_S = 1_000
_MOST_QUANTUM, _LEAST_QUANTUM = 60_000, 1_600
_BURST_S, _LEAST_BURST = 0.002, 16_000


@dataclass(frozen=True, slots=True)
class Share:
    """A class: what it is sure of; bytes it may send in its turn of what others leave; bytes at once."""

    rate_bytes_per_s: int
    quantum_bytes: int
    burst_bytes: int


@dataclass(frozen=True, slots=True)
class Shares:
    """What an uplink of that rate gives: class (minor number) -> share; the default class is always among them."""

    rate_bytes_per_s: int
    shares: Mapping[int, Share] = field(default_factory=dict)

    @property
    def burst_bytes(self) -> int:
        return _burst(self.rate_bytes_per_s)


def minor(tap: str) -> int:
    """The class of a port: its number in the inn, so that no other's change moves it.

    Numbers beyond 65,000 share classes with low ones.
    """
    number = int(tap[len(TAP_PREFIX) + _INN_ID_LENGTH :], 36)
    return _FIRST_MINOR + number % (_LAST_MINOR - _FIRST_MINOR + 1)


def minimum_elements(switch: SwitchPolicy, port: PortPolicy) -> frozenset[Element]:
    """The element that gives frames of a port with a minimum their class."""
    if switch.outside is None or switch.uplink_rate_bits_per_s is None or not port.traffic.has_minimum:
        return frozenset()
    return frozenset({Element("bridge", "minimum_class", (port.tap,), (f"{MAJOR:x}:{minor(port.tap):x}",))})


def schema() -> str:
    """The part of the bridge table that gives frames their class."""
    return """\
  map minimum_class { type ifname : classid; }
  chain share_uplinks {
    type filter hook forward priority -100; policy accept;
    oifname @trusted_ports meta priority set iifname map @minimum_class comment "the class of a port at the uplink"
  }
"""


def shares(switch: SwitchPolicy, ports: Iterable[PortPolicy]) -> Shares | None:
    """What the switch's uplink gives its ports; None when no port has a minimum, or there is nothing to share.

    Weights are hundredths of the uplink; when they are more than 100 in all, each is sure of its part of the sum. The
    default class has what is left, at least one hundredth.
    """
    if switch.outside is None or switch.uplink_rate_bits_per_s is None:
        return None
    rate = switch.uplink_rate_bits_per_s // 8
    asking = [port for port in ports if port.traffic.has_minimum]
    if not asking:
        return None
    weights = sum(port.traffic.min_weight or 0 for port in asking)
    whole = weights + max(1, _WEIGHTS - weights)
    sure = {
        minor(port.tap): rate * port.traffic.min_weight // whole
        if port.traffic.min_weight
        else (port.traffic.min_out_bits_per_s or 0) // 8
        for port in asking
    }
    sure[DEFAULT_MINOR] = rate - sum(sure.values())
    sure = {number: max(each, _LEAST_BYTES_PER_S) for number, each in sure.items()}
    most = max(sure.values())
    return Shares(
        rate,
        {
            number: Share(each, max(_LEAST_QUANTUM, _MOST_QUANTUM * each // most), _burst(each))
            for number, each in sorted(sure.items())
        },
    )


def _burst(rate_bytes_per_s: int) -> int:
    return max(int(rate_bytes_per_s * _BURST_S), _LEAST_BURST)


def listing(device: str | None, wanted: Shares | None) -> list[str]:
    """The shares as the lines of tc(8) that would make them, for differences shown to people."""
    if device is None or wanted is None:
        return []
    lines = [f"qdisc {device} root htb default {DEFAULT_MINOR:x}"]
    return lines + [
        f"class {device} {MAJOR:x}:{number:x} htb rate {share.rate_bytes_per_s * 8}bit "
        f"ceil {wanted.rate_bytes_per_s * 8}bit quantum {share.quantum_bytes}b"
        for number, share in wanted.shares.items()
    ]
