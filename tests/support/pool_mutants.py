"""A small pool with a bit of everything, in memory, and seeded ways to damage its files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from uuid import UUID

from innkeeper.fabric.catalog import READER, Attachment
from innkeeper.fabric.pool import Pool
from innkeeper.fabric.space import Limits
from innkeeper.fabric.volume import Volume
from innkeeper.model.problems import Problem
from innkeeper.system.files import Io
from innkeeper.system.simulation import SimulatedFiles, simulated_io

PAGE, BLOCK = 4096, 65536
LIMITS = Limits(log_bytes=1 << 20, segment_bytes=128 << 10, group_bytes=256 << 10, headroom_bytes=0)
POOL, DEVICE = "/pool", "/slow"
SECTOR = 512


def name(number: int) -> str:
    return str(UUID(int=number, version=4))


STORAGE, PACKED, FIRST, SECOND, CLONE, OLD, LATE, SLOW, HOLD, WRITER, QOS = (name(number) for number in range(1, 12))


@dataclass
class Base:
    """Files of a pool as a process left them, and what its disks and snapshots hold."""

    files: dict[str, bytes]
    content: dict[str, bytes]
    older: dict[str, dict[int, set[bytes]]] = field(default_factory=dict)
    """Values that pages of a disk may fall back to: writes that no flush followed."""
    end: tuple[str, ...] = ()
    """The end of the log, where nothing else tells how far it reached: the process was killed."""

    def has_lost_its_end(self, files: dict[str, bytes]) -> bool:
        """Whether all of the log's end was damaged: nobody can know then what it had."""
        return bool(self.end) and all(files.get(path) != self.files[path] for path in self.end)


