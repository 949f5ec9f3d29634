"""All attacks and all honest traffic again and again, in any order, from any guest to any other."""

from __future__ import annotations

import random

import pytest
from attacks import ATTACKS, HONEST, KERNEL, SWITCH, port
from programme import report, size
from switch_lab import Lab, new_lab

from innkeeper.model.guards import GUARD_NAMES

pytestmark = [pytest.mark.root, pytest.mark.slow]

LEAST_CLASSES = 60


def _round(lab: Lab, chance: random.Random, done: dict[str, int]) -> None:
    steps = [*((name, True) for name in ATTACKS), *((name, False) for name in HONEST)]
    chance.shuffle(steps)
    for name, attacks in steps:
        a, v, t = chance.sample(list(lab.guests.values()), 3)
        made = (ATTACKS[name][1] if attacks else HONEST[name])(a, v, t)
        sent = made if isinstance(made, list) else [made]
        for sender, receiver in ((v, t), (t, v), (a, t)):
            lab.deliver(sender, receiver)
        forwarding, before = lab.forwarding(), lab.dropped(a)
        arrived = [frame.rstrip(b"\0") for frame in lab.deliver(a, v, *sent)]
        dropped = {guard: count - before[guard] for guard, count in lab.dropped(a).items()}
        if attacks:
            assert arrived == [], name
            assert lab.forwarding() == forwarding, name
            assert sum(dropped.values()) == (0 if ATTACKS[name][0] == KERNEL else len(sent)), (name, dropped)
        else:
            assert arrived == [frame.rstrip(b"\0") for frame in sent], name
            assert not any(dropped.values()), (name, dropped)
        done["attacks" if attacks else "honest"] += 1
        done["frames"] += len(sent)


def test_no_attack_arrives_in_any_order() -> None:
    seed = random.SystemRandom().randrange(1 << 32)
    chance, rounds = random.Random(seed), size(10, 200)
    done = {"attack classes": len(ATTACKS), "honest classes": len(HONEST), "attacks": 0, "honest": 0, "frames": 0}
    assert {guard for guard, _ in ATTACKS.values()} >= {*GUARD_NAMES} - {"storm"}
    with new_lab(SWITCH) as lab:
        for number in (1, 2, 3):
            lab.plug(port(number))
        for _ in range(rounds):
            _round(lab, chance, done)
    least = {"attack classes": LEAST_CLASSES, "attacks": LEAST_CLASSES * rounds, "honest": 20 * rounds}
    report(10, "attacks on the guards", seeds=str(seed), trials="attacks", counts=done, least=least)
