"""UEFI, Secure Boot, TPM and bootable media on real guests."""

from __future__ import annotations

import io
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pycdlib
import pytest
from guest_lab import MIB, GuestLab
from probe import copy_probe

from innkeeper.compute import firmware
from innkeeper.compute.guest import Guest
from innkeeper.compute.inputs import CdromInput, UefiInput
from innkeeper.compute.memory import MemoryImage
from innkeeper.compute.seed import SeedInputs, seed_image

pytestmark = [pytest.mark.guest, pytest.mark.root]


def uefi_parts(lab: GuestLab, *, secure_boot: bool) -> tuple[UefiInput, Path]:
    files = firmware.find_uefi(secure_boot=secure_boot)
    variables = lab.base / "variables.fd"
    variables.write_bytes(files.variables_template.read_bytes())
    return UefiInput(files.code, lab.serve(variables).source, secure_boot), variables


def test_uefi_boots_and_keeps_its_variables_on_the_disk(lab: GuestLab, probe_image: Path) -> None:
    uefi, variables = uefi_parts(lab, secure_boot=False)
    before = variables.read_bytes()
    assert len(before) == 528 * 1024
    root = lab.serve(copy_probe(probe_image, lab.base / "root.raw"))
    guest = lab.start(lab.machine(root, uefi=uefi, memory_bytes=256 * MIB))
    lab.run(guest.agent.ready(120))
    assert lab.sh(guest, "test -d /sys/firmware/efi && echo uefi") == "uefi"
    image = MemoryImage(lab.base / "saved")
    lab.run(guest.save(image))
    after = variables.read_bytes()
    assert len(after) == len(before) and after != before
    guest = lab.restore(lab.machine(root, uefi=uefi, memory_bytes=256 * MIB), image)
    lab.run(guest.agent.ready(30))
    lab.run(guest.shutdown(60))


def test_secure_boot_with_a_tpm_whose_state_is_kept(lab: GuestLab, probe_image: Path) -> None:
    uefi, _ = uefi_parts(lab, secure_boot=True)
    root = lab.serve(copy_probe(probe_image, lab.base / "root.raw"))
    machine = lab.machine(root, uefi=uefi, tpm=True, memory_bytes=512 * MIB)
    guest = lab.start(machine)
    lab.run(guest.agent.ready(180))
    assert "enabled" in lab.sh(guest, "dmesg | grep -i 'secure.\\?boot'")
    assert lab.sh(guest, "ls /sys/class/tpm") == "tpm0"
    image = MemoryImage(lab.base / "saved")
    lab.run(guest.save(image))
    state = guest.place.tpm_state
    packed = firmware.pack_tpm(state)
    assert packed == firmware.pack_tpm(state) and len(packed) > 1000
    firmware.unpack_tpm(packed, state, guest.place.uid)
    assert firmware.pack_tpm(state) == packed
    guest = lab.restore(machine, image)
    lab.run(guest.agent.ready(30))
    assert lab.sh(guest, "ls /sys/class/tpm") == "tpm0"
    lab.run(guest.poweroff())


def bootable_iso(text: bytes) -> bytes:
    """An ISO whose boot sector writes ``text`` to the first serial port and halts (El Torito, no emulation)."""
    # mov si, text; next: lodsb; or al, al; jz halt; mov dx, 0x3f8; out dx, al; jmp next; halt: cli; hlt
    code = bytes.fromhex("31c08ed8be147cac08c07406baf803eeebf5faf4")
    assert len(code) == 0x14
    sector = (code + text + b"\0").ljust(2048, b"\0")
    iso = pycdlib.PyCdlib()
    iso.new()
    iso.add_fp(io.BytesIO(sector), len(sector), "/BOOT.;1")
    iso.add_eltorito("/BOOT.;1", bootcatfile="/BOOT.CAT;1")
    out = io.BytesIO()
    iso.write_fp(out)
    iso.close()
    return out.getvalue()


@contextmanager
def serial_console(guest: Guest) -> Iterator[socket.socket]:
    """Connected: what a guest writes while nobody listens is lost."""
    with socket.socket(socket.AF_UNIX) as console:
        console.connect(str(guest.place.serial_socket))
        yield console


def read_until(console: socket.socket, wanted: bytes, timeout_s: float = 30.0) -> None:
    seen = b""
    console.settimeout(timeout_s)
    while wanted not in seen:
        chunk = console.recv(4096)
        assert chunk, seen
        seen += chunk


def test_an_iso_boots_before_the_disk(lab: GuestLab, probe_image: Path) -> None:
    file = lab.base / "boot.iso"
    file.write_bytes(bootable_iso(b"booted from the iso\n"))
    iso = lab.serve(file)
    root = lab.serve(copy_probe(probe_image, lab.base / "root.raw"))
    machine = lab.machine(root, cdrom=CdromInput(iso.source, 0))
    guest = lab.start(machine)
    with serial_console(guest) as console:
        try:
            read_until(console, b"booted from the iso", timeout_s=10)
        except TimeoutError:  # it was faster than we were; a reset while SeaBIOS copies itself into RAM would hang it
            lab.run(guest.reset())
            read_until(console, b"booted from the iso")
    lab.run(guest.poweroff())

    guest = lab.start(replace(machine, cdrom=CdromInput(iso.source, 9)))
    lab.run(guest.agent.ready(90))


def test_media_are_changed_while_it_runs_and_the_seed_is_seen(lab: GuestLab, probe_image: Path) -> None:
    seed = lab.base / "seed.iso"
    seed.write_bytes(seed_image(SeedInputs("instance-1", "web")))
    seed.chmod(0o600)
    root = lab.serve(copy_probe(probe_image, lab.base / "root.raw"))
    guest = lab.start(lab.machine(root, seed=seed))
    lab.run(guest.agent.ready(90))
    mounted = "mkdir -p /m; mount -t iso9660 -o ro /dev/{0} /m && cat /m/{1}; umount /m"
    seeds = [name for name in lab.sh(guest, "ls /sys/block").split() if name.startswith("vd")]
    assert sorted(seeds) == ["vda", "vdb"]
    texts = [lab.run(guest.agent.exec(["sh", "-c", mounted.format(name, "meta-data")])).stdout for name in seeds]
    assert any(b"instance-1" in text for text in texts)
    for number in range(2):
        file = lab.base / f"media{number}.iso"
        file.write_bytes(seed_image(SeedInputs(f"media-{number}", "web")))
        lab.run(guest.change_media(lab.serve(file).source))
        assert f"media-{number}" in lab.sh(guest, mounted.format("sr0", "meta-data"))
    lab.run(guest.change_media(lab.exports[-1].source))
    lab.run(guest.change_media(None))
    lab.run(guest.change_media(None))
    assert lab.run(guest.agent.exec(["sh", "-c", "head -c1 /dev/sr0"])).status != 0
    nodes = {node["node-name"] for node in lab.run(guest.monitor.execute("query-named-block-nodes", flat=True))}
    assert not any("iso" in node for node in nodes)
