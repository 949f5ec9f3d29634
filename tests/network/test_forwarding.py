"""The host forwards IPv6, and interfaces that come and go meanwhile do not matter."""

from __future__ import annotations

from pathlib import Path

import pytest

from innkeeper.network import forwarding


def test_an_interface_that_goes_meanwhile_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, believes in (("all", "0"), ("eth0", "1"), ("gone", None), ("still", "0")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "forwarding").write_text("0\n")
        if believes is not None:
            (tmp_path / name / "accept_ra").write_text(f"{believes}\n")
    written: list[str] = []
    monkeypatch.setattr(forwarding, "_INTERFACES", tmp_path)
    monkeypatch.setattr(forwarding, "write_sysctl", lambda key, value, **_: written.append(f"{key}={value}"))
    assert len(forwarding.forward_ipv6()) == 2
    assert written == ["net/ipv6/conf/eth0/accept_ra=2", "net/ipv6/conf/all/forwarding=1"]
