"""Storage that goes away, fills up and comes back under a running guest; nics that come and go; a lost monitor."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from guest_lab import DATA_DISK, MIB, Golden, GuestLab

from innkeeper.compute import devices
from innkeeper.compute.guest import Guest
from innkeeper.compute.inputs import NIC_PORTS, NicInput
from innkeeper.compute.memory import MemoryImage
from innkeeper.model.problems import Conflict, Unavailable
from innkeeper.model.resources import VmState

pytestmark = [pytest.mark.guest, pytest.mark.root]

NIC = "bbbbbbbb-0000-4000-8000-000000000001"
MAC = "52:54:00:12:34:56"


def until(condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.02)


def write_beside(lab: GuestLab, guest: Guest, size_mib: int) -> None:
    """Start writing to the second disk in the guest; the end leaves its status in /run/written."""
    command = f"dd if=/dev/urandom of=/dev/vdb bs=1M count={size_mib} conv=fsync; echo $? > /run/written"
    lab.sh(guest, f"while ! [ -b /dev/vdb ]; do sleep 0.05; done; ({command}) >/dev/null 2>&1 &")


def test_a_full_disk_pauses_the_guest_until_there_is_space(lab: GuestLab, golden: Golden) -> None:
    guest = golden.restore(lab)
    small = lab.base / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "none", small], check=True)
    try:
        (small / "disk.raw").touch()
        os.truncate(small / "disk.raw", 32 * MIB)
        lab.run(guest.attach_disk(DATA_DISK, lab.serve(small / "disk.raw").source))
        write_beside(lab, guest, 16)
        until(lambda: guest.state is VmState.PAUSED)
        assert guest.reason == "no space"
        with pytest.raises(Unavailable) as refused:
            lab.run(guest.save(MemoryImage(lab.base / "saved")))
        assert refused.value.code == "vm.storage_away"
        subprocess.run(["mount", "-o", "remount,size=64m", small], check=True)
        until(lambda: guest.state is VmState.RUNNING and guest.reason == "")
        assert lab.sh(guest, "while ! [ -s /run/written ]; do sleep 0.1; done; cat /run/written") == "0"
        lab.run(guest.poweroff())
    finally:
        lab.exports[-1].kill()
        subprocess.run(["umount", small], check=True)


@pytest.mark.slow
def test_a_guest_goes_on_after_an_outage_longer_than_the_delay(
    lab: GuestLab, golden: Golden, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "RECONNECT_DELAY_S", 3)
    guest = golden.restore(lab)
    data = lab.empty_disk()
    lab.run(guest.attach_disk(DATA_DISK, data.source))
    data.kill()
    write_beside(lab, guest, 8)
    until(lambda: guest.state is VmState.PAUSED and guest.reason == "storage")
    time.sleep(2)
    data.start()
    until(lambda: guest.state is VmState.RUNNING and guest.reason == "")
    assert lab.sh(guest, "while ! [ -s /run/written ]; do sleep 0.1; done; cat /run/written") == "0"


@pytest.fixture
def tap() -> Iterator[str]:
    name = f"inntest{os.getpid() % 100000}"
    subprocess.run(["ip", "tuntap", "add", name, "mode", "tap"], check=True)
    subprocess.run(["ip", "link", "set", name, "up"], check=True)
    yield name
    subprocess.run(["ip", "link", "del", name], check=True)


def test_a_nic_comes_and_goes_and_stays_over_save_and_restore(lab: GuestLab, golden: Golden, tap: str) -> None:
    guest = golden.restore(lab)
    lab.run(guest.attach_nic(NIC, MAC, tap))
    with pytest.raises(Conflict):
        lab.run(guest.attach_nic(NIC, MAC, tap))
    assert lab.sh(guest, "for i in 1 2 3 4 5 6 7 8; do cat /sys/class/net/e*/address && break; sleep 0.2; done") == MAC
    image = MemoryImage(lab.base / "saved")
    lab.run(guest.save(image))
    nics = (NicInput(NIC, MAC, tap, NIC_PORTS[0]),)
    guest = lab.restore(lab.machine(lab.exports[0], nics=nics), image)
    lab.run(guest.agent.ready(30))
    assert MAC in [interface.mac for interface in lab.run(guest.agent.interfaces())]
    lab.run(guest.detach_nic(NIC))
    assert MAC not in [interface.mac for interface in lab.run(guest.agent.interfaces())]
    lab.run(guest.attach_nic(NIC, MAC, tap))
    lab.run(guest.poweroff())


def test_a_tap_that_is_not_there_is_not_made(lab: GuestLab, golden: Golden) -> None:
    guest = golden.restore(lab)
    with pytest.raises(Unavailable) as missing:
        lab.run(guest.attach_nic(NIC, MAC, "intp-none0"))
    assert missing.value.code == "vm.no_tap" and not Path("/sys/class/net/intp-none0").exists()


def test_the_monitor_comes_back_after_its_connection_was_lost(lab: GuestLab, golden: Golden) -> None:
    guest = golden.restore(lab)

    connection = guest.monitor._socket
    assert connection is not None
    connection.shutdown(socket.SHUT_RDWR)
    until(lambda: guest.monitor._socket is not connection and guest.monitor._connected.is_set())
    lab.run(guest.pause())
    lab.run(guest.resume())
    assert lab.sh(guest, "echo fine") == "fine"


def test_commands_that_hang_have_an_end_and_late_answers_do_no_harm(lab: GuestLab, golden: Golden) -> None:
    guest = golden.restore(lab)
    os.kill(guest.identity.pid, 19)
    with pytest.raises(Unavailable) as hung:
        lab.run(guest.monitor.execute("query-status", timeout_s=0.2))
    assert hung.value.code == "vm.monitor_hung" and hung.value.remedy
    os.kill(guest.identity.pid, 18)
    assert lab.run(guest.monitor.execute("query-status"))["status"] == "running"


def test_the_real_agent_thaws_when_the_task_is_cancelled(lab: GuestLab, golden: Golden) -> None:
    guest = golden.restore(lab)

    async def scene() -> None:
        async def hold() -> None:
            async with guest.agent.frozen_file_systems():
                await asyncio.sleep(60)

        task = asyncio.create_task(hold())
        while not (guest.agent.frozen and await guest.agent.is_frozen()):
            await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert not await guest.agent.is_frozen()

    lab.run(scene())
    assert lab.sh(guest, "echo written > /after; sync; cat /after") == "written"


def test_an_agent_that_hangs_is_named(lab: GuestLab, golden: Golden) -> None:
    guest = golden.restore(lab)
    freeze_it = "pid=$(pidof qemu-ga); (sleep 0.3; kill -STOP $pid) >/dev/null 2>&1 &"
    lab.sh(guest, freeze_it)
    time.sleep(2)
    with pytest.raises(Unavailable) as absent:
        lab.run(guest.agent.ready(2))
    assert absent.value.code == "agent.timeout"
