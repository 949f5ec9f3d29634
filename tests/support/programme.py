"""Programmes of the durability proof (docs/durability.md): how long they are, and what they say that they did.

A programme calls ``report`` with what it counted and with the least that it had to reach: with less it fails. The lines
are gathered in the file that ``$INNKEEPER_PROOF_REPORT`` names; run as a program, this module prints them, added up
where a programme ran in parts, with the bound that no loss in n trials gives (3/n at 95 %). ``$INNKEEPER_SOAK`` asks
for the full targets.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SOAK = bool(os.environ.get("INNKEEPER_SOAK"))
_REPORT = "INNKEEPER_PROOF_REPORT"


def size(proof: int, soak: int) -> int:
    """How much of something: for ``make proof``, or for ``make soak``."""
    return soak if SOAK else proof


def report(
    row: int,
    name: str,
    *,
    seeds: str,
    trials: str,
    counts: Mapping[str, int],
    faults: Mapping[str, int] | None = None,
    least: Mapping[str, int] | None = None,
    losses: int = 0,
) -> None:
    """What a programme, or a part of one, did. ``row``: of the table in docs/durability.md; ``trials``: which of the
    counts the bound is over; ``least``: what of ``counts`` it had to reach, ``faults`` altogether under that name.
    """
    fired = dict(faults or {})
    facts = {
        "row": row,
        "name": name,
        "seeds": seeds,
        "trials": trials,
        "counts": {**counts, **({"faults": sum(fired.values())} if faults is not None else {})},
        "faults": fired,
        "losses": losses,
        "least": dict(least or {}),
    }
    print(_line(facts))
    if os.environ.get(_REPORT):
        with Path(os.environ[_REPORT]).open("a") as file:
            file.write(json.dumps(facts) + "\n")
    assert losses == 0
    assert not _short(facts), f"it did too little: {_short(facts)}"


def _short(facts: Mapping[str, Any]) -> list[str]:
    counts = facts["counts"]
    return [f"{key} {counts.get(key, 0)} < {least}" for key, least in facts["least"].items() if counts[key] < least]


def _line(facts: Mapping[str, Any]) -> str:
    counts = ", ".join(f"{count:,} {key}" for key, count in facts["counts"].items())
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in sorted(facts["faults"].items()))
    trials = facts["counts"][facts["trials"]]
    bound = f"at 95 % fewer than {3 / trials:.2g} per {facts['trials'].rstrip('s')}" if trials else "no trial"
    return (
        f"row {facts['row']}, {facts['name']}: seeds {facts['seeds']}: {counts}{f' ({kinds})' if kinds else ''};"
        f" losses {facts['losses']}: {bound}"
    )


def added(parts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One entry for each programme, its parts added up."""
    whole: dict[tuple[int, str], dict[str, Any]] = {}
    for part in parts:
        key = part["row"], part["name"]
        if key not in whole:
            whole[key] = {**part, "counts": {}, "faults": {}, "least": {}, "losses": 0}
        known = whole[key]
        known["losses"] += part["losses"]
        known["seeds"] = _joined(known["seeds"], part["seeds"])
        for table in ("counts", "faults", "least"):
            for name, count in part[table].items():
                known[table][name] = known[table].get(name, 0) + count
    return [whole[key] for key in sorted(whole)]


def _joined(one: str, other: str) -> str:
    """Ranges "3..5" and "6..9" as one."""
    if one == other:
        return one
    ends = sorted(int(end) for each in (one, other) for end in each.split(".."))
    return f"{ends[0]}..{ends[-1]}"


def main(path: str) -> int:
    """Print what ran; 1 where a programme did less than it had to."""
    file = Path(path)
    parts = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    short = 0
    for facts in added(parts):
        print(_line(facts))
        for lack in _short(facts):
            print(f"  too little: {lack}")
            short = 1
    return short


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
