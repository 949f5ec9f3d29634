"""A live inn whose rules others take away: noticed at once and put right. Its captures and dry runs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from live_inn import SMALL, LiveInn, eventually

from innkeeper.daemon.watchman import LOOK_INTERVAL_S
from innkeeper.system.paths import Paths

pytestmark = [pytest.mark.guest, pytest.mark.root]


@pytest.fixture(scope="module")
def vm(inn: LiveInn) -> Iterator[str]:
    inn("vm", "create", "drifter", *SMALL, "--switch", "lan", "--wait", "ready")
    yield "drifter"
    inn("vm", "rm", "drifter", "--force")


def rules(inn: LiveInn, family: str) -> list[str]:
    """Its words, because the kernel lists what is in sets in any order."""
    command = ["nft", "-s", "list", "table", family, f"inn_{Paths.open(inn.state).inn_id}"]
    return sorted(subprocess.run(command, capture_output=True, text=True).stdout.replace(",", " ").split())


def test_tables_that_somebody_deletes_are_back_at_once(inn: LiveInn, vm: str) -> None:
    before = {family: rules(inn, family) for family in ("bridge", "inet")}
    for family in before:
        subprocess.run(["nft", "delete", "table", family, f"inn_{Paths.open(inn.state).inn_id}"], check=True)
        patience_s = LOOK_INTERVAL_S / 2  # sooner than the look that is taken anyway
        eventually(lambda family=family: rules(inn, family) == before[family], f"{family} rules", patience_s)
    assert "load the rules of" in (inn.state / "log" / "daemon.log").read_text()


def test_a_guest_whose_tap_somebody_deletes_goes_on(inn: LiveInn, vm: str) -> None:
    tap = inn.json("nic", "show", "drifter-0")["tap"]
    gateway = inn.json("switch", "show", "lan")["gateway_address"]
    inn.sh(vm, f"ping -c 1 -W 5 {gateway}")
    subprocess.run(["ip", "link", "del", tap], check=True)
    log = inn.state / "log" / "daemon.log"
    eventually(lambda: f"give tap {tap} back to its guest" in log.read_text(), "the tap is back", LOOK_INTERVAL_S / 2)
    eventually(
        lambda: inn.run("vm", "exec", vm, "--", "ping", "-c", "1", "-W", "2", gateway).returncode == 0, "it pings"
    )


def test_a_dry_run_of_a_card_shows_its_rules(inn: LiveInn, vm: str) -> None:
    tap = inn.json("nic", "show", "drifter-0")["tap"]
    before = rules(inn, "bridge")
    plan = inn.json("nic", "set", "drifter-0", "--no-guard", "arp", "--dry-run")
    assert f"-bridge guard_arp: {tap}" in plan["diff"].splitlines()
    assert f"change the rules of port {tap} (drifter)" in plan["steps"]
    plan = inn.json("nic", "create", vm, "--switch", "lan", "--dry-run")
    assert any(line.startswith("+bridge macs:") for line in plan["diff"].splitlines())
    plan = inn.json("nic", "rm", "drifter-0", "--dry-run")
    assert f"remove tap {tap} (drifter)" in plan["steps"]
    assert any(line.startswith("-bridge macs:") for line in plan["diff"].splitlines())
    assert rules(inn, "bridge") == before


def test_frames_of_a_guest_are_captured_and_nothing_is_left_behind(inn: LiveInn, vm: str, tmp_path: Path) -> None:
    file = tmp_path / "ping.pcap"
    gateway = inn.json("switch", "show", "lan")["gateway_address"]
    environment = {**os.environ, "INNKEEPER_STATE": str(inn.state)}
    command = [sys.executable, "-m", "innkeeper", "port", "capture", "drifter-0", "--filter", "icmp", "--seconds", "1m"]

    def sockets() -> int:
        held = Path(f"/proc/{inn.pid('daemon')}/net/packet").read_text()
        return len(held.splitlines()) - 1

    at_first = sockets()
    with subprocess.Popen([*command, "--count", "2", "--file", str(file)], env=environment) as capturing:
        eventually(lambda: sockets() > at_first, "it captures")
        inn.sh(vm, f"ping -c 1 {gateway}")
        assert capturing.wait(timeout=60) == 0
    shown = subprocess.run(["tcpdump", "-nr", str(file)], capture_output=True, text=True, check=True).stdout
    assert "ICMP echo request" in shown and "ICMP echo reply" in shown
    eventually(lambda: sockets() == at_first, "its socket is closed")
    with subprocess.Popen([*command, "--file", str(file)], env=environment) as killed:
        eventually(lambda: sockets() > at_first, "another captures")
        os.kill(killed.pid, signal.SIGKILL)
    eventually(lambda: sockets() == at_first, "nothing is left of a client that was killed")
