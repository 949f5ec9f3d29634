"""A Debian image built from packages boots, and its cloud-init takes the seed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from guest_lab import MIB, GuestLab
from probe import cache_directory, copy_probe

from innkeeper.compute.firmware import find_uefi
from innkeeper.compute.images import catalogue
from innkeeper.compute.images.built import BuiltImage
from innkeeper.compute.inputs import UefiInput
from innkeeper.compute.seed import SeedInputs, seed_image
from innkeeper.model.resources import VmState

pytestmark = [pytest.mark.slow, pytest.mark.guest, pytest.mark.root, pytest.mark.timeout(1800)]

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIB somebody"
USER_DATA = f"#cloud-config\nssh_authorized_keys: ['{KEY}']\nruncmd: ['echo ran > /root/ran']\n"


@pytest.fixture(scope="module")
def debian(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BuiltImage]:
    target = tmp_path_factory.mktemp("debian") / "debian.raw"
    seen: list[float] = []
    built = catalogue.find("debian/12")(
        target, cache_dir=cache_directory(), progress=lambda fraction, text: seen.append(fraction)
    )
    assert built.size_bytes == target.stat().st_size
    assert seen == sorted(seen) and seen[-1] == 1.0
    assert [path.name for path in target.parent.iterdir()] == ["debian.raw"]
    yield built
    target.unlink()


@pytest.mark.parametrize("firmware", ["bios", "uefi"])
def test_boots_and_takes_its_seed(lab: GuestLab, debian: BuiltImage, firmware: str) -> None:
    disk = copy_probe(debian.path, lab.base / "root.raw")
    with disk.open("r+b") as file:
        file.truncate(4096 * MIB)
    seed = lab.base / "seed.iso"
    seed.write_bytes(seed_image(SeedInputs("instance-1", "deb-1", USER_DATA, None, [KEY])))
    uefi = None
    if firmware == "uefi":
        found = find_uefi(secure_boot=True)
        variables = lab.base / "nvram.raw"
        variables.write_bytes(found.variables_template.read_bytes())
        uefi = UefiInput(found.code, lab.serve(variables).source, secure_boot=True)
    guest = lab.start(lab.machine(lab.serve(disk), uefi=uefi, seed=seed, memory_bytes=1024 * MIB))
    lab.run(guest.agent.ready(600), timeout_s=700)
    script = "cloud-init status --wait; systemctl is-system-running --wait"
    assert (
        lab.run(guest.agent.exec(["sh", "-c", script], timeout_s=600), timeout_s=700).stdout.split()[-1] == b"running"
    )
    assert lab.sh(guest, "hostname; cat /root/ran").split() == ["deb-1", "ran"]
    assert KEY in lab.sh(guest, "cat /home/debian/.ssh/authorized_keys")
    assert int(lab.sh(guest, "stat -f -c %b /")) * 4096 > 3000 * MIB
    assert lab.sh(guest, "test -d /sys/firmware/efi && echo uefi || echo bios") == firmware
    lab.run(guest.shutdown(180), timeout_s=240)
    assert lab.run(guest.wait_ended()) is VmState.STOPPED
