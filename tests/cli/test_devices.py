"""The shell completes the host's cards."""

from __future__ import annotations

from pathlib import Path

import click
import pytest

from innkeeper.cli import devices
from innkeeper.cli.main import inn


@pytest.mark.parametrize(
    ("begun", "offered"),
    [
        ("", ["eth0", "eth1", "wlan0"]),
        ("eth", ["eth0", "eth1"]),
        ("eth0,", ["eth0,eth1", "eth0,wlan0"]),
        ("eth0,e", ["eth0,eth1"]),
        ("x", []),
    ],
)
def test_cards_are_offered_and_devices_of_inns_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, begun: str, offered: list[str]
) -> None:
    for name in ("lo", "eth0", "eth1", "wlan0", "inbr-k3f91", "intp-k3f91", "inif-k3f91", "inbd-k3f91", "inup-k3f91"):
        (tmp_path / name).touch()
    monkeypatch.setattr(devices, "_SHOWN", tmp_path)
    context = click.Context(inn)
    option = click.Option(["--uplink"], type=devices.CARDS)
    assert [item.value for item in option.shell_complete(context, begun)] == offered
