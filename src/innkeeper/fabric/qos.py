"""Quality of service: how many I/Os and bytes a second a disk, or a group of disks, may take and is sure of.

I/Os are normalised as Hyper-V's storage QoS counts them: every 8 KiB of a request, begun ones included, is one. A
*flow* is what a policy is applied to: one disk under a dedicated policy, all its disks together under an aggregated
one. A maximum is a token bucket that holds ``burst_s`` seconds of the rate. A minimum is kept by ``Balance``: a flow
draws on its reserves first, one of I/Os and one of bytes; what is not covered by a reserve draws on a *surplus* that
all flows share, and that is cut while a flow falls short of its minimum though it asks for more and the pool has no
more to give. Nothing here looks at a clock: times are passed in.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from innkeeper.model.problems import Invalid

IO_BYTES = 8192
MIN_BURST_S = 0.05
LEAST_WAIT_S = 1e-4
"""Shorter waits cost more than they are worth."""
MAX_BURST_S = 3600.0
TICK_S = 0.1
SLICE_S = 0.005
"""Time in slices: a flow that has requests in most of them asks for all it can get."""
_ASKING = 0.9
_SHORT = 0.95
"""A minimum is held from this share of it on."""
_CUT, _GROW, _STEP_IOPS = 0.7, 1.15, 50.0
FLOOR_IOPS = 50.0
"""The surplus is never cut below this."""
_BETTER = 1.2
_TRIAL_TICKS = 8
"""After so many cuts that brought a flow nothing, it is taken to ask for no more than it gets ..."""
_CONTENT_S, _MAX_CONTENT_S = 5.0, 320.0
"""... for so long, twice as long each time it is found so again."""
ALARM_AFTER_S = 2.0
_LAPSE_S = 0.35
"""A flow that falls short goes on doing so though it has not looked so for this long: it is the machine that did other
things, or nothing."""


def ios_of(length: int) -> int:
    """Normalised I/Os of a request."""
    return 1 if length <= IO_BYTES else -(-length // IO_BYTES)


@dataclass(frozen=True, slots=True)
class QosPolicy:
    """None: without that bound. Bounds in I/Os and in bytes hold at once, maximums and minimums alike."""

    max_iops: int | None = None
    min_iops: int | None = None
    max_bytes_per_s: int | None = None
    burst_s: float = 1.0
    aggregated: bool = False
    min_bytes_per_s: int | None = None

    @property
    def has_minimum(self) -> bool:
        return self.min_iops is not None or self.min_bytes_per_s is not None

    def checked(self) -> QosPolicy:
        """Raises ``Invalid`` (``qos.policy``)."""
        for name in ("max_iops", "min_iops", "max_bytes_per_s", "min_bytes_per_s"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise Invalid("qos.policy", f"{name} cannot be {value}", remedy="give at least 1, or none")
        if not MIN_BURST_S <= self.burst_s <= MAX_BURST_S:
            raise Invalid("qos.policy", f"a burst of {self.burst_s} s cannot be", remedy="give 0.05 to 3600 s")
        for least, most, what in (
            (self.min_iops, self.max_iops, "I/Os"),
            (self.min_bytes_per_s, self.max_bytes_per_s, "bytes"),
        ):
            if least is not None and most is not None and least > most:
                raise Invalid(
                    "qos.policy",
                    f"the minimum of {least} {what} is above the maximum of {most}",
                    remedy="raise the maximum or lower the minimum",
                )
        return self

    @classmethod
    def of(cls, wanted: dict[str, Any]) -> QosPolicy:
        """A checked policy of named values. Raises ``Invalid`` (``qos.policy``)."""
        known = {each.name for each in fields(cls)}
        if strange := sorted(set(wanted) - known):
            raise Invalid("qos.policy", f"a policy has no {', '.join(strange)}", remedy=f"it has {sorted(known)}")
        return replace(cls(), **wanted).checked()

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> QosPolicy:
        return cls(**json.loads(text))


class Bucket:
    """A token bucket that may be overdrawn by its last taker: who finds it in debt waits until it is not.

    ``rate`` in tokens a second; it holds ``depth_s`` seconds of that and starts full.
    """

    __slots__ = ("_at", "_depth", "_level", "rate")

    def __init__(self, rate: float, depth_s: float, now: float) -> None:
        self.rate = rate
        self._depth = rate * depth_s
        self._level = self._depth
        self._at = now

    def wait_s(self, now: float) -> float:
        """Seconds until something may be taken; 0 when it may be now."""
        if now > self._at:
            self._level = min(self._depth, self._level + (now - self._at) * self.rate)
        self._at = now
        return 0.0 if self._level >= 0 else max(LEAST_WAIT_S, -self._level / self.rate)

    def take(self, amount: float) -> None:
        self._level -= amount

    def set_rate(self, rate: float, depth_s: float) -> None:
        """Change the rate; what is held stays as far as it fits."""
        self.rate = rate
        self._depth = rate * depth_s
        self._level = min(self._level, self._depth)


class Flow:
    """What one policy is applied to."""

    __slots__ = (
        "_bytes",
        "_ios",
        "_last_slice",
        "_reserve",
        "_reserve_bytes",
        "_surplus",
        "busy_slices",
        "content_s",
        "content_until",
        "key",
        "lapse_s",
        "policy",
        "pressed",
        "short_since",
        "taken",
        "taken_bytes",
        "trial_saturated",
        "trial_share",
        "trials",
        "waited",
    )

    def __init__(self, key: str, policy: QosPolicy, surplus: Surplus, now: float) -> None:
        self.key = key
        self.policy = policy
        self._surplus = surplus
        burst = policy.burst_s
        self._ios = Bucket(policy.max_iops, burst, now) if policy.max_iops else None
        self._bytes = Bucket(policy.max_bytes_per_s, burst, now) if policy.max_bytes_per_s else None
        self._reserve = Bucket(policy.min_iops, TICK_S, now) if policy.min_iops else None
        self._reserve_bytes = Bucket(policy.min_bytes_per_s, TICK_S, now) if policy.min_bytes_per_s else None
        self.taken = self.taken_bytes = 0
        """Normalised I/Os and bytes since the last tick; below, slices in which there were any, and whether it had to
        wait."""
        self.busy_slices = 0
        self.waited = False
        self.pressed = False
        """Whether requests of it waited for the pool since the last tick."""
        self._last_slice = -1
        self.short_since: float | None = None
        self.content_until = 0.0
        self.content_s = _CONTENT_S
        self.lapse_s = 0.0
        """For how long it has not looked short."""
        self.trials = self.trial_saturated = 0
        """Ticks in which it looked short since a trial began, and in how many of these the pool had no more to give."""
        self.trial_share = 0.0

    def forget_trial(self) -> None:
        self.short_since, self.trials, self.trial_saturated = None, 0, 0

    def ask(self, length: int, now: float) -> float:
        """Take what a request of ``length`` bytes costs and return 0, or say how long to wait and take nothing."""
        wait = 0.0
        if self._ios is not None:
            wait = self._ios.wait_s(now)
        if self._bytes is not None:
            wait = max(wait, self._bytes.wait_s(now))
        if wait:
            self.waited = True
            return wait
        cost = ios_of(length)
        if not self._is_reserved(cost, length, now) and (wait := self._surplus.ask(cost, now)):
            return wait
        if self._ios is not None:
            self._ios.take(cost)
        if self._bytes is not None:
            self._bytes.take(length)
        self.taken += cost
        self.taken_bytes += length
        number = int(now / SLICE_S)
        if number != self._last_slice:
            self._last_slice = number
            self.busy_slices += 1
        return 0.0

    def _is_reserved(self, cost: int, length: int, now: float) -> bool:
        """Whether one of its reserves covers a request; all that are not in debt are drawn on."""
        covered = False
        if self._reserve is not None and not self._reserve.wait_s(now):
            self._reserve.take(cost)
            covered = True
        if self._reserve_bytes is not None and not self._reserve_bytes.wait_s(now):
            self._reserve_bytes.take(length)
            covered = True
        return covered

    def share(self, since: float) -> float:
        """What it took since the last tick, ``since`` seconds ago, as a share of its minimum; 1 where it has none."""
        policy = self.policy
        shares = [1.0]
        if policy.min_iops is not None:
            shares.append(self.taken / since / policy.min_iops)
        if policy.min_bytes_per_s is not None:
            shares.append(self.taken_bytes / since / policy.min_bytes_per_s)
        return min(shares)

    def new_tick(self) -> None:
        self.taken = self.taken_bytes = self.busy_slices = 0
        self.waited = self.pressed = False


class Surplus:
    """What all flows share beyond their reserves; without a bound until ``Balance`` sets one."""

    __slots__ = ("_bucket", "taken")

    def __init__(self) -> None:
        self._bucket: Bucket | None = None
        self.taken = 0

    @property
    def limit_iops(self) -> float | None:
        return None if self._bucket is None else self._bucket.rate

    def ask(self, cost: int, now: float) -> float:
        if self._bucket is not None:
            if wait := self._bucket.wait_s(now):
                return wait
            self._bucket.take(cost)
        self.taken += cost
        return 0.0

    def limit(self, rate: float | None, now: float) -> None:
        if rate is None:
            self._bucket = None
        elif self._bucket is None:
            self._bucket = Bucket(rate, TICK_S, now)
        else:
            self._bucket.set_rate(rate, TICK_S)


@dataclass(slots=True)
class Balance:
    """Keeps minimums by bounding the surplus; ``tick`` is called about every ``TICK_S``."""

    surplus: Surplus = field(default_factory=Surplus)
    _at: float | None = None

    def tick(self, flows: Iterable[Flow], saturated: bool, now: float) -> None:
        """Look at what the flows took since the last tick; ``saturated``: the pool could not have given more."""
        since = None if self._at is None else now - self._at
        self._at = now
        flows = list(flows)
        if since is not None and since > 0:
            short = [flow for flow in flows if self._falls_short(flow, since, saturated, now)]
            if short or not any(flow.trials for flow in flows):
                self._adjust(bool(short), since, now)
        for flow in flows:
            flow.new_tick()
        self.surplus.taken = 0

    def _falls_short(self, flow: Flow, since: float, saturated: bool, now: float) -> bool:
        if not flow.policy.has_minimum:
            return False
        share = flow.share(since)
        asking = (flow.pressed or flow.busy_slices >= _ASKING * since / SLICE_S) and not flow.waited
        bounded = self.surplus.limit_iops is not None
        short = share < _SHORT and asking and (saturated or bounded)
        if share >= 1:
            flow.content_s = _CONTENT_S
        if not short:
            flow.lapse_s += since
            if share >= _SHORT or flow.lapse_s > _LAPSE_S:
                flow.forget_trial()
            return False
        flow.lapse_s = 0.0
        if now < flow.content_until:
            return False
        flow.short_since = now if flow.short_since is None else flow.short_since
        if flow.trials == 0:
            flow.trial_share = share
        flow.trials += 1
        flow.trial_saturated += saturated
        if flow.trials > _TRIAL_TICKS:
            given_all = self._at_floor() and 2 * flow.trial_saturated > flow.trials
            if share < _BETTER * flow.trial_share and not given_all:
                flow.forget_trial()
                flow.content_until = now + flow.content_s
                flow.content_s = min(2 * flow.content_s, _MAX_CONTENT_S)
                return False
            flow.trials, flow.trial_saturated, flow.trial_share = 1, int(saturated), share
        return True

    def _at_floor(self) -> bool:
        limit = self.surplus.limit_iops
        return limit is not None and limit <= FLOOR_IOPS

    def _adjust(self, short: bool, since: float, now: float) -> None:
        taken = self.surplus.taken / since
        limit = self.surplus.limit_iops
        if short:
            base = taken if limit is None else min(limit, max(taken, FLOOR_IOPS))
            self.surplus.limit(max(FLOOR_IOPS, _CUT * base), now)
        elif limit is not None:
            grown = _GROW * limit + _STEP_IOPS
            self.surplus.limit(None if grown > 4 * taken + 20 * FLOOR_IOPS else grown, now)

    def alarms(self, flows: Iterable[Flow], now: float) -> list[str]:
        """Keys of flows whose minimum has not been held for a while, though all that is left was given to them."""
        return [flow.key for flow in flows if flow.short_since is not None and now - flow.short_since >= ALARM_AFTER_S]
