"""Processes by identity, and a guest's survival of the daemon that started it."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from guest_lab import MIB, VM_ID, GuestLab

from innkeeper.compute.adoption import HeldProcess, ProcessIdentity, start_ticks
from innkeeper.compute.guest import Guest
from innkeeper.model.problems import NotFound
from innkeeper.model.resources import VmState


def sleeper() -> subprocess.Popen[bytes]:
    return subprocess.Popen(["sleep", "60"])


def test_a_child_is_held_watched_and_reaped() -> None:
    async def scene() -> None:
        child = sleeper()
        held = HeldProcess.of_child(child)
        seen: list[str] = []
        held.on_end(lambda: seen.append("ended"))
        assert not await held.wait(0.01)
        await held.fence()
        held.on_end(lambda: seen.append("again"))
        assert seen == ["ended", "again"] and held.exit_status == -signal.SIGKILL
        held.kill()
        held.release()

    asyncio.run(scene())


def test_another_start_time_is_another_process() -> None:
    async def scene() -> None:
        child = sleeper()
        ticks = start_ticks(child.pid)
        assert ticks is not None
        with pytest.raises(NotFound):
            HeldProcess(ProcessIdentity(child.pid, ticks - 1))
        held = HeldProcess(ProcessIdentity(child.pid, ticks))
        held.release()
        held.kill()
        assert child.poll() is None
        child.kill()
        child.wait()
        with pytest.raises(NotFound):
            HeldProcess(ProcessIdentity(child.pid, ticks))

    asyncio.run(scene())


def test_a_process_that_ends_at_once_is_reported() -> None:
    child = subprocess.Popen(["true"])
    while start_ticks(child.pid) is not None:
        time.sleep(0.01)

    async def scene() -> None:
        with pytest.raises(NotFound, match="at once"):
            HeldProcess.of_child(child)

    asyncio.run(scene())


OWNER = """
import asyncio, json, sys
from pathlib import Path
from innkeeper.compute import qemu
from innkeeper.compute.guest import Guest
from innkeeper.compute.inputs import MachineInputs
from innkeeper.compute.launcher import GuestPlace

async def main(run_dir, state_dir, uid, group, vm_id):
    machine = MachineInputs(vm_id, "web", qemu.installed().machine, 1, 64 * 2**20, vm_id)
    guest = await Guest.start(machine, GuestPlace(Path(run_dir), Path(state_dir), int(uid), group))
    print(json.dumps([guest.identity.pid, guest.identity.start_ticks]), flush=True)
    await asyncio.sleep(600)

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.mark.guest
@pytest.mark.root
def test_a_guest_outlives_its_daemons_process_group_and_is_adopted(lab: GuestLab) -> None:
    place = lab.place()
    arguments = [place.run_dir, place.state_dir, str(place.uid), place.cgroup, VM_ID]
    owner = subprocess.Popen([sys.executable, "-c", OWNER, *arguments], stdout=subprocess.PIPE, start_new_session=True)
    assert owner.stdout is not None
    with owner.stdout:
        pid, ticks = map(int, owner.stdout.readline().strip(b"[]\n").split(b","))
    os.killpg(owner.pid, signal.SIGKILL)
    owner.wait()
    assert start_ticks(pid) == ticks
    guest = lab.keep(lab.run(Guest.adopt(VM_ID, "web", place, ProcessIdentity(pid, ticks), lab.changes.append)))
    assert guest.state is VmState.RUNNING and guest.layout.memory_bytes == 64 * MIB
    lab.run(guest.pause())
    os.kill(pid, signal.SIGKILL)
    assert lab.run(guest.wait_ended(), 10) is VmState.CRASHED
    assert lab.changes[-1].reason == "its process ended"
    assert not Path(place.run_dir).exists()
