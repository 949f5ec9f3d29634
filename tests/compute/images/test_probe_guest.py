"""The probe guest itself: its disk is sound, boots under BIOS, UEFI and Secure Boot, and reads its seed."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from guest_lab import MIB, Golden, GuestLab
from probe import copy_probe

from innkeeper.compute.firmware import find_uefi
from innkeeper.compute.guest import Guest
from innkeeper.compute.images.disk_layout import ROOT_LBA
from innkeeper.compute.images.probe import SIZE_BYTES
from innkeeper.compute.inputs import UefiInput
from innkeeper.compute.seed import SeedInputs, seed_image
from innkeeper.model.resources import VmState

pytestmark = [pytest.mark.guest, pytest.mark.root]

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIB somebody"


def _check_root(image: Path, folder: Path) -> None:
    """e2fsck must find the root file system clean."""
    root = folder / "root.ext4"
    command = ["dd", f"if={image}", f"of={root}", "bs=1M", f"skip={ROOT_LBA // 2048}", "conv=sparse", "status=none"]
    subprocess.run(command, check=True)
    checked = subprocess.run(["e2fsck", "-fn", root], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout
    root.unlink()


def test_the_disk_is_sparse_and_sound(probe_image: Path, tmp_path: Path) -> None:
    facts = probe_image.stat()
    assert facts.st_size == SIZE_BYTES and facts.st_blocks * 512 < 100 * MIB
    with probe_image.open("rb") as file:
        head = file.read(1024)
    assert head[510:512] == b"\x55\xaa" and head[512:520] == b"EFI PART"
    _check_root(probe_image, tmp_path)


def _boot(lab: GuestLab, probe_image: Path, *, size_bytes: int | None = None, **parts: object) -> Guest:
    disk = copy_probe(probe_image, lab.base / "root.raw")
    if size_bytes is not None:
        with disk.open("r+b") as file:
            file.truncate(size_bytes)
    machine = replace(lab.machine(lab.serve(disk)), **parts)  # type: ignore[arg-type]
    guest = lab.start(machine)
    lab.run(guest.agent.ready(110))
    return guest


def test_first_boot_takes_the_seed_and_fills_the_disk(lab: GuestLab, probe_image: Path, tmp_path: Path) -> None:
    seed = lab.base / "seed.iso"
    script = "#!/bin/sh\necho ran >> /root/ran\n"
    seed.write_bytes(seed_image(SeedInputs("instance-1", "web-1", script, None, [KEY])))
    guest = _boot(lab, probe_image, size_bytes=1024 * MIB, seed=seed)
    assert lab.sh(guest, "hostname") == "web-1"
    assert lab.sh(guest, "cat /root/.ssh/authorized_keys") == KEY
    assert lab.sh(guest, "stat -c %a /root/.ssh/authorized_keys /root/.ssh").split() == ["600", "700"]
    lab.sh(guest, "until grep -q status /var/log/first-boot.log; do sleep 0.1; done", timeout_s=30)
    assert lab.sh(guest, "cat /root/ran /var/log/first-boot.log").split("\n") == ["ran", "status 0"]
    blocks = int(lab.sh(guest, "stat -f -c %b /"))
    assert blocks * 4096 > 900 * MIB
    lab.sh(guest, "echo kept > /root/kept")
    lab.run(guest.shutdown(60))
    assert lab.run(guest.wait_ended()) is VmState.STOPPED
    _check_root(lab.base / "root.raw", tmp_path)


def test_the_power_button_shuts_it_down(lab: GuestLab, golden: Golden) -> None:
    guest = golden.restore(lab)
    lab.sh(guest, "echo kept > /root/kept")
    lab.run(guest.monitor.execute("system_powerdown"))
    assert lab.run(guest.wait_ended()) is VmState.STOPPED


@pytest.mark.parametrize("secure_boot", [False, True], ids=["plain", "secure"])
def test_boots_under_uefi(lab: GuestLab, probe_image: Path, secure_boot: bool) -> None:
    firmware = find_uefi(secure_boot=secure_boot)
    variables = lab.base / "nvram.raw"
    variables.write_bytes(firmware.variables_template.read_bytes())
    uefi = UefiInput(firmware.code, lab.serve(variables).source, secure_boot)
    guest = _boot(lab, probe_image, uefi=uefi, memory_bytes=512 * MIB)
    assert lab.sh(guest, "test -d /sys/firmware/efi && echo efi") == "efi"
    said = lab.sh(guest, "dmesg | grep -i 'secure boot enabled' || true")
    assert bool(said) is secure_boot


def test_what_tests_and_the_tour_need_is_there(lab: GuestLab, golden: Golden) -> None:
    guest = golden.restore(lab)
    tools = "arping awk dd fsfreeze ip nc perl resize2fs send-frame arp-spoof sfdisk sha256sum sync tcpsvd udhcpc wget"
    missing = lab.sh(guest, f"for tool in {tools}; do command -v $tool >/dev/null || echo $tool; done")
    assert missing in ("", "tcpsvd")
    lab.sh(guest, "ip link add dummy0 type dummy 2>/dev/null; send-frame lo ffffffffffff0000000000010806 2 0.01")
    assert lab.sh(guest, "cat /sys/class/virtio-ports/*/name") == "org.qemu.guest_agent.0"
    assert "innkeeper-probe" in lab.sh(guest, "cat /etc/os-release")


def _read_seed(lab: GuestLab, guest: Guest, files: Mapping[str, str]) -> None:
    lab.sh(guest, "rm -rf /tmp/seed /var/lib/probe/instance-id; mkdir -p /tmp/seed")
    for name, text in files.items():
        result = lab.run(guest.agent.exec(["sh", "-c", f"cat > /tmp/seed/{name}"], stdin=text.encode()))
        assert result.status == 0
    lab.sh(guest, "rm -f /run/seed.log; probe-read-seed /tmp/seed; cat /run/seed.log >&2; test ! -s /run/seed.log")


CLOUD_CONFIG = f"""#cloud-config
# a comment
hostname: 'db-1'   # another
ssh_authorized_keys:
- {KEY}
unknown: {{a: [1, "two", {{b: c}}], d: e}}
write_files:
  - path: /tmp/literal
    permissions: '0600'
    content: |
      key: value
        deeper

      last
  - {{path: "/tmp/flow", content: "tab\\there"}}
  - content: folded
    path: /tmp/plain
