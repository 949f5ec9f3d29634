"""Several pools in one fabric: founded, missing, foreign, given up; operations reach the pool of their subject."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from innkeeper.fabric.layout import PAGE
from innkeeper.fabric.pool import Pool
from innkeeper.fabric.pools import Pools
from innkeeper.fabric.routing import call
from innkeeper.fabric.space import Limits
from innkeeper.fabric.vfs import summed
from innkeeper.model.problems import Conflict, Corrupt, NoSpace, NotFound, Problem
from innkeeper.system.files import Io

LIMITS = Limits(log_bytes=4 << 20, segment_bytes=1 << 20, group_bytes=1 << 20, headroom_bytes=1 << 20)
MORE = str(uuid4())


class Fabric:
    """A default pool and others below one directory; ``ask`` is a control operation."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.start()

    def start(self, limits: Limits = LIMITS) -> None:
        default = Pool.open(Io(), str(self.place / "home"), limits=limits, background=False)
        try:
            self.pools = Pools(default, str(self.place / "pools.json"), limits=limits)
        except Problem:
            default.close()
            raise

    def restart(self) -> None:
        self.pools.close()
        self.start()

    def ask(self, operation: str, **arguments: Any) -> Any:
        return call(self.pools, operation, arguments)

    def more(self) -> str:
        """Another pool in ``more``."""
        return str(self.pools.pool_create(MORE, str(self.place / "more"))["id"])

    def disk(self, pool: str | None = None) -> str:
        storage, disk = str(uuid4()), str(uuid4())
        self.ask("storage_create", storage_id=storage, pool=pool)
        self.ask("disk_create", disk_id=disk, size_bytes=4 << 20, storage_id=storage)
        return disk

    def write(self, disk: str, data: bytes, offset: int = 0) -> None:
        attachment = str(uuid4())
        self.ask("attach", attachment_id=attachment, disk_id=disk)
        pool, volume = self.pools.volume(attachment)
        volume.stage_write(offset, data)
        pool.submit()
        volume.close()
        self.ask("detach", attachment_id=attachment)

    def read(self, length: int, **subject: str) -> bytes:
        attachment = str(uuid4())
        self.ask("attach", attachment_id=attachment, role="reader", **subject)
        _, volume = self.pools.volume(attachment)
        data = volume.read_blocking(0, length)
        volume.close()
        self.ask("detach", attachment_id=attachment)
        return data


@pytest.fixture
def fabric(tmp_path: Path) -> Iterator[Fabric]:
    made = Fabric(tmp_path)
    yield made
    made.pools.close()


def refusal(act: Callable[[], object]) -> Problem:
    with pytest.raises(Problem) as refused:
        act()
    return refused.value


def test_each_disk_is_in_its_pool_and_is_found_there(fabric: Fabric) -> None:
    more = fabric.more()
    disks = {fabric.disk(): None, fabric.disk(more): more}
    for number, disk in enumerate(disks):
        fabric.write(disk, bytes([number + 1]) * PAGE)
    fabric.restart()
    assert {each["id"] for each in fabric.ask("disk_ls")} == set(disks)
    for number, (disk, pool) in enumerate(disks.items()):
        assert fabric.ask("disk_show", disk_id=disk)["pool_id"] == (pool or str(fabric.pools.default.pool_id))
        assert fabric.read(PAGE, disk_id=disk) == bytes([number + 1]) * PAGE
        snapshot, hold = str(uuid4()), str(uuid4())
        fabric.ask("snapshot_create", snapshots={snapshot: disk})
        fabric.ask("hold", hold_id=hold, snapshot_id=snapshot)
        assert fabric.ask("changed_blocks", snapshot_id=snapshot)["blocks"][0][0] == 0
        assert refusal(lambda name=snapshot: fabric.ask("snapshot_rm", snapshot_id=name)).code == "snapshot.held"
        fabric.ask("release", hold_id=hold)
        fabric.ask("snapshot_rm", snapshot_id=snapshot)
    assert [each["disks"] for each in (fabric.ask("pool_show"), fabric.ask("pool_show", pool=more))] == [1, 1]
    assert refusal(lambda: fabric.ask("disk_show", disk_id=str(uuid4()))).code == "disk.not_found"
    assert refusal(lambda: fabric.ask("pool_show", pool=str(uuid4()))).code == "pool.not_found"


def test_a_policy_of_qos_is_in_every_pool(fabric: Fabric) -> None:
    fabric.more()
    disks, qos = [fabric.disk(), fabric.disk(MORE)], str(uuid4())
    fabric.ask("qos_set", qos_id=qos, max_iops=100)
    for disk in disks:
        fabric.ask("disk_set", disk_id=disk, qos_id=qos)
    (known,) = fabric.ask("qos_ls")
    assert (known["max_iops"], sorted(known["disks"])) == (100, sorted(disks))
    for disk in disks:
        fabric.ask("disk_set", disk_id=disk, qos_id="")
    fabric.ask("qos_rm", qos_id=qos)
    assert fabric.ask("qos_ls") == []


