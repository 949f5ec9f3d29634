"""Faults: a process that dies at each change of the repository, a repository that is full, bytes that were changed.

The oracle: a restore point is there whole or not at all; damage is detected; a restore never yields wrong bytes.
"""

from __future__ import annotations

import asyncio
from random import Random
from uuid import uuid4

import pytest
from memory_blobs import Killed, MemoryBlobs, ScriptedBlobs

from innkeeper.model.problems import Conflict, Corrupt, NoSpace, NotFound, Problem, Refused
from innkeeper.protect.index import names_array
from innkeeper.protect.prune import prune
from innkeeper.protect.repository import Repository
from innkeeper.protect.sealing import Kind
from innkeeper.protect.verify import verify
from innkeeper.system.clock import SimulatedClock

BLOCK = 65536
MIB = 1 << 20


@pytest.fixture
def disk(lab) -> str:
    disk_id = lab.fabric.disk(80 * MIB)
    lab.fabric.write(disk_id, {0: lab.some(MIB), 70 * MIB: lab.some(MIB), 20 * MIB + 4096: lab.some(4096)})
    lab.fabric.pool.drain()
    return disk_id


@pytest.fixture
def content(lab, disk: str) -> list[tuple[str, bytes]]:
    """Two snapshots with their content; the second changes a little."""
    (first,) = lab.fabric.snapshot(disk)
    lab.fabric.write(disk, {3 * BLOCK: lab.some(BLOCK), 70 * MIB + BLOCK: lab.some(BLOCK)})
    (second,) = lab.fabric.snapshot(disk)
    return [(each, lab.fabric.content(snapshot_id=each)) for each in (first, second)]


def check_whole(lab, repository: Repository, disk: str, expected: dict[str, bytes]) -> None:
    """Every restore point that is there is one of ``expected`` and restores to it."""
    assert asyncio.run(verify(repository)).ok
    for backup_id in repository.point_ids():
        assert lab.restored(backup_id, disk, repository) == expected[backup_id]


def test_killed_at_each_change_of_a_backup(lab, disk: str, content: list[tuple[str, bytes]]) -> None:
    deaths = 0
    for fatal in range(1, 100):
        clock = SimulatedClock()
        memory = MemoryBlobs()
        plain = Repository.create_on(memory, clock=clock)
        (first, first_bytes), (second, second_bytes) = content
        one, two = str(uuid4()), str(uuid4())
        expected = {one: first_bytes, two: second_bytes}
        lab.backup({disk: first}, repository=plain, backup_id=one)

        def die(call: str, name: str, count: int, fatal: int = fatal) -> None:
            if count == fatal:
                raise Killed

        dying = Repository(ScriptedBlobs(memory, die), plain.uuid, plain.key, "repository", clock)
        try:
            lab.backup({disk: second}, base=one, repository=dying, backup_id=two)
        except Killed:
            deaths += 1
        else:
            assert fatal > 5
            break
        check_whole(lab, plain, disk, expected)
        # The same backup, repeated by whoever comes back, ends; a prune then leaves only what is needed.
        lab.backup({disk: second}, base=one, repository=plain, backup_id=two)
        assert set(plain.point_ids()) == {one, two}
        clock.advance(3600)
        asyncio.run(prune(plain))
        check_whole(lab, plain, disk, expected)
        assert not list(plain.blobs.ls("leases/"))
    assert deaths >= 5


def test_killed_at_each_change_of_a_prune(lab, disk: str, content: list[tuple[str, bytes]]) -> None:
    deaths = 0
    for fatal in range(1, 100):
        clock = SimulatedClock()
        memory = MemoryBlobs()
        plain = Repository.create_on(memory, clock=clock)
        (first, first_bytes), (second, second_bytes) = content
        one, two = str(uuid4()), str(uuid4())
        lab.backup({disk: first}, repository=plain, backup_id=one)
        lab.backup({disk: second}, base=one, repository=plain, backup_id=two)
        plain.remove_point(one)

        def die(call: str, name: str, count: int, fatal: int = fatal) -> None:
            if count == fatal:
                raise Killed

        dying = Repository(ScriptedBlobs(memory, die), plain.uuid, plain.key, "repository", clock)
        try:
            asyncio.run(prune(dying))
        except Killed:
            deaths += 1
        else:
            assert fatal > 5
            break
        check_whole(lab, plain, disk, {two: second_bytes})
        clock.advance(3600)
        asyncio.run(prune(plain))
        check_whole(lab, plain, disk, {two: second_bytes})
        assert not list(plain.blobs.ls("doomed/"))
        lab.backup({disk: first}, repository=plain, backup_id=one)
        check_whole(lab, plain, disk, {one: first_bytes, two: second_bytes})
    assert deaths >= 5


