"""One guest on an inn of its own: booted from an ISO, updated under, reached, saved, and purged with its inn."""

from __future__ import annotations

import io
import json
import shutil
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pycdlib
import pytest
from live_inn import SMALL, LiveInn, eventually, live_inn

from innkeeper.compute.adoption import start_ticks
from innkeeper.compute.commandline import CDROM
from innkeeper.compute.devices import disk_device_id

pytestmark = [pytest.mark.guest, pytest.mark.root]

ISO_TEXT = b"booted from the iso"
PORT = 18080
BOOT_ID = "cat /proc/sys/kernel/random/boot_id"


def bootable_iso(path: Path) -> None:
    """An ISO whose boot sector writes ``ISO_TEXT`` to the first serial port and halts (El Torito, no emulation)."""
    # mov si, text; next: lodsb; or al, al; jz halt; mov dx, 0x3f8; out dx, al; jmp next; halt: cli; hlt
    code = bytes.fromhex("31c08ed8be147cac08c07406baf803eeebf5faf4")
    sector = (code + ISO_TEXT + b"\0").ljust(2048, b"\0")
    iso = pycdlib.PyCdlib()
    iso.new()
    iso.add_fp(io.BytesIO(sector), len(sector), "/BOOT.;1")
    iso.add_eltorito("/BOOT.;1", bootcatfile="/BOOT.CAT;1")
    iso.write(str(path))
    iso.close()


@contextmanager
def connected(path: str, timeout_s: float) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as talking:
        talking.settimeout(timeout_s)
        talking.connect(path)
        yield talking


def reads(talking: socket.socket, text: bytes) -> bool:
    """Whether ``text`` comes before the socket's timeout."""
    seen = b""
    try:
        while text not in seen:
            part = talking.recv(4096)
            assert part, "the guest hung up"
            seen += part
    except TimeoutError:
        return False
    return True


def boot_indices(pid: int) -> dict[str, int]:
    """What QEMU was told to boot from: id of the device -> its place in the order."""
    words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    devices = [json.loads(word) for word in words if word.startswith("{")]
    return {device["id"]: device["bootindex"] for device in devices if "bootindex" in device}


def fetch(url: str) -> str | None:
    """The page; None while nobody answers there."""
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return str(answer.read().decode().strip())
    except (urllib.error.URLError, OSError):
        return None


def boots_from_its_iso(inn: LiveInn, directory: Path) -> None:
    """A vm that was never started is set to boot from an ISO, then from its disks in an order of ours."""
    bootable_iso(directory / "boot.iso")
    inn("image", "import", "tools", str(directory / "boot.iso"), "--iso")
    inn("vm", "create", "life", *SMALL, "--switch", "lan", "--no-start")
    inn("disk", "create", "blank", "--size", "1M")
    inn("disk", "attach", "blank", "life")
    inn("vm", "set", "life", "--iso", "tools", "--boot-iso", "--boot-order", "blank,life-disk")
    refused = inn.run("vm", "set", "life", "--boot-order", "nothing")
    assert "[disk.not_found]" in refused.stderr
    inn("vm", "start", "life")
    started = inn.json("vm", "show", "life")
    order = boot_indices(started["status"]["pid"])
    disks = {name: disk_device_id(disk_id) for disk_id, name in started["disk_names"].items()}
    assert sorted(order, key=order.__getitem__) == [CDROM, disks["blank"], disks["life-disk"]]
    with connected(started["sockets"]["serial"], 10) as console:
        reads(console, ISO_TEXT)  # unless it was said before we listened
        inn("vm", "reset", "life")
        console.settimeout(60)
        assert reads(console, ISO_TEXT), "after a reset it boots from the ISO again"
    assert inn.json("vm", "show", "life")["status"]["pid"] == started["status"]["pid"]
    inn("vm", "poweroff", "life")
    inn("vm", "set", "life", "--no-boot-iso", "--boot-order", "life-disk,blank")
    inn("vm", "start", "life", "--wait", "ready")
    order = boot_indices(inn.json("vm", "show", "life")["status"]["pid"])
    assert sorted(order, key=order.__getitem__) == [disks["life-disk"], disks["blank"], CDROM]


def changes_its_medium(inn: LiveInn) -> None:
    """The drive of a guest that runs is emptied and filled again."""
    sector = "dd if=/dev/sr0 bs=2048 skip=16 count=1 2>/dev/null | dd bs=1 skip=1 count=5 2>/dev/null"
    assert inn.sh("life", sector) == "CD001"
    inn("vm", "set", "life", "--no-iso")
    assert inn.json("vm", "show", "life")["iso_name"] is None
    eventually(lambda: inn.sh("life", f"{sector} || true") == "", "the guest sees an empty drive")
    inn("vm", "set", "life", "--iso", "tools")
    eventually(lambda: inn.sh("life", f"{sector} || true") == "CD001", "the guest sees the medium")


