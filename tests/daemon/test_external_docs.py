"""The commands of docs/network.md on external switches and the host's firewall.

They are typed as they stand there, on a host of two namespaces.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from host_lab import HOST4, Host, new_host, until
from knocking import listening, reaches
from switch_lab import run_in

from innkeeper.cli import processes
from innkeeper.system.paths import Paths

pytestmark = [pytest.mark.root, pytest.mark.slow]
PAGE = (Path(__file__).parents[2] / "docs" / "network.md").read_text()
BLOCKS = dict(re.findall(r"<!-- commands: ([\w-]+) -->\n((?:    .*\n)+)", PAGE))
INN = str(Path(sys.executable).with_name("inn"))
Type = Callable[..., str]


@pytest.fixture
def host() -> Iterator[Host]:
    with new_host() as made:
        yield made


@pytest.fixture
def typed(host: Host, tmp_path: Path) -> Iterator[Type]:
    """``typed("switch", "ls")`` runs ``inn switch ls`` there and returns what it prints."""
    state = tmp_path / "state"

    def run(*words: str) -> str:
        argv = ["ip", "netns", "exec", host.namespace, INN, "--state-dir", str(state), *words]
        ran = subprocess.run(argv, env={**os.environ, "COLUMNS": "200"}, capture_output=True, text=True, check=False)
        assert ran.returncode == 0, f"{words}: {ran.stdout}{ran.stderr}"
        return ran.stdout + ran.stderr

    run("up")
    try:
        yield run
    finally:
        run("down", "--force", "--purge")


def test_the_page_says_what_works(host: Host, typed: Type) -> None:
    before = host.network()
    said = []
    for line in BLOCKS["external"].splitlines():
        inn, *words = shlex.split(line, comments=True)
        assert inn == "inn"
        said.append(typed(*words))
    assert "move address 192.0.2.10/24 from eth0 to inbr-" in said[0]
    assert "inn switch confirm lan" in said[1]
    assert "eth0" in typed("switch", "ls") and "eth0" not in host.network()
    assert host.reaches()
    typed("switch", "rm", "lan")
    assert host.network() == before and host.reaches()


def test_the_firewall_of_the_page(host: Host, typed: Type) -> None:
    said = []
    for line in BLOCKS["firewall"].splitlines():
        inn, *words = shlex.split(line, comments=True)
        assert inn == "inn"
        said.append(typed(*words))
    assert "+inet standing_allow4: 6 . 22 . 192.0.2.0/24" in said[0] and "there is no interface" in said[0]
    assert "inn host firewall confirm" in said[1]
    assert "management       eth1" in said[3]
    assert "chain host_firewall" in run_in(host.namespace, "nft", "list", "ruleset")


def test_a_killed_daemon_locks_nobody_out(host: Host, typed: Type, tmp_path: Path) -> None:
    with listening(host.namespace, socket.SOCK_STREAM, 3142) as service:

        def knock() -> bool:
            return reaches(host.world, HOST4, socket.SOCK_STREAM, 3142, service)

        typed("host", "firewall", "set", "--enabled", "--management", "eth9", "--confirm-within", "4s")
        assert "host firewall" in typed("doctor") and not knock()
        daemon = processes.noted(Paths.open(tmp_path / "state"), "daemon")
        assert daemon is not None
        os.kill(daemon, signal.SIGKILL)
        assert not knock(), "it is the kernel that judges"
        assert until(knock)
        typed("up")
        assert "not_confirmed    yes" in typed("host", "firewall", "show") and knock()
        assert "FirewallReturned" in typed("event", "ls")


def test_down_by_force_gives_the_card_back(host: Host, typed: Type, tmp_path: Path) -> None:
    before = host.network()
    typed("switch", "create", "lan", "--kind", "external", "--uplink", "eth0")
    daemon = processes.noted(Paths.open(tmp_path / "state"), "daemon")
    assert daemon is not None
    processes.end(daemon)
    typed("down", "--force")
    assert host.network() == before and host.reaches()
