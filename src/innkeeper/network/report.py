"""What a repair of the switches did and found."""

from __future__ import annotations

from dataclasses import dataclass, field

from innkeeper.model.problems import Problem


@dataclass(slots=True)
class Report:
    """What ``Kernel.repair`` did, in sentences, and what it could not do: switch name -> problem.

    ``new_taps`` had to be made since the last report: whoever had one open before has lost it.
    """

    done: list[str] = field(default_factory=list)
    problems: dict[str, Problem] = field(default_factory=dict)
    new_taps: list[str] = field(default_factory=list)
