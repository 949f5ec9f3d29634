"""What holds requests back over the wire: QoS policies, quotas, a log that others fill; and what the meters say."""

from __future__ import annotations

import errno
import os
import random
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

import pytest
from nbd_lab import MIB, NbdLab, RawClient

from innkeeper.fabric.nbd import protocol as p
from innkeeper.fabric.space import Limits

READ, WRITE, TRIM, FLUSH = p.Command.READ, p.Command.WRITE, p.Command.TRIM, p.Command.FLUSH
POLICY = str(uuid4())


def disk_id_of(lab: NbdLab, export: str) -> str:
    return next(each["disk_id"] for each in lab.pool.attachment_ls() if each["id"] == export)


def waits_of(lab: NbdLab, export: str) -> int:
    """How often requests of the disk were held back."""
    waits: int = lab.facts()["meters"][disk_id_of(lab, export)]["waits"]
    return waits


def policed(lab: NbdLab, count: int = 1, **policy: object) -> list[str]:
    """Exports of new disks under one policy."""
    lab.pool.qos_set(POLICY, **policy)
    exports = [lab.disk(64 * MIB) for _ in range(count)]
    for export in exports:
        lab.pool.disk_set(disk_id_of(lab, export), qos_id=POLICY)
    return exports


def pipelined(client: RawClient, count: int, length: int = 4096) -> float:
    """Ask for ``count`` reads at once; seconds until all were answered."""
    began = time.monotonic()
    for number in range(count):
        client.send(READ, number * 4096, length)
    for _ in range(count):
        assert client.answer().error == 0
    return time.monotonic() - began


def test_a_maximum_holds_over_the_wire_and_its_change_counts_at_once(lab: NbdLab) -> None:
    (export,) = policed(lab, max_iops=200, burst_s=0.05)
    with lab.connect(export) as client:
        assert pipelined(client, 110) >= 0.45, "110 I/Os less a burst of 10 at 200 a second"
        lab.pool.qos_set(POLICY, max_iops=1_000_000)
        waits = waits_of(lab, export)
        assert waits >= 10
        pipelined(client, 110)
        facts = lab.facts()["meters"][disk_id_of(lab, export)]
        assert facts["waits"] == waits
        assert facts["reads"] == 220
        assert facts["read_bytes"] == 220 * 4096
        assert sum(facts["read_s"]["counts"]) == 220


def test_long_requests_count_for_what_they_are(lab: NbdLab) -> None:
    (export,) = policed(lab, max_iops=1000, burst_s=0.05)
    with lab.connect(export) as client:
        assert pipelined(client, 12, MIB) >= 1.2, "12 x 128 normalised I/Os, less the burst and one overdraft"


def test_writes_and_a_long_one_are_held_back_and_none_is_lost(lab: NbdLab) -> None:
    (export,) = policed(lab, max_bytes_per_s=8 * MIB, burst_s=0.1)
    data = random.Random(5).randbytes(4 * MIB)
    with lab.connect(export) as client:
        began = time.monotonic()
        for part in range(3):
            client.send(WRITE, part * 4 * MIB, 4 * MIB, data)
        assert {client.answer().error for _ in range(3)} == {0}
        assert time.monotonic() - began >= 0.8
        assert client.ask(READ, 8 * MIB, MIB).data == data[:MIB]


