"""Bad input gets a clear error with a code and a remedy, and leaves nothing half-made."""

from __future__ import annotations

import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from live_inn import SMALL, LiveInn

pytestmark = [pytest.mark.guest, pytest.mark.root]


@pytest.fixture(autouse=True)
def nothing_half_made(inn: LiveInn):
    def everything() -> dict[str, list[str]]:
        nouns = ("vm", "disk", "image", "nic", "switch", "storage", "repository", "checkpoint")
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


@pytest.mark.parametrize(
    "words",
    [
        "disk create a --size 70T",
        "disk create a --size -1",
        "disk create a --size lots",
        "vm create a --image probe --memory 1M",
        "vm create a --image probe --cpus 0",
        "vm create 9+lives --image probe",
        "vm create a --image probe --nonsense",
        "disk attach",
    ],
)
def test_what_no_inn_could_do(inn: LiveInn, words: str) -> None:
    ended = inn.run(*(word.replace("+", " ") for word in words.split()))
    assert ended.returncode == 2
    assert "[request.invalid]" in ended.stderr
    assert "remedy:" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_what_this_host_has_no_room_for(inn: LiveInn, tmp_path: Path) -> None:
    inn.refused("disk.smaller_than_image", "vm", "create", "a", *SMALL, "--disk", "1M")
    said = inn.refused("vm.no_memory", "vm", "create", "a", "--image", "probe", "--memory", "900G")
    assert "this host has" in said
    inn("vm", "create", "roomy", "--image", "probe", "--memory", "900G", "--no-start")
    inn.refused("vm.no_memory", "vm", "start", "roomy")
    inn("vm", "set", "roomy", "--memory", "128M")
    inn("vm", "start", "roomy", "--wait", "ready")
    inn("vm", "rm", "roomy", "--force", "--with-disks")
    (tmp_path / "odd").write_text("neither a script nor YAML")
    inn.refused("seed.user_data", "vm", "create", "a", *SMALL, "--user-data", str(tmp_path / "odd"))
    assert {each.name for each in (inn.state / "vms").glob("*")} <= {each["id"] for each in inn.json("vm", "ls")}


def test_more_than_a_machine_holds(inn: LiveInn) -> None:
    cards = [word for _ in range(9) for word in ("--switch", "lan")]
    inn.refused("vm.no_port", "vm", "create", "a", *SMALL, *cards, "--no-start")
    inn("vm", "create", "full", *SMALL, *cards[2:], "--wait", "ready")
    inn.refused("vm.no_port", "nic", "create", "full", "--switch", "lan")
    inn("vm", "poweroff", "full")
    inn.refused("vm.no_port", "nic", "create", "full", "--switch", "lan")
    for number in range(16):
        inn("disk", "create", f"d{number}", "--size", "1M")
    for number in range(15):
        inn("disk", "attach", f"d{number}", "full")
    inn.refused("vm.no_port", "disk", "attach", "d15", "full")
    inn("vm", "start", "full", "--wait", "ready")
    assert inn.sh("full", "ls -d /sys/class/net/eth* | wc -l; ls -d /sys/block/vd* | wc -l") == "8\n16"
    inn("vm", "rm", "full", "--force", "--with-disks")
    inn("disk", "rm", "d15")


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
    inn("checkpoint", "create", "first", "point")
    inn.refused("checkpoint.name_taken", "checkpoint", "create", "first", "point")
    inn("vm", "rm", "first", "--with-disks")
    inn("disk", "rm", "here")


def test_names_of_images_repositories_and_storages_are_taken_once(inn: LiveInn, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    raw.write_bytes(os.urandom(1 << 20) * 64)
    inn.refused("image.name_taken", "image", "import", "probe", str(raw), "--format", "raw")
    # Of two at once one has it in the end, and the other leaves nothing.
    words = ("image", "import", "twin", str(raw), "--format", "raw")
    with ThreadPoolExecutor(2) as both:
        ended = [waiting.result() for waiting in [both.submit(inn.run, *words) for _ in range(2)]]
    assert sorted(one.returncode for one in ended) == [0, 1]
    assert sum("[image.name_taken]" in one.stderr for one in ended) == 1
    inn("image", "rm", "twin")
    inn("repository", "create", "vault", "--path", str(tmp_path / "one"))
    inn.refused("repository.name_taken", "repository", "create", "vault", "--path", str(tmp_path / "two"))
    inn("repository", "rm", "vault")
    inn("storage", "create", "plain")
    inn.refused("storage.name_taken", "storage", "create", "plain")
    inn("storage", "rm", "plain")


def test_a_clone_of_a_checkpoint_leaves_out_what_the_checkpoint_does(inn: LiveInn) -> None:
    inn("disk", "create", "manual", "--size", "1M")
    inn("vm", "create", "reader", *SMALL, "--no-start")
    inn("disk", "attach", "manual", "reader", "--read-only")
    inn("checkpoint", "create", "reader", "point")
    inn("vm", "clone", "reader", "copy", "--checkpoint", "point")
    inn("disk", "detach", "manual")
    inn("disk", "rm", "manual")
    inn("checkpoint", "apply", "reader", "point")
    for vm in ("reader", "copy"):
        inn("vm", "start", vm, "--wait", "ready")
        assert inn.sh(vm, "ls -d /sys/block/vd*") == "/sys/block/vda"
        inn("vm", "rm", vm, "--force", "--with-disks")


def test_a_guest_that_crashes_at_boot(inn: LiveInn, tmp_path: Path) -> None:
    inn("vm", "create", "doomed", *SMALL, "--wait", "ready")
    inn.sh("doomed", "echo 'echo c > /proc/sysrq-trigger' >> /etc/init.d/rcS; sync")
    inn("vm", "poweroff", "doomed")
    said = inn.refused("vm.crashed", "vm", "start", "doomed", "--wait", "ready")
    assert "panic" in said
    inn("repository", "create", "dark", "--path", str(tmp_path / "repository"))
    inn.refused("vm.not_quiesced", "checkpoint", "create", "doomed", "point", "--frozen")
    inn("backup", "create", "doomed", "--repository", "dark")
    (point,) = [backup for backup in inn.json("backup", "ls") if backup["vm_name"] == "doomed"]
    assert point["consistency"] == "crash"
    inn("vm", "rm", "doomed", "--force", "--with-disks")
    inn("repository", "rm", "dark")


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
