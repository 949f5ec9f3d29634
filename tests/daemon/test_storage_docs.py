"""The commands of docs/storage.md, typed as they stand there, on an inn of their own."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from live_inn import SMALL, LiveInn, live_inn
from loop_devices import Loops, loops as loops
from s3_server import KEYS, S3Server, new_prefix

pytestmark = [pytest.mark.guest, pytest.mark.root]
ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "storage.md").read_text()
BLOCKS = re.findall(r"<!-- commands: ([\w-]+) -->\n((?:    .*\n)+)", PAGE)


@pytest.fixture(scope="module")
def own_inn(tmp_path_factory: pytest.TempPathFactory, probe_image: Path, places: dict[str, str]) -> Iterator[LiveInn]:
    """An inn with a guest ``web`` that runs, with the disk that the page grows."""
    with live_inn(tmp_path_factory.mktemp("inn") / "state") as running:
        running("image", "import", "probe", str(probe_image), "--format", "raw")
        running("disk", "create", "root", "--size", "1G")
        running("vm", "create", "web", *SMALL, "--wait", "ready")
        running("disk", "attach", "root", "web")
        yield running


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    server = S3Server(tmp_path_factory.mktemp("weed") / "data")
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory, s3: S3Server) -> Iterator[dict[str, str]]:
    """The paths that the page names, and where they are here."""
    found = {f"/mnt/{name}": str(tmp_path_factory.mktemp(name)) for name in ("hdd", "flash")}
    for name, place in found.items():
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2G", name, place], check=True)
    key_file = tmp_path_factory.mktemp("key") / "s3.key"
    key_file.write_text(f"access_key_id = {KEYS.access_key_id}\nsecret_access_key = {KEYS.secret_access_key}\n")
    store = {"s3://cold/inn1": new_prefix(s3), "https://s3.example.org": s3.endpoint, "/etc/inn/s3.key": str(key_file)}
    yield {**store, **found}
    for place in found.values():
        subprocess.run(["umount", place], check=True)


def test_every_block_of_commands_is_tested() -> None:
    plain = re.sub(r"<!-- (?:commands: [\w-]+|tested in [\w./]+) -->\n(?:    .*\n)+", "", PAGE)
    assert all((ROOT / name).exists() for name in re.findall(r"<!-- tested in ([\w./]+) -->", PAGE))
    assert [line for line in plain.splitlines() if line.startswith("    inn ")] == []
    assert len(BLOCKS) == len({name for name, _ in BLOCKS})


@pytest.mark.parametrize("name", [name for name, _ in BLOCKS])
def test_the_page_says_what_works(
    own_inn: LiveInn, places: dict[str, str], name: str, request: pytest.FixtureRequest
) -> None:
    if name == "block-devices":
        loops: Loops = request.getfixturevalue("loops")
        places = {**places, "/dev/sdb": loops.make()}
    for line in dict(BLOCKS)[name].splitlines():
        inn, *words = shlex.split(line, comments=True)
        assert inn == "inn"
        own_inn(*[places.get(word, word) for word in words])

    if name == "grow":
        size = own_inn.sh("web", "cat /sys/block/$(ls /sys/block | grep vd | tail -1)/size")
        assert int(size) * 512 == 3 << 30


def test_the_log_is_told(own_inn: LiveInn) -> None:
    shown = own_inn.json("pool", "show", "default")
    assert 0 <= shown["log_undrained_bytes"] <= shown["log_bytes"] <= shown["log_limit_bytes"]
    assert own_inn.json("disk", "show", "root")["log_room_bytes"] > 0
