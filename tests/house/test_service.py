"""The systemd units: written with this clone's paths, and accepted by systemd's own check where that is installed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def _service(verb: str, units: Path, state: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [ROOT / "scripts/service", verb, state],
        env={**os.environ, "INNKEEPER_UNIT_DIR": str(units)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.root
def test_units_are_written_and_removed(tmp_path: Path) -> None:
    units = tmp_path / "units"
    installed = _service("install", units, tmp_path / "state")
    assert installed.returncode == 0, installed.stderr
    texts = {unit.name: unit.read_text() for unit in units.iterdir()}
    assert set(texts) == {"innkeeper.service", "innkeeper-watch.service", "innkeeper-watch.timer"}
    for text in texts.values():
        assert "@" not in re.sub(r"(?m)^#.*$", "", text)
    service = texts["innkeeper.service"]
    assert f"ExecStart={ROOT}/.venv/bin/inn --state-dir {tmp_path}/state up\n" in service
    assert "KillMode=process\n" in service
    if shutil.which("systemd-analyze"):
        command = ["systemd-analyze", "verify", "--man=no", *sorted(units.iterdir())]
        checked = subprocess.run(command, capture_output=True, text=True, check=False)
        assert not [line for line in checked.stderr.splitlines() if str(units) in line]
    assert _service("remove", units, tmp_path / "state").returncode == 0
    assert not list(units.iterdir())


@pytest.mark.root
def test_a_path_that_a_unit_cannot_hold_is_refused(tmp_path: Path) -> None:
    refused = _service("install", tmp_path / "units", tmp_path / "my state")
    assert refused.returncode == 1
    assert "cannot hold" in refused.stderr
    assert "remedy:" in refused.stderr
    assert not (tmp_path / "units").exists()
