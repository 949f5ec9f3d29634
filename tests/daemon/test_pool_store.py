"""A guest whose blocks are in an object store: boots from it, writes, reads back, goes on while the server restarts."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from live_inn import SMALL, LiveInn, eventually, live_inn
from s3_server import KEYS, S3Server, new_prefix

pytestmark = [pytest.mark.guest, pytest.mark.root, pytest.mark.slow]
MIB = 1 << 20


@pytest.fixture(scope="module", autouse=True)
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    server = S3Server(tmp_path_factory.mktemp("weed") / "data")
    server.start()
    yield server
    server.stop()


def device(inn: LiveInn, url: str) -> dict[str, object]:
    return next(each for each in inn.json("pool", "show", "default")["devices"] if each["path"] == url)


def forget(inn: LiveInn) -> None:
    """Nothing is in memory any more, neither the guest's nor the fabric's."""
    inn.sh("far", "sync; echo 3 > /proc/sys/vm/drop_caches")
    os.kill(inn.pid("fabric"), signal.SIGKILL)
    eventually(lambda: bool(inn.json("pool", "show", "default")["devices"]), "the fabric is back")


def test_a_guest_runs_with_its_blocks_in_s3(s3: S3Server, probe_image: Path, tmp_path: Path) -> None:
    url = new_prefix(s3)
    key_file = tmp_path / "key"
    key_file.write_text(f"access_key_id = {KEYS.access_key_id}\nsecret_access_key = {KEYS.secret_access_key}\n")
    store = ("pool", "add", "default", url, "--endpoint", s3.endpoint, "--key-file", str(key_file))
    with live_inn(tmp_path / "state") as inn:
        inn("image", "import", "probe", str(probe_image), "--format", "raw")
        wrong = tmp_path / "wrong"
        wrong.write_text("access_key_id = inn-test-key\nsecret_access_key = not-this-one\n")
        inn.refused("blob.denied", *store[:-1], str(wrong))
        inn.refused("blob.bucket", "pool", "add", "default", "s3://nowhere/x", *store[4:])
        inn(*store)
        inn("vm", "create", "far", *SMALL, "--wait", "ready")
        inn.sh("far", "dd if=/dev/urandom of=/root/data bs=64k count=400 conv=fsync 2>/dev/null")
        digest = inn.sh("far", "sha256sum /root/data")
        inn.fabric("drain")
        inn("image", "rm", "probe")  # its blocks are the guest's alone now
        for disk in inn.json("disk", "ls"):
            inn("disk", "set", disk["name"], "--tier", "slow")
        forget(inn)  # and the groups that were being written are sealed
        inn("pool", "curate", "default")
        eventually(lambda: int(str(device(inn, url)["group_bytes"])) > 40 * MIB, "the blocks go to the store", 120)

        forget(inn)
        assert inn.sh("far", "sha256sum /root/data") == digest
        inn("vm", "shutdown", "far")
        inn("vm", "start", "far", "--wait", "ready")  # boots from the store
        assert inn.sh("far", "sha256sum /root/data") == digest
        inn("pool", "scrub", "default")

        forget(inn)
        write = "dd if=/dev/urandom of=/root/new bs=64k count=10 conv=notrunc,fsync 2>/dev/null && sha256sum /root/new"
        inn.sh("far", write)  # what it takes to run this is in the guest's memory now
        s3.stop()
        written = inn.sh("far", write)  # the log asks no store
        with ThreadPoolExecutor(1) as reading:
            waiting = reading.submit(inn.sh, "far", "sha256sum /root/data")  # waits, and goes on
            s3.start()
            assert waiting.result() == digest
        assert inn.sh("far", "sha256sum /root/new") == written
        assert inn.json("vm", "show", "far")["status"]["state"] == "running"

        inn("pool", "drain", "default", url)
        assert url not in {each["path"] for each in inn.json("pool", "show", "default")["devices"]}
        s3.stop()
        forget(inn)
        assert inn.sh("far", "sha256sum /root/data") == digest
        assert inn.fabric("check")["problems"] == []
        logged = "".join(path.read_text() for path in (tmp_path / "state" / "log").iterdir())
        assert KEYS.secret_access_key not in logged
        assert "not-this-one" not in logged
