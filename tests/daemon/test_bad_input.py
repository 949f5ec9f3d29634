"""Bad input gets a clear error with a code and a remedy, and leaves nothing half-made."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from live_inn import SMALL, LiveInn

pytestmark = [pytest.mark.guest, pytest.mark.root]


@pytest.fixture(autouse=True)
def nothing_half_made(inn: LiveInn):
    def everything() -> dict[str, list[str]]:
        nouns = ("vm", "disk", "image", "nic", "switch", "repository", "checkpoint")
        return {noun: sorted(one["id"] for one in inn.json(noun, "ls")) for noun in nouns}

    before = everything()
    yield
    assert everything() == before


def test_what_does_not_exist(inn: LiveInn) -> None:
    said = inn.refused("image.not_found", "vm", "create", "a", "--image", "nowhere")
    assert "remedy" in said
    inn.refused("switch.not_found", "vm", "create", "a", *SMALL, "--switch", "nowhere")
    inn.refused("vm.not_found", "vm", "start", "nobody")
    inn.refused("image.unknown", "image", "build", "windows/95")
    ended = inn.run("image", "import", "x", "/nonexistent/file", "--format", "raw")
    assert (ended.returncode, "does not exist" in ended.stderr) == (2, True)


def test_impossible_sizes_and_names(inn: LiveInn) -> None:
    inn.refused("disk.smaller_than_image", "vm", "create", "a", *SMALL, "--disk", "1M")
    for words in (
        ("disk", "create", "a", "--size", "70T"),
        ("disk", "create", "a", "--size", "-1"),
        ("disk", "create", "a", "--size", "lots"),
        ("vm", "create", "a", "--image", "probe", "--memory", "1M"),
        ("vm", "create", "9 lives", "--image", "probe"),
    ):
        ended = inn.run(*words)
        assert ended.returncode in (1, 2), words
        assert "Traceback" not in ended.stderr


def test_what_is_taken(inn: LiveInn) -> None:
    inn("disk", "create", "here", "--size", "1M")
    inn.refused("disk.name_taken", "disk", "create", "here", "--size", "1M")
    inn.refused("switch.name_taken", "switch", "create", "lan")
    subnet = inn.json("switch", "show", "lan")["subnet"]
    inn.refused("switch.subnet_in_use", "switch", "create", "other", "--subnet", subnet)
    inn("vm", "create", "first", *SMALL, "--switch", "lan", "--no-start")
    address = inn.json("vm", "show", "first")["nics"][0]["address"]
    inn.refused("nic.address_in_use", "nic", "create", "first", "--switch", "lan", "--address", address)
    inn.refused("nic.address_outside", "nic", "create", "first", "--switch", "lan", "--address", "192.0.2.1")
    inn.refused("vm.name_taken", "vm", "create", "first", *SMALL)
    inn.refused("switch.in_use", "switch", "rm", "lan")
    inn("vm", "rm", "first", "--with-disks")
    inn("disk", "rm", "here")


def test_a_hostile_image_is_refused(inn: LiveInn, tmp_path: Path) -> None:
    secret, hostile = tmp_path / "secret", tmp_path / "hostile.qcow2"
    secret.write_bytes(b"canary" * 1000)
    create = ["qemu-img", "create", "-q", "-f", "qcow2", "-b", str(secret), "-F", "raw", str(hostile)]
    subprocess.run(create, check=True)
    inn.refused("image.hostile", "image", "import", "evil", str(hostile), "--format", "qcow2")
    (tmp_path / "cut.qcow2").write_bytes(b"QFI\xfb\0\0\0\3")
    ended = inn.run("image", "import", "cut", str(tmp_path / "cut.qcow2"), "--format", "qcow2")
    assert ended.returncode == 1
    assert "[image." in ended.stderr


def test_a_guest_without_an_agent_and_one_without_a_system(inn: LiveInn) -> None:
    inn("vm", "create", "empty", "--disk", "16M", "--memory", "128M")
    inn.refused("agent.absent", "vm", "exec", "empty", "--", "true")
    inn.refused("agent.absent", "checkpoint", "create", "empty", "point", "--frozen")
    assert inn.json("vm", "show", "empty")["status"]["state"] == "running"
    inn("vm", "poweroff", "empty")
    inn.refused("vm.state", "vm", "exec", "empty", "--", "true")
    inn("vm", "rm", "empty", "--with-disks")


def test_a_second_daemon_on_one_state_directory_is_refused(inn: LiveInn) -> None:
    ended = inn.run("serve")
    assert ended.returncode == 1
    assert "inn.busy" in ended.stderr
    inn("vm", "ls")


def test_a_foreign_repository_is_refused(inn: LiveInn, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_text("meow")
    inn.refused("repository.foreign", "repository", "create", "bad", "--path", str(tmp_path / "photos"))
    inn.refused("repository.path", "repository", "create", "bad", "--path", str(tmp_path / "no" / "such"))