def test_a_full_repository_at_each_put(lab, disk: str, content: list[tuple[str, bytes]]) -> None:
    for fatal in range(1, 100):
        memory = MemoryBlobs()

        def full(call: str, name: str, count: int, fatal: int = fatal) -> None:
            if call == "put" and count >= fatal:
                raise NoSpace("repository.full", "there is no space left")

        plain = Repository.create_on(memory)
        filling = Repository(ScriptedBlobs(memory, full), plain.uuid, plain.key, "repository", plain.clock)
        snapshot, data = content[0]
        try:
            done = lab.backup({disk: snapshot}, repository=filling)
        except NoSpace as problem:
            assert problem.code == "repository.full"
            assert plain.point_ids() == []
            assert not list(plain.blobs.ls("leases/"))
            assert lab.fabric.pool.pool_show()["holds"] == 0
        else:
            assert fatal > 4
            assert lab.restored(done.backup_id, disk, plain) == data
            break


def mutate(memory: MemoryBlobs, random: Random) -> str:
    """Change the stored blobs in one random way; returns what was done."""
    names = sorted(name for name in memory.content if not name.startswith("leases/"))
    name = random.choice(names)
    data = memory.content[name]
    kind = random.choice(["flip", "flip", "flip", "truncate", "swap", "delete", "append", "zero"])
    if kind == "flip":
        at = random.randrange(len(data))
        memory.content[name] = data[:at] + bytes((data[at] ^ 1 << random.randrange(8),)) + data[at + 1 :]
    elif kind == "truncate":
        memory.content[name] = data[: random.randrange(len(data))]
    elif kind == "append":
        memory.content[name] = data + random.randbytes(1 + random.randrange(100))
    elif kind == "zero":
        at = random.randrange(len(data))
        length = min(random.randrange(1, 4096), len(data) - at)
        if not any(data[at : at + length]):
            return mutate(memory, random)
        memory.content[name] = data[:at] + bytes(length) + data[at + length :]
    elif kind == "swap":
        other = random.choice([each for each in names if each != name])
        memory.content[name], memory.content[other] = memory.content[other], data
        return f"swap {name} {other}"
    else:
        del memory.content[name]
    return f"{kind} {name}"


@pytest.fixture
def small(lab) -> tuple[str, list[tuple[str, bytes]]]:
    """A disk with few blocks on two levels of map, and two snapshots with their content: mutations hit every part."""
    disk_id = lab.fabric.disk(66 * MIB)
    lab.fabric.write(disk_id, {0: lab.some(2 * BLOCK), 65 * MIB: lab.some(BLOCK), 4 * MIB + 4096: lab.some(4096)})
    lab.fabric.pool.drain()
    (first,) = lab.fabric.snapshot(disk_id)
    lab.fabric.write(disk_id, {BLOCK: lab.some(BLOCK)})
    (second,) = lab.fabric.snapshot(disk_id)
    return disk_id, [(each, lab.fabric.content(snapshot_id=each)) for each in (first, second)]


