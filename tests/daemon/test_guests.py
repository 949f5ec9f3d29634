"""Guests from creation to removal, through the command line, on a real inn with real guests."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from live_inn import SMALL, LiveInn, eventually

pytestmark = [pytest.mark.guest, pytest.mark.root]


def test_a_guest_lives(inn: LiveInn) -> None:
    inn("vm", "create", "life", *SMALL, "--switch", "lan", "--wait", "ready")
    detail = inn.json("vm", "show", "life")
    assert detail["status"]["state"] == "running"
    address = detail["nics"][0]["address"]
    assert address in inn.sh("life", "ip -4 addr")
    assert inn.run("vm", "exec", "life", "--", "sh", "-c", "exit 3").returncode != 0
    status = Path(f"/proc/{detail['status']['pid']}/status").read_text()
    assert f"Uid:\t{detail['status']['uid']}\t" in status
    assert "Seccomp:\t2" in status

    inn("vm", "pause", "life")
    inn.refused("vm.state", "vm", "pause", "life")
    inn("vm", "resume", "life")

    boot = inn.sh("life", "cat /proc/sys/kernel/random/boot_id; echo remembered > /tmp/in-memory")
    inn("vm", "set", "life", "--cpus", "2", "--protect")
    inn("vm", "save", "life")
    assert inn.json("vm", "show", "life")["status"]["pid"] is None
    memory = inn.state / "vms" / detail["id"] / "saved" / "memory.bin"
    memory.rename(memory.with_suffix(".away"))
    assert inn.run("vm", "start", "life").returncode == 1
    assert inn.json("vm", "show", "life")["status"]["state"] == "saved", "a start that failed costs no memory"
    memory.with_suffix(".away").rename(memory)
    inn("vm", "start", "life", "--wait", "ready")
    assert inn.sh("life", "cat /tmp/in-memory") == "remembered"
    assert inn.sh("life", "cat /proc/sys/kernel/random/boot_id") == boot
    assert inn.sh("life", "nproc") == "1", "it goes on as it was saved, whatever was set meanwhile"

    inn("vm", "shutdown", "life")
    assert inn.json("vm", "show", "life")["status"]["state"] == "stopped"
    inn.refused("vm.protected", "vm", "rm", "life")
    inn("vm", "rename", "life", "afterlife")
    assert [nic["name"] for nic in inn.json("nic", "ls") if nic["vm_id"] == detail["id"]] == ["afterlife-0"]
    inn("vm", "start", "afterlife", "--wait", "ready")
    assert inn.sh("afterlife", "nproc") == "2"
    inn("vm", "set", "afterlife", "--no-protect")

    inn.refused("vm.running", "vm", "rm", "afterlife")
    inn("vm", "rm", "afterlife", "--force")
    disks = [disk["name"] for disk in inn.json("disk", "ls") if disk["name"].startswith("afterlife")]
    assert disks == ["afterlife-disk"], "disks are kept unless their removal is asked for"
    inn("disk", "rm", "afterlife-disk")


def test_a_clone_has_the_content_and_an_identity_of_its_own(inn: LiveInn) -> None:
    inn("vm", "create", "origin", *SMALL, "--switch", "lan", "--wait", "ready")
    inn.sh("origin", "echo mine > /root/note; sync")
    inn("vm", "clone", "origin", "twin")
    inn("vm", "start", "twin", "--wait", "ready")
    assert inn.sh("twin", "cat /root/note") == "mine"
    inn.sh("twin", "echo other > /root/note; sync")
    assert inn.sh("origin", "cat /root/note") == "mine"
    origin, twin = inn.json("vm", "show", "origin"), inn.json("vm", "show", "twin")
    assert origin["nics"][0]["mac"] != twin["nics"][0]["mac"]
    assert origin["nics"][0]["address"] != twin["nics"][0]["address"]
    assert origin["status"]["generation_id"] != twin["status"]["generation_id"]
    assert origin["status"]["uid"] != twin["status"]["uid"]
    inn.sh("twin", f"ping -c 1 -W 5 {origin['nics'][0]['address']}")
    assert "origin" in inn.sh("twin", "nslookup origin.inn")
    for name in ("origin", "twin"):
        inn("vm", "rm", name, "--force", "--with-disks")


def test_disks_are_plugged_into_a_running_guest(inn: LiveInn) -> None:
    inn("vm", "create", "plug", *SMALL, "--wait", "ready")
    inn("disk", "create", "extra", "--size", "64M")
    inn("disk", "attach", "extra", "plug")
    disk_id = inn.json("disk", "show", "extra")["id"]
    eventually(lambda: "67108864" in inn.sh("plug", "cat /sys/block/vd*/size | awk '{print $1*512}'"), "disk in guest")
    device = inn.sh("plug", "for d in /sys/block/vd*; do [ $(cat $d/size) = 131072 ] && basename $d; done")
    inn.sh("plug", f"dd if=/dev/urandom of=/dev/{device} bs=64k count=16 conv=fsync 2>/dev/null")
    digest = inn.sh("plug", f"sha256sum < /dev/{device}")
    inn.refused("disk.attached", "disk", "rm", "extra")
    inn.refused("disk.attached", "disk", "export", "extra", "--socket", "/tmp/never.sock", "--writable")
    inn("disk", "snapshot", "extra", "first")
    inn.sh("plug", f"dd if=/dev/zero of=/dev/{device} bs=64k count=1 seek=8 conv=fsync 2>/dev/null")
    changed = inn.json("disk", "diff", "extra", "first")
    assert [(part["offset_bytes"], part["length_bytes"]) for part in changed["ranges"]] == [(8 * 65536, 65536)]
    inn("disk", "clone", "extra", "copy", "--snapshot", "first")
    inn("disk", "detach", "extra")
    assert disk_id not in inn.json("vm", "show", "plug")["status"]["attachments"]
    inn("disk", "attach", "copy", "plug")
    device = inn.sh("plug", "sleep 1; for d in /sys/block/vd*; do [ $(cat $d/size) = 131072 ] && basename $d; done")
    assert inn.sh("plug", f"sha256sum < /dev/{device}") == digest
    inn("vm", "rm", "plug", "--force", "--with-disks")
    inn("disk", "rm", "extra")
    assert "copy" not in inn("disk", "ls")


def test_a_guest_that_dies_is_noticed_and_can_be_started_again(inn: LiveInn) -> None:
    inn("vm", "create", "mortal", *SMALL, "--switch", "lan", "--wait", "ready")
    os.kill(inn.json("vm", "show", "mortal")["status"]["pid"], signal.SIGKILL)
    eventually(lambda: inn.json("vm", "show", "mortal")["status"]["state"] == "crashed", "the crash is noticed")
    eventually(lambda: not inn.json("vm", "show", "mortal")["status"]["attachments"], "its disks are given back")
    assert "signal 9" in inn.json("vm", "show", "mortal")["status"]["reason"]
    inn("vm", "start", "mortal", "--wait", "ready")
    inn("vm", "rm", "mortal", "--force", "--with-disks")