runcmd:
  - echo "it's:fine" > /tmp/a # comment
  - [sh, -c, "echo 'quoted' > /tmp/b"]
"""
STATIC_V2 = """network:
  version: 2
  ethernets:
    nic0:
      match: {macaddress: "52:54:00:AA:bb:01"}
      dhcp4: false
      addresses:
        - 10.1.2.3/24
        - fd00::3/64
      routes:
        - to: default
          via: 10.1.2.1
      nameservers:
        addresses: [10.1.2.1, 10.1.2.2]
    nic1:
      match:
        macaddress: 52:54:00:aa:bb:02
      dhcp4: true
"""
STATIC_V1 = """version: 1
config:
- type: physical
  name: eth7
  mac_address: 52:54:00:aa:bb:01
  subnets:
  - type: static
    address: 10.1.2.3
    netmask: 255.255.255.128
    gateway: 10.1.2.1
    dns_nameservers: [10.1.2.2]
"""


def test_cloud_config_subset(lab: GuestLab, golden: Golden) -> None:
    guest = golden.restore(lab)
    meta = json.dumps({"instance-id": "i-1", "local-hostname": "other"})
    _read_seed(lab, guest, {"meta-data": meta, "user-data": CLOUD_CONFIG, "network-config": STATIC_V2})
    assert lab.sh(guest, "cat /etc/hostname") == "db-1"
    assert lab.sh(guest, "cat /root/.ssh/authorized_keys") == KEY
    assert lab.sh(guest, "stat -c %a /tmp/literal; cat /tmp/literal") == "600\nkey: value\n  deeper\n\nlast"
    assert lab.sh(guest, "cat /tmp/flow; echo; cat /tmp/plain") == "tab\there\nfolded"
    lab.sh(guest, "sh /var/lib/probe/user-script")
    assert lab.sh(guest, "cat /tmp/a /tmp/b") == "it's:fine\nquoted"
    assert lab.sh(guest, "cat /var/lib/probe/net/52:54:00:aa:bb:01").split("\n") == [
        "address 10.1.2.3/24",
        "address fd00::3/64",
        "gateway 10.1.2.1",
        "nameserver 10.1.2.1",
        "nameserver 10.1.2.2",
    ]
    assert lab.sh(guest, "cat /var/lib/probe/net/52:54:00:aa:bb:02") == "dhcp"

    _read_seed(lab, guest, {"meta-data": "instance-id: i-2\nlocal-hostname: plain\n", "network-config": STATIC_V1})
    assert lab.sh(guest, "cat /etc/hostname") == "plain"
    assert lab.sh(guest, "ls /var/lib/probe/net") == "52:54:00:aa:bb:01"
    assert lab.sh(guest, "cat /var/lib/probe/net/*").split("\n") == [
        "address 10.1.2.3/25",
        "gateway 10.1.2.1",
        "nameserver 10.1.2.2",
    ]


NONSENSE = ["", "{", "[1, 2", '{"a" 1}', "- - -\n :", "\t\tx: [", "a: {b", "|\n>\n", "x" * 5000, "\0\xff"]


def test_nonsense_in_a_seed_does_no_harm(lab: GuestLab, golden: Golden) -> None:
    guest = golden.restore(lab)
    for text in NONSENSE:
        lab.sh(guest, "rm -rf /tmp/seed; mkdir -p /tmp/seed")
        lab.run(guest.agent.exec(["sh", "-c", "cat > /tmp/seed/meta-data"], stdin=text.encode()))
        lab.sh(guest, "cd /tmp/seed; cp meta-data network-config; (echo '#cloud-config'; cat meta-data) > user-data")
        lab.sh(guest, "timeout 10 probe-read-seed /tmp/seed || test $? -ne 143", timeout_s=20)
        assert lab.sh(guest, "cat /etc/hostname") == "probe"
