"""Programme 4: the real processes die under writers that stamp every block, at any moment of whatever they are about.

After the death of the process every block has its last acknowledged value; after a power cut the one last flushed or
one sent since; snapshots are cuts through the order of acknowledgements; what was seen once never changes by itself.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from fabric_process import FabricProcess, fabric_process
from power import mains
from programme import report, size
from seeds import chosen_seed
from writers import Scene

MIB = 1 << 20
WORKS = ("drain", "sweep", "recode", "snapshot")


def whole(fabric: FabricProcess) -> bool:
    return not fabric.ask("check")["problems"]


def kills(state: Path, seed: int, rounds: int, *, writers: int, size_bytes: int) -> Scene:
    with fabric_process(state, hasty=True) as fabric:
        scene = Scene(fabric, seed, writers=writers, size_bytes=size_bytes)
        try:
            for _ in range(rounds):
                scene.round()
        finally:
            scene.end()
        assert whole(fabric)
    return scene


def cuts(directory: Path, seed: int, rounds: int, *, writers: int, size_bytes: int) -> Scene:
    with mains(directory, 3072 * MIB) as medium, fabric_process(medium.path / "inn", hasty=True) as fabric:
        scene = Scene(fabric, seed, writers=writers, size_bytes=size_bytes, mains=medium)
        try:
            for _ in range(rounds):
                scene.round(power=True)
        finally:
            scene.end()
        assert whole(fabric)
    return scene


def told(scene: Scene, name: str, deaths: str, rounds: int, **least: int) -> None:
    """Report what was done; a quarter of the deaths must have interrupted one of the works."""
    interrupted = sum(scene.faults[f"during {work}"] for work in WORKS)
    assert interrupted >= rounds // 4, scene.faults
    for work in WORKS:
        assert scene.faults[f"during {work}"] + scene.faults[f"just after {work}"] >= rounds // 10, scene.faults
    least = {deaths: rounds, "writes acknowledged": rounds * 3 * 50, "blocks checked": rounds * 1000, **least}
    report(4, name, seeds=str(scene.seed), trials=deaths, counts=scene.done, faults=scene.faults, least=least)


def test_acknowledged_writes_survive_sigkill(tmp_path: Path) -> None:
    scene = kills(tmp_path / "inn", 7, 5, writers=1, size_bytes=8 * MIB)
    assert scene.done["writes acknowledged"] >= 5 * 50
    assert scene.done["snapshots checked"]


@pytest.mark.root
def test_flushed_writes_survive_a_power_cut(tmp_path: Path) -> None:
    scene = cuts(tmp_path, 8, 5, writers=1, size_bytes=8 * MIB)
    assert scene.done["flushes"] >= 5
    assert scene.done["snapshots checked"]


@pytest.mark.slow
@pytest.mark.programme
def test_many_kills(tmp_path: Path) -> None:
    rounds = size(60, 200)
    scene = kills(tmp_path / "inn", chosen_seed(), rounds, writers=3, size_bytes=16 * MIB)
    told(scene, "SIGKILL of the fabric under writers", "kills", rounds)


@pytest.mark.slow
@pytest.mark.programme
@pytest.mark.root
def test_many_power_cuts(tmp_path: Path) -> None:
    rounds = size(20, 100)
    scene = cuts(tmp_path, chosen_seed(), rounds, writers=3, size_bytes=16 * MIB)
    told(scene, "power cuts under writers", "power cuts", rounds, flushes=rounds * 3)