def test_disks_of_two_pools_are_snapshot_at_one_instant(fabric: Fabric) -> None:
    fabric.more()
    disks = [fabric.disk(), fabric.disk(MORE)]
    snapshots = {str(uuid4()): disk for disk in disks}
    for disk in disks:
        fabric.write(disk, b"before" * 1000)
    made = fabric.ask("snapshot_create", snapshots=snapshots)
    assert {each["id"]: each["disk_id"] for each in made} == snapshots
    for disk in disks:
        fabric.write(disk, b"after!" * 1000)
    assert fabric.ask("snapshot_create", snapshots=snapshots) == made, "repeated, it changes nothing"
    for snapshot in snapshots:
        assert fabric.read(6, snapshot_id=snapshot) == b"before"


def test_what_a_crash_left_of_snapshots_in_one_pool_is_taken_anew(fabric: Fabric) -> None:
    fabric.more()
    disks = [fabric.disk(), fabric.disk(MORE)]
    snapshots = {str(uuid4()): disk for disk in disks}
    first = next(iter(snapshots))
    fabric.ask("snapshot_create", snapshots={first: disks[0]})
    for disk in disks:
        fabric.write(disk, b"later!" * 1000)
    fabric.ask("snapshot_create", snapshots=snapshots)
    for snapshot in snapshots:
        assert fabric.read(6, snapshot_id=snapshot) == b"later!"


def test_a_missing_pool_keeps_no_other_from_being_served(fabric: Fabric) -> None:
    kept, gone = fabric.disk(), fabric.disk(fabric.more())
    fabric.write(gone, b"there" * 100)
    fabric.pools.close()
    (fabric.place / "more").rename(fabric.place / "away")
    (fabric.place / "more").mkdir()
    fabric.start()
    (told,) = [each["problem"] for each in fabric.pools.pool_ls() if not each["default"]]
    assert told["code"] == "pool.missing"
    assert list((fabric.place / "more").iterdir()) == [], "nothing is founded in an empty mount point"
    fabric.write(kept, b"still")
    for act in (
        lambda: fabric.ask("disk_show", disk_id=gone),
        lambda: fabric.ask("disk_rm", disk_id=gone),
        lambda: fabric.ask("attach", attachment_id=str(uuid4()), disk_id=gone),
        lambda: fabric.ask("storage_create", storage_id=str(uuid4()), pool=MORE),
    ):
        refused = refusal(act)
        assert (refused.code, "mount" in str(refused.remedy)) == ("pool.unavailable", True)
    fabric.ask("detach", attachment_id=str(uuid4()))
    assert refusal(lambda: fabric.pools.pool_open(MORE)).code == "pool.missing"
    (fabric.place / "more").rmdir()
    (fabric.place / "away").rename(fabric.place / "more")
    assert fabric.pools.pool_open(MORE)["problem"] is None
    assert fabric.read(5, disk_id=gone) == b"there"


def test_a_pool_of_a_later_version_a_damaged_one_and_another_one_stay_closed(fabric: Fabric) -> None:
    fabric.more()
    meta, identity = fabric.place / "more/meta.db", fabric.place / "more/pool.json"
    fabric.pools.close()
    whole = identity.read_text()

    def told(code: str) -> None:
        fabric.start()
        (problem,) = [each["problem"] for each in fabric.pools.pool_ls() if not each["default"]]
        assert (problem["code"], problem["kind"]) == (code, "Corrupt")
        assert problem["remedy"]
        fabric.pools.close()

    identity.write_text(json.dumps({**json.loads(whole), "format": 99}))
    told("pool.format")
    identity.write_text(json.dumps({**json.loads(whole), "pool": str(uuid4())}))
    told("pool.foreign")
    identity.write_text("{")
    told("pool.format")
    identity.write_text(whole)
    of_now = meta.read_bytes()
    later = of_now[:60] + (99).to_bytes(4, "big") + of_now[64:]  # where SQLite keeps user_version
    meta.write_bytes(summed(later[:4096], 0) + later[4096:])
    told("meta.format")
    meta.write_bytes(of_now)
    (fabric.place / "pools.json").write_text("[]")
    with pytest.raises(Corrupt, match="cannot be read"):
        fabric.start()
    (fabric.place / "pools.json").write_text('{"format": 7, "pools": []}')
    with pytest.raises(Corrupt, match="format 7"):
        fabric.start()
    (fabric.place / "pools.json").unlink()
    fabric.start()


def test_a_pool_that_is_open_elsewhere_is_locked(fabric: Fabric) -> None:
    fabric.more()
    fabric.pools.close()
    other = Pool.open(Io(), str(fabric.place / "more"), limits=LIMITS, background=False)
    fabric.start()
    assert refusal(lambda: fabric.pools.pool_open(MORE)).code == "pool.locked"
    other.close()
    fabric.pools.pool_open(MORE)


