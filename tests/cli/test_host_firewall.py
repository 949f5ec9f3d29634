"""``inn host firewall`` through the real parser, client and API, on an in-memory house."""

from __future__ import annotations

import json
from typing import Any

import pytest
from running_api import RunningApi

from innkeeper.cli.main import run


class Shell:
    """Runs command lines in this process."""

    def __init__(self, capture: pytest.CaptureFixture[str]) -> None:
        self._capture = capture
        self.err = ""

    def __call__(self, line: str, *, code: int = 0) -> str:
        self._capture.readouterr()
        ended = run(line.split())
        out, self.err = self._capture.readouterr()
        assert ended == code, f"{line}: {ended}\n{out}{self.err}"
        return out

    def json(self, line: str) -> Any:
        return json.loads(self(f"{line} -o json"))


def test_a_firewall_is_changed_planned_and_confirmed(served: RunningApi, capsys: pytest.CaptureFixture[str]) -> None:
    inn = Shell(capsys)
    inn("host firewall set --management eth9 --allow tcp/22@192.168.7.0/24%eth0 --confirm-within 1m --no-echo")
    shown = inn.json("host firewall show")
    assert (shown["management"], shown["allow"], shown["echo"], shown["trial"]) == (
        ["eth9"],
        ["tcp/22@192.168.7.0/24%eth0"],
        False,
        None,
    )
    assert "+new" in inn("host firewall set --enabled --dry-run")
    inn("host firewall set --enabled --no-management --management eth1 --management 192.168.7.0/28%lan")
    assert inn.json("host firewall show")["trial"]["management"] == ["eth1", "192.168.7.0/28%lan"]
    assert inn.json("host firewall confirm")["enabled"] is True
    inn("host firewall set --disabled --no-management --no-allow")
    assert "dropped_packets" in inn("host firewall show")
    for wrong in ("--allow tcp/0", "--allow tcp/22@10.0.0.1/24", "--management 10.0.0.0/33", "", "--confirm-within 0s"):
        inn(f"host firewall set {wrong}", code=2)