def test_an_aggregated_policy_is_shared_by_its_disks(lab: NbdLab) -> None:
    exports = policed(lab, 2, max_iops=200, burst_s=0.05, aggregated=True)
    with lab.connect(exports[0]) as one, lab.connect(exports[1]) as other:
        began = time.monotonic()
        threads = [threading.Thread(target=pipelined, args=(client, 60)) for client in (one, other)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert time.monotonic() - began >= 0.45
        (flow,) = lab.facts()["flows"]
        assert (flow["qos_id"], flow["disk_id"], flow["minimum_missed"]) == (POLICY, None, False)
    lab.pool.qos_set(POLICY, max_iops=1_000_000, aggregated=False)
    with lab.connect(exports[0]) as one, lab.connect(exports[1]) as other:
        pipelined(one, 5)
        pipelined(other, 5)
        assert {flow["disk_id"] for flow in lab.facts()["flows"]} == {disk_id_of(lab, export) for export in exports}


def test_flushes_trims_and_the_end_pass_a_closed_gate(lab: NbdLab) -> None:
    (export,) = policed(lab, max_iops=1, burst_s=0.05)
    with lab.connect(export) as client:
        client.send(TRIM, 0, 4096)
        client.send(FLUSH)
        assert client.answer().error == 0
        client.send(READ, 0, 4096)
        client.send(p.Command.DISC)
    lab.pool.qos_set(POLICY, max_iops=1_000_000)


def test_a_storage_has_a_policy_for_its_disks_and_a_disk_its_own(lab: NbdLab) -> None:
    own = str(uuid4())
    lab.pool.qos_set(POLICY, max_iops=10, burst_s=0.05)
    lab.pool.qos_set(own, max_iops=1_000_000)
    export = lab.disk(MIB)
    lab.pool.storage_set(lab.storage_id, qos_id=POLICY)
    with lab.connect(export) as client:
        assert pipelined(client, 6) >= 0.3
        waits = waits_of(lab, export)
        assert waits
        lab.pool.disk_set(disk_id_of(lab, export), qos_id=own)
        assert waits_of(lab, export) == waits
        pipelined(client, 20)
        lab.pool.disk_set(disk_id_of(lab, export), qos_id="")
        lab.pool.storage_set(lab.storage_id, qos_id="")
        assert lab.facts()["flows"] == []
        pipelined(client, 20)
        assert waits_of(lab, export) == waits
        assert lab.facts()["flows"] == []


@pytest.fixture
def small_lab(tmp_path: Path) -> Iterator[NbdLab]:
    lab = NbdLab(tmp_path, Limits(log_bytes=16 * MIB, segment_bytes=2 * MIB, group_bytes=4 * MIB))
    yield lab
    lab.close()


def test_a_quota_holds_and_overwriting_within_it_goes_on_for_ever(small_lab: NbdLab) -> None:
    lab = small_lab
    lab.pool.storage_set(lab.storage_id, quota_bytes=12 * MIB)
    data = os.urandom(MIB)
    with lab.connect(lab.disk(64 * MIB)) as one, lab.connect(lab.disk(64 * MIB)) as other:
        for number in range(10):
            assert one.ask(WRITE, number * MIB, data=data).error == 0
        for number in range(30):
            assert one.ask(WRITE, number % 9 * MIB, data=os.urandom(MIB)).error == 0, "what is replaced is counted once"
        assert other.ask(WRITE, 0, data=data[: MIB // 2]).error == 0
        found = 0
        for number in range(1, 8):
            found = other.ask(WRITE, number * MIB, data=os.urandom(MIB)).error
            if found:
                break
        assert found == errno.ENOSPC
        assert sum(disk["data_bytes"] + disk["undrained_bytes"] for disk in lab.pool.disk_ls()) <= 12 * MIB
        assert one.ask(TRIM, 0, 5 * MIB).error == 0
        lab.pool.drain()
        assert other.ask(WRITE, 20 * MIB, data=os.urandom(2 * MIB)).error == 0
        lab.pool.storage_set(lab.storage_id, quota_bytes=64 * MIB)
        assert other.ask(WRITE, 30 * MIB, data=os.urandom(8 * MIB)).error == 0


def test_a_pool_full_of_what_was_overwritten_takes_writes_until_it_is_full_of_what_is_live(tmp_path: Path) -> None:
    limits = Limits(
        log_bytes=16 * MIB, segment_bytes=2 * MIB, group_bytes=4 * MIB, headroom_bytes=8 * MIB, capacity_bytes=128 * MIB
    )
    lab = NbdLab(tmp_path, limits)
    chance = random.Random(3)
    try:
        with lab.connect(lab.disk(256 * MIB)) as client:
            for number in range(192):
                where = number % 48 if number < 96 else chance.randrange(48)
                assert client.ask(WRITE, where * MIB, data=os.urandom(MIB)).error == 0, f"write {number}"
            for _ in range(2048):
                where = chance.randrange(48 * 256) * 4096
                assert client.ask(WRITE, where, data=os.urandom(4096)).error == 0, "a little of every group is dead"
            errors = [client.ask(WRITE, number * MIB, data=os.urandom(MIB)).error for number in range(48, 192)]
            assert set(errors) == {0, errno.ENOSPC}
            assert errors.index(errno.ENOSPC) > 24
            assert client.ask(TRIM, 0, 24 * MIB).error == 0
            lab.pool.drain()
            assert client.ask(WRITE, 0, data=os.urandom(4 * MIB)).error == 0
    finally:
        lab.close()


def test_long_writes_that_began_are_finished_though_others_take_the_room(tmp_path: Path) -> None:
    limits = Limits(
        log_bytes=16 * MIB, segment_bytes=2 * MIB, group_bytes=4 * MIB, headroom_bytes=8 * MIB, capacity_bytes=128 * MIB
    )
    lab = NbdLab(tmp_path, limits)
    errors = list[int]()

    def overwrite(export: str, length: int, count: int, spread: int) -> None:
        with lab.connect(export) as client:
            for number in range(count):
                errors.append(client.ask(WRITE, number % spread * length, data=os.urandom(length)).error)

    try:
        work = [(4 * MIB, 60, 8), (MIB // 2, 300, 16), (65536, 1500, 64)]
        threads = [
            threading.Thread(target=overwrite, args=(lab.disk(64 * MIB), length, count, spread))
            for length, count, spread in work
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        lab.close()
    assert len(errors) == sum(count for _, count, _ in work)
    assert set(errors) == {0}, "all of it fits, once what is dead has been swept"


def apart(number: int) -> int:
    """Offsets of blocks that follow each other so far apart that they are no stream."""
    return number * 129 % 1024 * 65536


def test_one_that_fills_the_log_leaves_room_for_others(small_lab: NbdLab) -> None:
    lab = small_lab
    lab.pool.stop_upkeep()
    data = os.urandom(65536)
    with lab.connect(lab.disk(64 * MIB)) as hog, lab.connect(lab.disk(64 * MIB)) as modest:
        hog.sock.settimeout(1.0)
        sent = 0
        with suppress(TimeoutError):
            while sent < 300:
                hog.send(WRITE, apart(sent), 65536, data)
                hog.answer()
                sent += 1
        assert 100 <= sent <= 240
        for number in range(8):
            assert modest.ask(WRITE, number * 4096, data=b"m" * 4096).error == 0
        lab.pool.start_upkeep()
        hog.sock.settimeout(30)
        while hog.answer().error == 0 and (sent := sent + 1) < 600:
            hog.send(WRITE, apart(sent), 65536, data)
        assert sent == 600
