"""Block devices: only what is free is taken, and nothing is lost without consent."""

from __future__ import annotations

import subprocess
from pathlib import Path
from uuid import uuid4

import pytest
from loop_devices import Loops, loops as loops

from innkeeper.model.problems import Conflict, Invalid, Problem
from innkeeper.system.blockdevice import check, give_up, make_file_system, signatures
from innkeeper.system.mounts import RealMounts

pytestmark = pytest.mark.root


def refused(device: str | Path, code: str, *, consent: bool) -> Problem:
    with pytest.raises(Problem) as told:
        check(Path(device), consent=consent)
    assert told.value.code == code
    assert told.value.remedy
    return told.value


@pytest.mark.parametrize("consent", [False, True])
def test_what_is_no_block_device_or_too_small_is_refused(tmp_path: Path, loops: Loops, consent: bool) -> None:
    for path in (tmp_path, tmp_path / "absent", Path("/dev/null"), Path("/dev/absent")):
        assert isinstance(refused(path, "device.not_block", consent=consent), Invalid)
    refused(loops.make(64 << 20), "device.small", consent=consent)


def test_an_empty_device_becomes_a_file_system_that_is_mounted_by_its_uuid(tmp_path: Path, loops: Loops) -> None:
    device, uuid, place = loops.make(), str(uuid4()), tmp_path / "place"
    check(Path(device), consent=False)
    make_file_system(Path(device), uuid)
    assert signatures(Path(device)) == [f"ext4 inn-{uuid[:8]}"]
    mounts = RealMounts()
    for _ in range(2):
        mounts.attach(uuid, str(place))
        assert place.is_mount()
    (place / "file").write_text("x")
    told = refused(device, "device.in_use", consent=True)
    assert str(place) in str(told.cause)
    mounts.detach(str(place))
    assert not place.exists()
    mounts.detach(str(place))
    with pytest.raises(Problem):
        mounts.attach(str(uuid4()), str(tmp_path / "nowhere"))
    assert give_up(uuid) == device
    assert give_up(uuid) is None
    check(Path(device), consent=False)


@pytest.mark.parametrize(
    "make", [["mkfs.ext4", "-q"], ["mkswap"], ["sfdisk", "--quiet"]], ids=["file system", "swap", "partitions"]
)
def test_what_carries_something_is_taken_by_consent_only(loops: Loops, make: list[str]) -> None:
    device = loops.make()
    script = b"label: gpt\n,100M\n" if make[0] == "sfdisk" else None
    subprocess.run([*make, device], input=script, check=True, capture_output=True)
    before = signatures(Path(device))
    assert isinstance(refused(device, "device.signature", consent=False), Conflict)
    assert signatures(Path(device)) == before
    check(Path(device), consent=True)
    make_file_system(Path(device), str(uuid4()))
    check(Path(device), consent=True)
