"""The switch that the tests of switches share, and how they look at it in the kernel."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path

from switch_lab import PATIENCE_S, Lab, run_in

from innkeeper.network.policy import PortPolicy, SwitchPolicy

SWITCH = SwitchPolicy("lan", "inbr-t3st1", kind="nat", subnet="10.66.0.0/24")
GATEWAY = "10.66.0.1"


def port_of(number: int) -> PortPolicy:
    """The port of guest ``number`` on ``SWITCH``."""
    return PortPolicy(
        f"intp-t3st{number}", f"52:54:00:00:00:0{number}", (f"10.66.0.1{number}",), hostname=f"guest{number}"
    )


def until(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def kernel_state(namespace: str) -> str:
    """Rules without counts, links with their addresses; not the macs of taps, which are random."""
    rules = run_in(namespace, "nft", "-s", "list", "ruleset")
    links = run_in(namespace, "ip", "-o", "-4", "addr", "show") + run_in(namespace, "ip", "-o", "link", "show")
    links = re.sub(r"NO-CARRIER,|,LOWER_UP| state \w+", "", links)  # the kernel follows these with a delay
    lines = [line.split(": ", 1)[1] for line in links.splitlines(keepends=True)]
    return rules + "".join(line.split("\\")[0] + "\n" if line.startswith("intp-") else line for line in lines)


def dnsmasq_pid(lab: Lab) -> int:
    return int((switch_directory(lab) / "dnsmasq.pid").read_text())


def switch_directory(lab: Lab) -> Path:
    return Path(lab.runner._directory) / SWITCH.bridge