def mutations(lab, small: tuple[str, list[tuple[str, bytes]]], count: int, seed: int, restores: int) -> None:
    """Mutate ``count`` times and verify; restore everything after ``restores`` of them."""
    disk, content = small
    sound = MemoryBlobs()
    plain = Repository.create_on(sound)
    expected: dict[str, bytes] = {}
    base = None
    for snapshot, data in content:
        base = lab.backup({disk: snapshot}, base=base, repository=plain, tpm=b"tpm" * 1000).backup_id
        expected[base] = data
    random = Random(seed)
    detected = 0
    for number in range(count):
        memory = MemoryBlobs()
        memory.content = dict(sound.content)
        done = mutate(memory, random)
        context = f"seed {seed}, mutation {number}: {done}"
        try:
            repository = Repository.open_on(memory, uuid=plain.uuid)
            report = asyncio.run(verify(repository))
        except (Corrupt, Refused, NotFound, Conflict):
            detected += 1
            continue
        lost_point = not set(expected) <= set(report.points)
        harmless = done.startswith("delete index/")
        # White space at the end of the configuration, which people may edit, means nothing.
        harmless |= memory.content["config.json"].strip() == sound.content["config.json"].strip() and done.endswith(
            " config.json"
        )
        assert not report.ok or lost_point or harmless, context
        detected += 1
        if number % (count // restores):
            continue
        for backup_id in repository.point_ids():
            try:
                restored = lab.restored(backup_id, disk, repository)
            except Problem as problem:
                assert isinstance(problem, Corrupt | Refused), context
                assert backup_id in report.damaged_points, context
            else:
                assert restored == expected[backup_id], context
    print(f"seed {seed}: {count} mutations, {detected} detected")
    assert detected == count


def test_mutations_are_detected(lab, small: tuple[str, list[tuple[str, bytes]]]) -> None:
    mutations(lab, small, 300, seed=11, restores=30)


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("seed", range(4))
def test_many_mutations_are_detected(lab, small: tuple[str, list[tuple[str, bytes]]], seed: int) -> None:
    mutations(lab, small, 5000, seed=100 + seed, restores=50)


def flip(memory: MemoryBlobs, name: str, at: int) -> None:
    data = memory.content[name]
    memory.content[name] = data[:at] + bytes((data[at] ^ 0x40,)) + data[at + 1 :]


def test_a_flipped_bit_is_named_with_its_points_and_a_full_backup_heals(
    lab, disk: str, content: list[tuple[str, bytes]]
) -> None:
    memory = MemoryBlobs()
    repository = Repository.create_on(memory)
    (first, first_bytes), (second, second_bytes) = content
    one = lab.backup({disk: first}, repository=repository).backup_id
    two = lab.backup({disk: second}, base=one, repository=repository).backup_id
    # An extent that only the first point has: the block that the second changed.
    location = lab.fabric.pool.changed_blocks(first)["blocks"][3]
    assert location[0] == 3
    name = repository.key.name(Kind.EXTENT, bytes.fromhex(location[2]))
    index = repository.load_index()
    found = index.find(names_array([name]))
    pack, offset = index.name_of(int(found.pack[0])), int(found.records[0]["offset"])
    flip(memory, pack, offset + 7)

    report = asyncio.run(verify(repository))
    assert [(damage.blob, damage.offset, damage.points) for damage in report.damages] == [(pack, offset, [one])]
    assert report.damaged_points == [one]
    problem = report.problem()
    assert problem is not None
    assert pack in problem.detail
    assert one in (problem.cause or "")
    assert not asyncio.run(verify(repository, one)).ok
    assert asyncio.run(verify(repository, two)).ok
    with pytest.raises(Corrupt, match=pack):
        lab.restored(one, disk, repository)
    assert lab.restored(two, disk, repository) == second_bytes

    # A backup without a base stores anew what the suspect pack held; the first point is whole again.
    lab.backup({disk: first}, repository=repository)
    assert lab.restored(one, disk, repository) == first_bytes
    asyncio.run(prune(repository))
    assert asyncio.run(verify(repository)).ok
    assert lab.restored(one, disk, repository) == first_bytes


def test_a_harmless_is_made_up_for(lab, disk: str, content: list[tuple[str, bytes]]) -> None:
    memory = MemoryBlobs()
    repository = Repository.create_on(memory)
    snapshot, data = content[0]
    done = lab.backup({disk: snapshot}, repository=repository)
    segments = [name for name in memory.content if name.startswith("index/")]
    flip(memory, segments[0], 200)
    assert [damage.blob for damage in asyncio.run(verify(repository)).damages] == segments
    assert lab.restored(done.backup_id, disk, repository) == data
    asyncio.run(prune(repository))
    for name in segments:
        memory.content.pop(name, None)
    assert lab.restored(done.backup_id, disk, repository) == data
    again = lab.backup({disk: snapshot}, repository=repository)
    assert lab.restored(again.backup_id, disk, repository) == data