def test_directories_that_cannot_be_a_pool(fabric: Fabric) -> None:
    def refused(path: Path | str, kind: type[Problem]) -> str:
        refused = refusal(lambda: fabric.pools.pool_create(str(uuid4()), str(path)))
        assert isinstance(refused, kind)
        assert refused.remedy
        return refused.code

    fabric.more()
    place = fabric.place
    assert refused(place / "more", Conflict) == "pool.nested"
    assert refused(place / "more/below", Conflict) == "pool.nested"
    assert refused(place, Conflict) == "pool.nested"
    assert refused("relative", Problem) == "pool.path"
    full = place / "full"
    full.mkdir()
    (full / "mine").write_text("")
    assert refused(full, Conflict) == "pool.not_empty"
    (full / "mine").rename(full / "device.json")
    assert refused(full, Conflict) == "pool.not_empty"
    assert refused(full / "device.json", Problem) == "pool.unusable"
    assert refused("/proc/nowhere", Problem) == "pool.unusable"
    fabric.pools._limits = Limits(log_bytes=1 << 60)
    assert refused(place / "small", NoSpace) == "pool.small"
    fabric.pools._limits = LIMITS
    strange = Pool.open(Io(), str(place / "strange"), limits=LIMITS, background=False)
    assert refused(place / "strange", Conflict) == "pool.foreign"
    strange.close()
    assert refused(place / "strange", Conflict) == "pool.foreign"
    (place / "alias").symlink_to(place / "more")
    assert refused(place / "alias", Conflict) == "pool.foreign"
    assert len(fabric.pools.pool_ls()) == 2
    device = {"device_id": str(uuid4()), "path": str(place / "more/x"), "tier": "slow"}
    assert refusal(lambda: fabric.ask("device_add", **device)).code == "pool.nested"
    fabric.ask("device_add", device_id=str(uuid4()), path=str(place / "slow"), tier="slow")
    assert refused(place / "slow", Conflict) == "pool.nested"


def test_founding_goes_on_where_it_was_cut_short_and_may_be_repeated(fabric: Fabric) -> None:
    place = fabric.place / "more"
    place.mkdir()
    (place / "lost+found").mkdir()
    fabric.more()
    fabric.pools.close()
    (fabric.place / "pools.json").unlink()  # the crash came before the list was written
    fabric.start()
    assert len(fabric.pools.pool_ls()) == 1
    fabric.more()
    assert fabric.more() == MORE
    assert refusal(lambda: fabric.pools.pool_create(MORE, str(fabric.place / "other"))).code == "pool.exists"


def test_only_an_empty_pool_is_given_up_and_leaves_an_empty_directory(fabric: Fabric) -> None:
    disk = fabric.disk(fabric.more())
    assert "1 disks" in str(refusal(lambda: fabric.pools.pool_rm(MORE)).cause)
    assert refusal(lambda: fabric.pools.pool_rm(str(fabric.pools.default.pool_id))).code == "pool.default"
    storage = fabric.ask("disk_show", disk_id=disk)["storage_id"]
    fabric.ask("disk_rm", disk_id=disk)
    fabric.ask("storage_rm", storage_id=storage)
    fabric.pools.pool_rm(MORE)
    fabric.pools.pool_rm(MORE)
    left = [path for path in (fabric.place / "more").rglob("*") if path.is_file()]
    assert left == []
    fabric.restart()
    assert len(fabric.pools.pool_ls()) == 1
    again = str(uuid4())
    fabric.pools.pool_create(again, str(fabric.place / "more"))
    fabric.disk(again)


def test_keys_and_copies_go_with_the_pool_that_had_them(fabric: Fabric) -> None:
    pool = fabric.pools.get(fabric.more())
    keys = {"access_key_id": "inn", "secret_access_key": "a-secret"}
    store = str(uuid4())
    pool.device_add(store, f"file://{fabric.place}/store", "slow", credentials=keys)
    (fabric.place / "more" / "copies").mkdir()
    (fabric.place / "more" / "copies" / "00000001.0001.0").write_bytes(b"a copy")
    assert "a-secret" in "".join(path.read_text() for path in (fabric.place / "more" / "credentials").iterdir())
    pool.device_rm(store)
    pool.tier()
    fabric.pools.pool_rm(MORE)
    assert [path for path in (fabric.place / "more").rglob("*") if path.is_file()] == []
    fabric.pools.pool_create(str(uuid4()), str(fabric.place / "more"))


def test_a_closed_pool_is_forgotten_and_its_data_stays(fabric: Fabric) -> None:
    fabric.disk(fabric.more())
    fabric.pools.close()
    (fabric.place / "more").rename(fabric.place / "away")
    fabric.start()
    fabric.pools.pool_rm(MORE)
    with pytest.raises(NotFound):
        fabric.ask("pool_show", pool=MORE)
    assert (fabric.place / "away/meta.db").exists()
    with pytest.raises(NotFound):
        fabric.ask("disk_show", disk_id=str(uuid4()))


def test_a_pool_that_cannot_be_listed_is_not_made(fabric: Fabric) -> None:
    (fabric.place / "pools.json.new").mkdir()
    assert refusal(fabric.more).code == "pool.unusable"
    assert [path for path in (fabric.place / "more").rglob("*") if path.is_file()] == []
    (fabric.place / "pools.json.new").rmdir()
    fabric.more()
