from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from innkeeper.network.plan import Standing, plan_change
from innkeeper.network.policy import PortPolicy, SwitchPolicy

LAN = SwitchPolicy("lan", "inbr-k3f91", subnet="10.77.0.0/24")
WEB = PortPolicy("intp-k3f91", "52:54:00:00:00:01", ("10.77.0.2",), hostname="web")
STANDING = Standing(LAN, {WEB.tap: WEB})
WHERE = (Path("/run/lan"), "nobody")


def test_nothing_to_do_is_empty() -> None:
    plan = plan_change(STANDING, STANDING, *WHERE)
    assert (plan.steps, plan.diff) == ((), "")


def test_a_new_switch() -> None:
    plan = plan_change(None, STANDING, *WHERE)
    assert plan.steps == (
        "add the rules of nat switch lan in one transaction",
        "make bridge inbr-k3f91 with the address 10.77.0.1",
        "make tap intp-k3f91 (web) in inbr-k3f91",
        "start DHCP and DNS on 10.77.0.1",
        "let the host forward IPv4 (net.ipv4.ip_forward)",
    )
    assert "+bridge arp4: intp-k3f91 . 52:54:00:00:00:01 . 10.77.0.2" in plan.diff.splitlines()
    assert "+52:54:00:00:00:01,10.77.0.2,web" in plan.diff.splitlines()


def test_a_guard_is_one_line() -> None:
    open_port = replace(WEB, guards=replace(WEB.guards, dhcp=False))
    plan = plan_change(STANDING, Standing(LAN, {WEB.tap: open_port}), *WHERE)
    assert plan.steps == ("change the rules of port intp-k3f91 (web)",)
    changed = [line for line in plan.diff.splitlines() if line[0] in "+-" and line[:3] not in ("+++", "---")]
    assert changed == ["-bridge guard_dhcp: intp-k3f91"]


def test_a_removal_takes_everything() -> None:
    plan = plan_change(STANDING, None, *WHERE)
    assert plan.steps == (
        "remove tap intp-k3f91 (web)",
        "stop DHCP and DNS of switch lan",
        "remove bridge inbr-k3f91",
        "take its rules out in one transaction",
    )
    added = [line for line in plan.diff.splitlines() if line.startswith("+") and not line.startswith("+++")]
    assert added == []