def does_not_notice_an_update(inn: LiveInn) -> None:
    """Daemon and fabric are replaced while the guest writes."""
    write = "i=0; while [ $i -lt 300 ]; do i=$((i+1)); echo line $i >> /root/log; sync; done; touch /root/done"
    inn.sh("life", f"echo remembered > /tmp/in-memory; ({write}) > /dev/null 2>&1 &")
    boot, guest_pid = inn.sh("life", BOOT_ID), inn.json("vm", "show", "life")["status"]["pid"]
    before = {name: inn.pid(name) for name in ("daemon", "fabric", "keeper")}
    inn("up", "--restart")
    after = {name: inn.pid(name) for name in before}
    assert after["keeper"] == before["keeper"], "the keeper holds the sockets, so it stays"
    assert after["daemon"] != before["daemon"] and after["fabric"] != before["fabric"]
    status = inn.json("vm", "show", "life")["status"]
    assert (status["pid"], status["state"]) == (guest_pid, "running")
    eventually(lambda: inn.run("vm", "exec", "life", "--", "ls", "/root/done").returncode == 0, "it wrote on", 120)
    seen = inn.sh("life", "wc -l < /root/log; tail -n 1 /root/log; dmesg | grep -ci 'i/o error' || true")
    assert seen.split("\n") == ["300", "line 300", "0"]
    assert inn.sh("life", BOOT_ID) == boot


def is_reached_from_the_host(inn: LiveInn) -> None:
    """Through a port forward, and on its screen."""
    inn.sh("life", "mkdir -p /tmp/www; echo welcome > /tmp/www/index.html; busybox httpd -p 80 -h /tmp/www")
    gateway = inn.json("switch", "show", "lan")["gateway_address"]
    plan = inn.json("switch", "set", "lan", "--forward", f"{PORT}=life:80", "--dry-run")
    assert str(PORT) in plan["diff"]
    assert fetch(f"http://{gateway}:{PORT}/") is None, "a dry run changes nothing"
    inn("switch", "set", "lan", "--forward", f"{PORT}=life:80")
    eventually(lambda: fetch(f"http://{gateway}:{PORT}/") == "welcome", "the forward reaches the guest")
    inn("switch", "set", "lan", "--no-forwards")
    assert fetch(f"http://{gateway}:{PORT}/") is None
    with connected(inn.json("vm", "show", "life")["sockets"]["vnc"], 10) as screen:
        assert screen.recv(12, socket.MSG_WAITALL).startswith(b"RFB 003.")


def is_saved_with_the_inn(inn: LiveInn) -> None:
    """``inn down`` saves it as its autostop says, and ``inn up`` lets it go on."""
    boot = inn.sh("life", BOOT_ID)
    inn("vm", "set", "life", "--autostop", "save")
    pid = inn.json("vm", "show", "life")["status"]["pid"]
    inn("down")
    assert start_ticks(pid) is None, "its process has ended"
    inn("up")
    eventually(lambda: inn.json("vm", "show", "life")["status"]["state"] == "running", "it starts with the inn")
    eventually(lambda: inn.run("vm", "exec", "life", "--", "true").returncode == 0, "its agent answers")
    assert inn.sh("life", f"{BOOT_ID}; cat /tmp/in-memory") == f"{boot}\nremembered"


def is_purged(inn: LiveInn, identity: dict[str, Any], trace: Path) -> None:
    """``inn down --purge`` leaves neither files nor anything in the kernel."""
    trace.mkdir()
    shutil.copy(inn.state / "inn.json", trace)  # by this the leak check knows the inn that is gone
    inn("down", "--purge")
    assert not inn.state.exists()
    assert not Path("/run/innkeeper", identity["id"]).exists()
    assert not [link.name for link in Path("/sys/class/net").iterdir() if link.name[5:9] == identity["id"]]


def test_a_guest_from_its_iso_to_the_end_of_its_inn(tmp_path: Path, probe_image: Path) -> None:
    with live_inn(tmp_path / "state") as inn:
        inn("image", "import", "probe", str(probe_image), "--format", "raw")
        inn("switch", "create", "lan")
        boots_from_its_iso(inn, tmp_path)
        changes_its_medium(inn)
        does_not_notice_an_update(inn)
        is_reached_from_the_host(inn)
        is_saved_with_the_inn(inn)
        is_purged(inn, json.loads((inn.state / "inn.json").read_text()), tmp_path / "was")
