"""Which restore points to keep: pure decisions.

The rules count as Proxmox Backup Server's do: last, hourly, daily, weekly, monthly, yearly in this order; each rule
considers only periods that no earlier rule covers, and periods without a point do not count. ``within`` keeps what is
younger.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from datetime import datetime, timedelta, tzinfo
from typing import NamedTuple

from innkeeper.model.problems import Invalid

FUTURE_TOLERANCE = timedelta(minutes=10)


class Dated(NamedTuple):
    """A restore point as retention sees it. ``taken_at`` is aware."""

    id: str
    taken_at: datetime


@dataclass(frozen=True, slots=True)
class Policy:
    """How many points to keep by each rule (0: the rule does not apply), and how long at least."""

    last: int = 0
    hourly: int = 0
    daily: int = 0
    weekly: int = 0
    monthly: int = 0
    yearly: int = 0
    within: timedelta | None = None

    def check(self) -> Policy:
        """This policy when it says anything. Raises ``Invalid`` (``retention.invalid``)."""
        counts = [getattr(self, rule.name) for rule in fields(self) if rule.name != "within"]
        if any(count < 0 for count in counts) or (self.within is not None and self.within <= timedelta(0)):
            raise Invalid("retention.invalid", "a retention rule is negative", remedy="give whole positive numbers")
        if not any(counts) and self.within is None:
            raise Invalid(
                "retention.invalid",
                "the retention policy has no rule",
                cause="without a rule every restore point would be removed",
                remedy="give at least one, such as 'keep the last 7' or 'keep 30 days'",
            )
        return self


class Verdict(NamedTuple):
    """What happens to a point and why."""

    id: str
    taken_at: datetime
    keep: bool
    reason: str


class Selection(NamedTuple):
    """All verdicts, newest first."""

    verdicts: list[Verdict]

    @property
    def keep(self) -> list[str]:
        return [verdict.id for verdict in self.verdicts if verdict.keep]

    @property
    def remove(self) -> list[str]:
        return [verdict.id for verdict in self.verdicts if not verdict.keep]


_PERIODS: Sequence[tuple[str, Callable[[datetime], tuple[int, ...]]]] = (
    ("hourly", lambda at: (at.year, at.month, at.day, at.hour)),
    ("daily", lambda at: (at.year, at.month, at.day)),
    ("weekly", lambda at: tuple(at.isocalendar()[:2])),
    ("monthly", lambda at: (at.year, at.month)),
    ("yearly", lambda at: (at.year,)),
)


def select(points: Iterable[Dated], policy: Policy, now: datetime) -> Selection:
    """What to keep and what to remove of one vm's points at the moment ``now``; periods are of ``now``'s time zone.

    Two safeguards: the newest point is always kept, and a point dated in the future is neither removed nor counted,
    so that a wrong clock, or someone who adds points, cannot push good ones out. Raises ``Invalid``
    (``retention.invalid``).
    """
    policy.check()
    ordered = sorted(points, key=lambda point: (point.taken_at, point.id), reverse=True)
    reasons: dict[str, str] = {
        point.id: "dated in the future: left alone" for point in ordered if point.taken_at > now + FUTURE_TOLERANCE
    }
    present = [point for point in ordered if point.id not in reasons]
    for place, point in enumerate(present[: policy.last], 1):
        reasons[point.id] = f"last {place} of {policy.last}"
    for rule, period_of in _PERIODS:
        _keep_periods(present, reasons, rule, getattr(policy, rule), period_of, now.tzinfo)
    for point in present:
        if policy.within is not None and now - point.taken_at <= policy.within:
            reasons.setdefault(point.id, f"younger than {policy.within}")
    if present:
        reasons.setdefault(present[0].id, "the newest is always kept")
    return Selection(
        [
            Verdict(point.id, point.taken_at, point.id in reasons, reasons.get(point.id, "no rule keeps it"))
            for point in ordered
        ]
    )


def _keep_periods(
    present: Sequence[Dated],
    reasons: dict[str, str],
    rule: str,
    count: int,
    period_of: Callable[[datetime], tuple[int, ...]],
    zone: tzinfo | None,
) -> None:
    """Keep the newest point of each of the ``count`` newest periods that hold no point kept by an earlier rule."""
    covered = {period_of(point.taken_at.astimezone(zone)) for point in present if point.id in reasons}
    taken: set[tuple[int, ...]] = set()
    for point in present:
        period = period_of(point.taken_at.astimezone(zone))
        if len(taken) >= count:
            return
        if period in covered or period in taken or point.id in reasons:
            continue
        taken.add(period)
        reasons[point.id] = f"{rule} {len(taken)} of {count}"
