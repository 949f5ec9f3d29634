"""The life cycle of a real guest, its disks served by qemu-nbd."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from guest_lab import DATA_DISK, MIB, UID, VM_ID, Golden, GuestLab
from probe import copy_probe

from innkeeper.compute.adoption import ProcessIdentity, start_ticks
from innkeeper.compute.guest import Guest, fence_process
from innkeeper.compute.inputs import DISK_PORTS, DiskInput
from innkeeper.compute.memory import MemoryImage
from innkeeper.model.problems import Conflict, Failed, NotFound, Problem
from innkeeper.model.resources import VmState

pytestmark = [pytest.mark.guest, pytest.mark.root]


@pytest.mark.smoke
def test_boots_answers_and_shuts_down_leaving_nothing(lab: GuestLab, probe_image: Path) -> None:
    guest = lab.start(lab.machine(lab.serve(copy_probe(probe_image, lab.base / "root.raw"))))
    lab.run(guest.agent.ready(90))
    result = lab.run(guest.agent.exec(["sh", "-c", "cat; echo bad >&2; exit 3"], stdin=b"in\n"))
    assert (result.status, result.stdout, result.stderr, result.truncated) == (3, b"in\n", b"bad\n", False)
    lab.run(guest.shutdown(60))
    assert lab.run(guest.wait_ended()) is VmState.STOPPED
    assert not guest.place.run_dir.exists()
    assert start_ticks(guest.identity.pid) is None
    states = [change.state for change in lab.changes]
    assert states[0] is VmState.RUNNING and states[-1] is VmState.STOPPED and VmState.STOPPING in states


def test_runs_unprivileged_and_confined(lab: GuestLab, golden: Golden) -> None:
    guest = golden.restore(lab)
    lines = Path(f"/proc/{guest.identity.pid}/status").read_text().splitlines()
    status = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
    assert status["Uid"].split() == [str(UID)] * 4 and status["Gid"].split() == [str(UID)] * 4
    assert status["Groups"].strip() == ""
    assert status["Seccomp"] == "2" and status["NoNewPrivs"] == "1"
    for held in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(status[held], 16) == 0
    assert os.getsid(guest.identity.pid) == guest.identity.pid
    directory = guest.place.run_dir.stat()
    assert (directory.st_uid, directory.st_mode & 0o777) == (0, 0o700)
    assert guest.place.monitor_socket.stat().st_mode & 0o777 == 0o600
    assert guest.place.cgroup in Path(f"/proc/{guest.identity.pid}/cgroup").read_text()
    for descriptor in Path(f"/proc/{guest.identity.pid}/fd").iterdir():
        target = str(descriptor.readlink())
        assert "inn-lab" not in target or target.endswith("qemu.log"), f"inherited {target}"


def test_pause_resume_and_reset(lab: GuestLab, golden: Golden) -> None:
    guest = golden.restore(lab)
    lab.run(guest.pause())
    assert guest.state is VmState.PAUSED
    with pytest.raises(Conflict) as refused:
        lab.run(guest.pause())
    assert refused.value.code == "vm.state"
    lab.run(guest.resume())
    boot = lab.sh(guest, "cat /proc/sys/kernel/random/boot_id")
    lab.run(guest.reset())
    lab.run(guest.agent.ready(90))
    assert lab.sh(guest, "cat /proc/sys/kernel/random/boot_id") != boot


def test_disks_come_and_go_while_it_runs_and_stay_over_save_and_restore(lab: GuestLab, golden: Golden) -> None:
    guest = golden.restore(lab)
    data = lab.empty_disk()
    lab.run(guest.attach_disk(DATA_DISK, data.source))
    with pytest.raises(Conflict, match="already"):
        lab.run(guest.attach_disk(DATA_DISK, data.source))
    lab.sh(guest, "while ! [ -b /dev/vdb ]; do sleep 0.05; done; echo stays > /dev/vdb; sync; echo here > /run/mark")
    assert lab.sh(guest, "cat /sys/block/vdb/serial") == DATA_DISK.replace("-", "")[:20]

    image = MemoryImage(lab.base / "saved")
    lab.run(guest.save(image))
    assert guest.state is VmState.SAVED and guest.gone and image.exists()
    root = lab.exports[0]
    with pytest.raises(Conflict) as mismatch:
        lab.restore(lab.machine(root), image)
    assert mismatch.value.code == "memory.mismatch"
    disks = (*lab.machine(root).disks, DiskInput(DATA_DISK, data.source, image.layout().disks[DATA_DISK]))
    guest = lab.restore(lab.machine(root, disks=disks), image)
    lab.run(guest.agent.ready(30))
    assert lab.sh(guest, "cat /run/mark; head -c5 /dev/vdb").split() == ["here", "stays"]

    lab.run(guest.detach_disk(DATA_DISK))
    assert lab.sh(guest, "ls /sys/block | grep -c vdb || true") == "0"
    assert data.file.read_bytes()[:5] == b"stays"
    lab.run(guest.detach_disk(DATA_DISK))
    lab.run(guest.attach_disk(DATA_DISK, data.source))


def test_a_busy_disk_is_kept_when_the_guest_does_not_give_it_up(lab: GuestLab, golden: Golden) -> None:
    guest = golden.restore(lab)
    data = lab.empty_disk()
    lab.run(guest.attach_disk(DATA_DISK, data.source))
    lab.run(guest.pause())
    lab.run(guest.resume())
    lab.run(guest.monitor.execute("stop"))
    with pytest.raises(Conflict) as busy:
        lab.run(guest.detach_disk(DATA_DISK, 0.5))
    assert busy.value.code == "disk.busy" and DATA_DISK in guest.layout.disks
    lab.run(guest.monitor.execute("cont"))
    lab.run(guest.detach_disk(DATA_DISK))


def test_attaching_what_nobody_serves_leaves_nothing(lab: GuestLab, golden: Golden) -> None:
    guest = golden.restore(lab)
    data = lab.empty_disk()
    with pytest.raises(Failed):
        lab.run(guest.attach_disk(DATA_DISK, replace(data.source, export="no-such-export")))
    lab.run(guest.attach_disk(DATA_DISK, data.source))


def test_capture_is_memory_and_disk_of_one_instant(lab: GuestLab, golden: Golden) -> None:
    guest = golden.restore(lab)
    root, image = lab.exports[0], MemoryImage(lab.base / "captured")
    lab.sh(guest, "echo one > /run/memory; echo one > /disk; sync")

    async def at_instant() -> None:
        status = await guest.monitor.execute("query-status")
        assert status["running"] is False
        await asyncio.to_thread(copy_probe, root.file, lab.base / "then.raw")

    lab.run(guest.capture(image, at_instant))
    assert guest.state is VmState.RUNNING
    assert lab.sh(guest, "echo two > /run/memory; echo two > /disk; sync; cat /disk") == "two"
    lab.run(guest.poweroff())
    then = lab.serve(lab.base / "then.raw")
    machine = lab.machine(then, generation_id="99999999-0000-4000-8000-000000000001")
    guest = lab.restore(machine, image)
    lab.run(guest.agent.ready(30))
    assert lab.sh(guest, "cat /run/memory /disk").split() == ["one", "one"]


def test_a_failed_capture_leaves_the_guest_running_and_no_image(lab: GuestLab, golden: Golden) -> None:
    guest = golden.restore(lab)
    image = MemoryImage(lab.base / "captured")

    async def at_instant() -> None:
        raise Failed("test.no", "no snapshot today")

    with pytest.raises(Failed, match="no snapshot"):
        lab.run(guest.capture(image, at_instant))
    assert guest.state is VmState.RUNNING and not image.exists() and not image.stream.exists()
    assert lab.sh(guest, "echo fine") == "fine"


def test_a_paused_guest_can_be_captured_twice(lab: GuestLab, golden: Golden) -> None:
    guest = golden.restore(lab)
    lab.run(guest.pause())
    for number in range(2):
        lab.run(guest.capture(MemoryImage(lab.base / f"m{number}"), _nothing))
        assert guest.state is VmState.PAUSED
    lab.run(guest.resume())
    assert lab.sh(guest, "echo fine") == "fine"


async def _nothing() -> None:
    """No storage here."""


def test_a_killed_process_is_noticed_as_a_crash(lab: GuestLab, golden: Golden) -> None:
    guest = golden.restore(lab)
    os.kill(guest.identity.pid, signal.SIGKILL)
    assert lab.run(guest.wait_ended(), 10) is VmState.CRASHED
    assert lab.changes[-1].reason == "its process was killed by signal 9"
    assert not guest.place.run_dir.exists()


def test_a_panic_is_a_crash_that_reset_ends(lab: GuestLab, golden: Golden) -> None:
    guest = golden.restore(lab)
    lab.run(guest.agent.exec(["sh", "-c", "(sleep 0.3; echo c > /proc/sysrq-trigger) >/dev/null 2>&1 &"]))
    _until(lambda: guest.state is VmState.CRASHED)
    assert guest.reason == "panic"
    lab.run(guest.reset())
    lab.run(guest.agent.ready(90))


def _until(condition: Callable[[], bool], timeout_s: float = 30.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.02)


def test_a_reboot_from_inside_is_no_end(lab: GuestLab, golden: Golden) -> None:
    guest = golden.restore(lab)
    boot = lab.sh(guest, "cat /proc/sys/kernel/random/boot_id")
    lab.run(guest.agent.exec(["sh", "-c", "(sleep 0.2; reboot -f) >/dev/null 2>&1 &"]))
    _until(lambda: not guest.agent.present)
    lab.run(guest.agent.ready(90))
    assert lab.sh(guest, "cat /proc/sys/kernel/random/boot_id") != boot
    assert guest.state is VmState.RUNNING


def test_poweroff_ends_a_guest_whose_storage_hangs(lab: GuestLab, golden: Golden) -> None:
    guest = golden.restore(lab)
    writing = "(sleep 0.2; dd if=/dev/zero of=/written bs=1M count=1; sync) >/dev/null 2>&1 &"
    lab.run(guest.agent.exec(["sh", "-c", writing]))
    os.kill(lab.exports[0].process.pid, signal.SIGSTOP)
    lab.run(asyncio.sleep(1.0))
    lab.run(guest.poweroff(), 60)
    assert guest.state is VmState.STOPPED
    os.kill(lab.exports[0].process.pid, signal.SIGCONT)


def test_storage_that_comes_back_within_the_delay_is_not_noticed(lab: GuestLab, golden: Golden) -> None:
    guest = golden.restore(lab)
    root = lab.exports[0]
    root.kill()
    root.start()
    assert lab.sh(guest, "echo written > /after; sync; cat /after", timeout_s=60.0) == "written"
    assert all(change.state is VmState.RUNNING for change in lab.changes)


def test_another_daemon_adopts_it(lab: GuestLab, golden: Golden) -> None:
    guest = golden.restore(lab)
    identity, place = guest.identity, guest.place
    lab.run(guest.agent.freeze())
    lab.run(guest.release())
    lab.guests.clear()
    stranger = ProcessIdentity(identity.pid, identity.start_ticks + 1)
    with pytest.raises(NotFound) as gone:
        lab.run(Guest.adopt(VM_ID, "web", place, stranger))
    assert gone.value.code == "vm.process_gone"
    with pytest.raises(Failed) as other:
        lab.run(Guest.adopt(DATA_DISK, "web", place, identity))
    assert other.value.code == "vm.stranger"
    adopted = lab.keep(lab.run(Guest.adopt(VM_ID, "web", place, identity, lab.changes.append)))
    assert adopted.state is VmState.RUNNING and adopted.layout == guest.layout
    lab.run(adopted.agent.ready(10))
    assert lab.sh(adopted, "echo written > /after; sync; cat /after") == "written", "left frozen"
    lab.run(adopted.poweroff())


def test_what_cannot_be_adopted_can_be_fenced(lab: GuestLab, golden: Golden) -> None:
    guest = golden.restore(lab)
    identity, place = guest.identity, guest.place
    lab.run(guest.release())
    lab.run(fence_process(identity, place))
    lab.run(fence_process(identity, place))
    assert start_ticks(identity.pid) is None and not place.run_dir.exists()
    lab.guests.clear()


def test_a_start_that_fails_says_why_and_leaves_nothing(lab: GuestLab, golden: Golden) -> None:
    data = lab.empty_disk(4096)
    broken = replace(data.source, export="no-such-export")
    with pytest.raises(Problem) as failed:
        lab.start(lab.machine(data, disks=(DiskInput(DATA_DISK, broken, DISK_PORTS[0], 1),)))
    assert failed.value.code == "vm.start_failed"
    assert "no-such-export" in (failed.value.cause or "")
    assert not lab.place().run_dir.exists()


def test_a_damaged_memory_image_is_refused_and_the_process_gone(lab: GuestLab, golden: Golden) -> None:
    image = MemoryImage(lab.base / "broken")
    image.directory.mkdir()
    content = bytearray(golden.image.stream.read_bytes())
    content[0:4] = b"bad!"
    image.stream.write_bytes(content)
    (image.directory / "machine.json").write_text((golden.image.directory / "machine.json").read_text())
    root = lab.serve(copy_probe(golden.disk, lab.base / "root.raw"))
    with pytest.raises(Problem) as failed:
        lab.restore(lab.machine(root), image)
    assert failed.value.code in ("memory.failed", "vm.start_failed")
    assert not lab.place().run_dir.exists()


def test_no_space_for_memory_leaves_the_guest_running(lab: GuestLab, golden: Golden) -> None:
    guest = golden.restore(lab)
    small = lab.base / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "none", small], check=True)
    try:
        with pytest.raises(Problem) as full:
            lab.run(guest.save(MemoryImage(small / "image")))
        assert full.value.code == "memory.no_space"
    finally:
        subprocess.run(["umount", small], check=True)
    assert guest.state is VmState.RUNNING
    assert lab.sh(guest, "echo fine") == "fine"


def test_memory_is_limited_by_a_control_group(lab: GuestLab, golden: Golden) -> None:
    guest = golden.restore(lab)
    roots = [Path("/sys/fs/cgroup"), *Path("/sys/fs/cgroup").iterdir()]
    limits = [root / guest.place.cgroup / name for root in roots for name in ("memory.max", "memory.limit_in_bytes")]
    found = [int(path.read_text()) for path in limits if path.exists()]
    assert found == [(192 + 1024) * MIB]