class _Maker:
    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.io, self.files = simulated_io(seed)
        self.pool = Pool.open(self.io, POOL, limits=LIMITS, background=False)
        self.content: dict[str, bytearray] = {}
        self.older: dict[str, dict[int, set[bytes]]] = {}

    def disk(self, disk_id: str, size: int, storage: str) -> None:
        self.pool.disk_create(disk_id, size, storage)
        self.content[disk_id] = bytearray(size)

    def write(self, disk_id: str, offset: int, data: bytes, *, flush: bool = True) -> None:
        attachment = WRITER
        self.pool.attach(attachment, disk_id=disk_id)
        volume = self.pool.volume(attachment)
        volume.stage_write(offset, data)
        sequence = self.pool.submit()
        if flush:
            self.pool.sync_blocking(sequence)
            self.older.clear()
        else:
            for page in range(offset // PAGE, (offset + len(data) - 1) // PAGE + 1):
                old = bytes(self.content[disk_id][page * PAGE : (page + 1) * PAGE])
                self.older.setdefault(disk_id, {}).setdefault(page, set()).add(old)
        self.content[disk_id][offset : offset + len(data)] = data
        self.pool.detach(attachment)

    def snapshot(self, snapshot_id: str, disk_id: str) -> None:
        self.pool.snapshot_create({snapshot_id: disk_id})
        self.content[snapshot_id] = bytearray(self.content[disk_id])

    def text(self, length: int) -> bytes:
        line = b"%08d a line of text that can be compressed\n" % self.random.randrange(10**8)
        return (line * (length // len(line) + 1))[:length]


def make(seed: int, *, closed: bool) -> Base:
    """``closed``: the pool was closed; else its process was killed."""
    maker = _Maker(seed)
    pool, chance = maker.pool, maker.random
    pool.storage_create(STORAGE)
    pool.storage_create(PACKED, compression="zstd", level=3)
    pool.qos_set(QOS, max_iops=1000)
    maker.disk(FIRST, 2 << 20, STORAGE)
    maker.disk(SECOND, (1 << 20) + 512, PACKED)
    for block in range(0, 12, 2):
        maker.write(FIRST, block * BLOCK, chance.randbytes(BLOCK))
    maker.write(FIRST, 14 * BLOCK, maker.text(2 * BLOCK))
    maker.write(SECOND, 0, maker.text(3 * BLOCK))
    maker.write(SECOND, 5 * BLOCK, bytes(maker.content[FIRST][:BLOCK]))
    pool.drain()
    pool.device_add(SLOW, DEVICE, "slow")
    pool.disk_set(SECOND, tier="slow", qos_id=QOS)
    maker.write(FIRST, 3 * PAGE, chance.randbytes(PAGE))
    maker.write(FIRST, 20 * BLOCK + PAGE, chance.randbytes(2 * PAGE))
    maker.write(SECOND, 7 * BLOCK, chance.randbytes(BLOCK))
    pool.drain()
    maker.snapshot(OLD, FIRST)
    maker.write(FIRST, 0, chance.randbytes(3 * PAGE))
    maker.write(SECOND, 9 * PAGE, maker.text(4 * PAGE))
    pool.drain()
    pool.hold(HOLD, OLD)
    maker.write(FIRST, 25 * BLOCK, maker.text(BLOCK))
    maker.write(SECOND, 11 * BLOCK, chance.randbytes(PAGE))
    maker.snapshot(LATE, FIRST)
    pool.disk_clone(CLONE, LATE)
    maker.content[CLONE] = bytearray(maker.content[LATE])
    maker.write(CLONE, 2 * BLOCK, chance.randbytes(2 * PAGE))
    maker.write(FIRST, 26 * BLOCK, chance.randbytes(4 * PAGE))
    maker.write(SECOND, 12 * BLOCK, chance.randbytes(PAGE))
    if closed:
        pool.close()
    else:
        maker.write(FIRST, 27 * BLOCK, chance.randbytes(PAGE), flush=False)
    files = {path: maker.files.peek(path) for path in maker.files.paths()}
    segments = sorted(pool.log.segments.values(), key=lambda each: each.generation)
    end = () if closed else tuple(segment.file.path for segment in segments[-2:])
    return Base(files, {key: bytes(value) for key, value in maker.content.items()}, maker.older, end)


def machine(files: dict[str, bytes], seed: int = 0) -> tuple[Io, SimulatedFiles]:
    """A machine with those files."""
    io, simulated = simulated_io(seed)
    for directory in (POOL, f"{POOL}/log", f"{POOL}/groups", DEVICE, f"{DEVICE}/groups"):
        io.files.mkdir(directory)
    for path, content in files.items():
        io.files.open(path, create=True)
        simulated.damage(path, 0, content)
    for directory in (POOL, f"{POOL}/log", f"{POOL}/groups", DEVICE, f"{DEVICE}/groups"):
        io.files.sync_dir(directory)
    return io, simulated


Files = dict[str, bytes]


def _place(chance: Random, data: bytes) -> int:
    """A byte of a file: anywhere, in its first page, in its last one, or where there is something."""
    lot = chance.random()
    if lot < 0.25:
        return chance.randrange(min(len(data), PAGE))
    if lot < 0.4:
        return chance.randrange(max(0, len(data) - PAGE), len(data))
    at = chance.randrange(len(data))
    for _ in range(8):
        if data[at]:
            break
        at = chance.randrange(len(data))
    return at


def flip(chance: Random, files: Files, path: str) -> None:
    data = bytearray(files[path])
    for _ in range(chance.choice((1, 1, 1, 2, 8))):
        at = _place(chance, data)
        data[at] ^= 1 << chance.randrange(8)
    files[path] = bytes(data)


def scribble(chance: Random, files: Files, path: str) -> None:
    data = bytearray(files[path])
    at = _place(chance, data) // SECTOR * SECTOR
    length = SECTOR * chance.choice((1, 8, 8, 64))
    part = data[at : at + length]
    data[at : at + length] = bytes(len(part)) if chance.random() < 0.5 else chance.randbytes(len(part))
    files[path] = bytes(data)


def truncate(chance: Random, files: Files, path: str) -> None:
    files[path] = files[path][: _place(chance, files[path])]


def empty(_chance: Random, files: Files, path: str) -> None:
    files[path] = b""


def delete(_chance: Random, files: Files, path: str) -> None:
    del files[path]


def grow(chance: Random, files: Files, path: str) -> None:
    files[path] += chance.randbytes(chance.choice((1, SECTOR, PAGE)))


def swap(chance: Random, files: Files, path: str) -> None:
    other = chance.choice(sorted(files))
    files[path], files[other] = files[other], files[path]


def copy(chance: Random, files: Files, path: str) -> None:
    """The file a second time, under another number or over another."""
    if path.endswith((".grp", ".seg")):
        directory, _, last = path.rpartition("/")
        _, _, rest = last.partition(".")
        digits = "08x" if path.endswith(".grp") else "04d"
        fresh = chance.choice((0, 1, 2, 3, 9, 70, 200, 5000))
        files[f"{directory}/{fresh:{digits}}.{rest}"] = files[path]
    else:
        files[chance.choice(sorted(files))] = files[path]


def shift(chance: Random, files: Files, path: str) -> None:
    """Pages in each other's places."""
    data = bytearray(files[path])
    pages = len(data) // PAGE
    if pages < 2:
        return flip(chance, files, path)
    one, other = (chance.randrange(pages) * PAGE for _ in range(2))
    data[one : one + PAGE], data[other : other + PAGE] = data[other : other + PAGE], data[one : one + PAGE]
    files[path] = bytes(data)
    return None


MUTATIONS: tuple[tuple[Callable[[Random, Files, str], None], int], ...] = (
    (flip, 30), (scribble, 20), (truncate, 12), (empty, 4), (delete, 8), (grow, 3), (swap, 6), (copy, 8), (shift, 9),
)  # fmt: skip


def kind_of(path: str) -> str:
    last = path.rpartition("/")[2]
    return last.rpartition(".")[2] if last.endswith((".seg", ".grp")) else last


def mutate(base: Base, seed: int) -> tuple[Files, str]:
    """The files with one to three kinds of damage, and what was done to them."""
    chance = Random(seed)
    files = dict(base.files)
    done = []
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        kinds = sorted({kind_of(path) for path in files} - {"lock"})
        kind = chance.choice(kinds)
        path = chance.choice([each for each in sorted(files) if kind_of(each) == kind])
        (act,) = chance.choices([act for act, _ in MUTATIONS], [weight for _, weight in MUTATIONS])
        if not files[path] and act in (flip, scribble, truncate, shift):
            act = delete
        act(chance, files, path)
        done.append(f"{act.__name__} {path}")
    return files, "; ".join(done)


def read_all(pool: Pool, content: dict[str, bytes]) -> dict[str, dict[int, bytes | Problem]]:
    """Every block of every disk and snapshot that is known, by id: its bytes, or the problem that it has; a subject
    that cannot be opened has its problem as block -1, one that is not there has no blocks."""
    found: dict[str, dict[int, bytes | Problem]] = {}
    have = {each["id"]: "disk_id" for each in pool.disk_ls()}
    have |= {each["id"]: "snapshot_id" for each in pool.snapshot_ls()}
    for subject in content:
        blocks: dict[int, bytes | Problem] = found.setdefault(subject, {})
        if subject not in have:
            continue
        try:
            volume = opened(pool, have[subject], subject)
        except Problem as refused:
            blocks[-1] = refused
            continue
        for block in range(-(-volume.size_bytes // BLOCK)):
            length = min(BLOCK, volume.size_bytes - block * BLOCK)
            try:
                blocks[block] = volume.read_blocking(block * BLOCK, length)
            except Problem as refused:
                blocks[block] = refused
    return found


def opened(pool: Pool, what: str, subject: str) -> Volume:
    """A reader of a disk or snapshot, without an attachment in meta: the pool may be read-only."""
    named = {"disk_id": None, "snapshot_id": None} | {what: subject}
    pool.catalog.attachments[WRITER] = Attachment(WRITER, role=READER, uid=None, epoch=0, **named)
    try:
        return pool.volume(WRITER)
    finally:
        del pool.catalog.attachments[WRITER]
