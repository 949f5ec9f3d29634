"""Backup of a vm: a synthetic full that costs what changed.

The vm's disks are fabric snapshots of one instant. Where the fabric still holds the snapshot of the base backup, it
says which blocks changed; else hashes are compared and what the repository has is not read. Stored extents are copied
as they are. Order: packs, index, restore point; the last makes the backup visible. The format is in
docs/repository-format.md.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from innkeeper.fabric.layout import BLOCK
from innkeeper.fabric.nbd.client import NbdClient
from innkeeper.model.problems import Conflict, Corrupt, NotFound, Refused, Unavailable
from innkeeper.model.resources import new_id
from innkeeper.protect.bridge import FabricApi, ProgressCallback, Worker, in_thread
from innkeeper.protect.index import names_array
from innkeeper.protect.maps import NO_NAME, MapBuilder, MapReader
from innkeeper.protect.pack import PACK_BYTES, encode
from innkeeper.protect.points import Consistency, PointDisk, PointFile, RestorePoint
from innkeeper.protect.repository import Repository
from innkeeper.protect.sealing import Kind
from innkeeper.protect.source import Extent, Source, extent_of
from innkeeper.protect.writer import PackWriter

PAGE_BLOCKS = 8192
FILE_PART_BYTES = 1024 * 1024
TPM_FILE = "tpm.tar"
_ATTEMPTS = 3


@dataclass(frozen=True, slots=True)
class BackupInputs:
    """What to back up. ``backup_id`` is the caller's: repeating a backup that is there already does nothing.

    ``vm``: the vm's document (and what else the restorer needs) as JSON values. ``disks``: disk id -> fabric snapshot
    id, nvram disk included. ``tpm``: a tar of the TPM's state. ``base_backup_id``: a restore point of the same vm to
    stand on, if any.
    """

    backup_id: str
    vm_id: str
    vm_name: str
    vm: dict[str, Any]
    taken_at: datetime
    disks: dict[str, str]
    tpm: bytes | None = None
    consistency: Consistency = "crash"
    base_backup_id: str | None = None


@dataclass(frozen=True, slots=True)
class BackupResult:
    """What a backup did. ``read_bytes`` were read from the fabric, ``stored_bytes`` written to the repository.

    ``changed_bytes``: 64 KiB blocks that the fabric named. ``base_backup_id``: the base when the fabric could tell
    the changes of at least one disk since then.
    """

    backup_id: str
    logical_bytes: int
    changed_bytes: int
    read_bytes: int
    stored_bytes: int
    duration_s: float
    base_backup_id: str | None


class PrunedMeanwhile(Unavailable):
    """A pack that the backup stands on is being pruned; the backup runs again."""


async def backup_vm(
    repository: Repository,
    inputs: BackupInputs,
    fabric: FabricApi,
    nbd_socket: Path,
    progress: ProgressCallback | None = None,
    pack_bytes: int = PACK_BYTES,
) -> BackupResult:
    """Make the restore point ``inputs.backup_id``. Progress is called on the event loop.

    Raises ``NoSpace`` (``repository.full``), ``Corrupt`` (``fabric.corrupt``, ``repository.corrupt``),
    ``Unavailable`` (``repository.pruned_meanwhile``, ``repository.lease_lost``), and what the fabric raises. After a
    failure or a cancel no restore point is visible, no hold or attachment is left; what was stored serves the next
    attempt or is pruned.
    """

    published = threading.Event()

    def work(worker: Worker) -> BackupResult:
        for attempt in range(_ATTEMPTS):
            try:
                return _Backup(repository, inputs, fabric, nbd_socket, worker, pack_bytes, published).run()
            except PrunedMeanwhile:
                if attempt == _ATTEMPTS - 1:
                    raise
        raise AssertionError("the loop returns or raises")

    try:
        return await in_thread(work, progress)
    except asyncio.CancelledError:
        if published.is_set():  # the cancel came after the restore point was there
            await asyncio.to_thread(repository.remove_point, inputs.backup_id)
        raise


class _Backup:
    """One attempt; runs in a worker thread."""

    def __init__(
        self,
        repository: Repository,
        inputs: BackupInputs,
        fabric: FabricApi,
        nbd_socket: Path,
        worker: Worker,
        pack_bytes: int,
        published: threading.Event,
    ) -> None:
        self.repository = repository
        self.inputs = inputs
        self.fabric = fabric
        self.nbd_socket = nbd_socket
        self.worker = worker
        self.pack_bytes = pack_bytes
        self.published = published
        self.clock = repository.clock
        self.done_bytes = 0
        self.total_bytes = 0
        self.changed_bytes = 0
        self.stood_on_base = False

    def run(self) -> BackupResult:
        started = self.clock.monotonic()
        done = self._already_done()
        if done is not None:
            return done
        base = self._base_point()
        with ExitStack() as stack:
            lease = stack.enter_context(self.repository.lease("writer", [base] if base else None))
            reader = self.repository.reader()
            source = stack.enter_context(Source())
            writer = stack.enter_context(PackWriter(self.repository, reader.index, lease.id_bytes, self.pack_bytes))
            incarnation = str(self.worker.call(self.fabric.pool_show())["incarnation"])
            snapshots = {disk: self._held_snapshot(stack, snapshot) for disk, snapshot in self.inputs.disks.items()}
            self.total_bytes = sum(int(facts["size_bytes"]) for facts in snapshots.values())
            disks = []
            for disk_id, facts in snapshots.items():
                standing_on = self._usable_base(stack, base, disk_id, incarnation, int(facts["size_bytes"]))
                disks.append(self._disk(disk_id, facts, standing_on, incarnation, source, writer, reader.maps))
            files = {} if self.inputs.tpm is None else {TPM_FILE: self._file(self.inputs.tpm, writer)}
            self.worker.report(self.total_bytes, self.total_bytes, "publishing")
            writer.finish()
            result = BackupResult(
                backup_id=self.inputs.backup_id,
                logical_bytes=sum(disk.logical_bytes for disk in disks),
                changed_bytes=self.changed_bytes,
                read_bytes=source.read_bytes,
                stored_bytes=writer.stored_bytes,
                duration_s=self.clock.monotonic() - started,
                base_backup_id=base.id if base and self.stood_on_base else None,
            )
            self._publish(self._point(disks, files, result), writer.used, lease.check)
        return result

    def _already_done(self) -> BackupResult | None:
        try:
            point = self.repository.point(self.inputs.backup_id)
        except NotFound:
            return None
        if point.vm_id != self.inputs.vm_id:
            raise Conflict("backup.exists", f"restore point {point.id} is of another vm")
        figures = point.statistics
        return BackupResult(
            point.id,
            point.logical_bytes,
            int(figures["changed_bytes"]),
            int(figures["read_bytes"]),
            int(figures["stored_bytes"]),
            float(figures["duration_s"]),
            point.base_backup_id,
        )

    def _base_point(self) -> RestorePoint | None:
        """The base, unless it is gone or damaged: then hashes are compared, which is as right and a little slower."""
        if self.inputs.base_backup_id is None:
            return None
        try:
            return self.repository.point(self.inputs.base_backup_id)
        except (NotFound, Corrupt, Refused):
            return None

    def _held_snapshot(self, stack: ExitStack, snapshot_id: str) -> dict[str, Any]:
        hold_id = new_id()
        stack.callback(lambda: self.worker.call(self.fabric.release(hold_id)))
        self.worker.call(self.fabric.hold(hold_id, snapshot_id))
        return {**self.worker.call(self.fabric.snapshot_show(snapshot_id)), "id": snapshot_id}

    def _usable_base(
        self, stack: ExitStack, base: RestorePoint | None, disk_id: str, incarnation: str, size_bytes: int
    ) -> PointDisk | None:
        """The base's disk when the fabric still holds its snapshot as it was."""
        disk = base.disk(disk_id) if base else None
        if disk is None or disk.incarnation != incarnation or disk.size_bytes > size_bytes:
            return None
        try:
            facts = self._held_snapshot(stack, disk.snapshot_id)
        except NotFound:
            return None
        return disk if int(facts["size_bytes"]) == disk.size_bytes else None

    def _disk(
        self,
        disk_id: str,
        facts: dict[str, Any],
        base: PointDisk | None,
        incarnation: str,
        source: Source,
        writer: PackWriter,
        maps: MapReader,
    ) -> PointDisk:
        size_bytes = int(facts["size_bytes"])
        builder = MapBuilder(
            size_bytes, lambda node: writer.store(node, Kind.NODE), maps, base.map_root if base else None
        )
        self.stood_on_base |= base is not None
        first_byte, start = self.done_bytes, 0
        while True:
            page = self.worker.call(
                self.fabric.changed_blocks(
                    str(facts["id"]), base.snapshot_id if base else None, start_block=start, limit=PAGE_BLOCKS
                )
            )
            self._page(str(facts["id"]), size_bytes, page["blocks"], builder, source, writer, first_byte)
            if page["next"] is None:
                break
            start = int(page["next"])
        self.done_bytes = first_byte + size_bytes
        root = builder.finish()
        return PointDisk(
            disk_id=disk_id,
            size_bytes=size_bytes,
            levels=root.levels,
            root=root.name,
            logical_bytes=(base.logical_bytes if base else 0) + builder.added_blocks * BLOCK,
            incarnation=incarnation,
            snapshot_id=str(facts["id"]),
        )

    def _page(
        self,
        snapshot_id: str,
        size_bytes: int,
        blocks: list[list[Any]],
        builder: MapBuilder,
        source: Source,
        writer: PackWriter,
        first_byte: int,
    ) -> None:
        """Store what a page of changed blocks names, then set the blocks in the map."""
        self.changed_bytes += len(blocks) * BLOCK
        names: dict[int, bytes] = dict.fromkeys((int(block) for block, *_ in blocks), NO_NAME)
        extents: list[Extent] = []
        far: list[int] = []
        name_of = self.repository.key.name
        for block, kind, digest, location in blocks:
            if kind == "extent":
                names[block] = name_of(Kind.EXTENT, bytes.fromhex(digest))
                if location is None:
                    far.append(int(block))
                else:
                    extents.append(extent_of(digest, location, names[block]))
        if extents:
            lacking = writer.lacking(names_array([extent.name for extent in extents]))
            wanted = {extent.name: extent for extent, lacks in zip(extents, lacking, strict=True) if lacks}
            page_bytes = (blocks[-1][0] - blocks[0][0] + 1) * BLOCK
            begun = first_byte + blocks[0][0] * BLOCK
            for count, (extent, encoded) in enumerate(source.read_extents(wanted.values()), 1):
                writer.add(extent.name, encoded, Kind.EXTENT)
                if count % 256 == 0:
                    self.worker.report(begun + page_bytes * count // len(wanted), self.total_bytes, "copying")
        data = [int(block) for block, kind, *_ in blocks if kind == "data"]
        if far:  # in an object store: what the repository lacks is read as a guest would
            lacking = writer.lacking(names_array([names[block] for block in far]))
            data = sorted(data + [block for block, lacks in zip(far, lacking, strict=True) if lacks])
        if data:
            with self._export(snapshot_id) as export:
                for block, content in source.read_blocks(lambda: NbdClient(self.nbd_socket, export), data, size_bytes):
                    self.worker.check()
                    names[block] = NO_NAME if content is None else writer.store(content, Kind.EXTENT)
        for block, name in names.items():
            builder.set(block, name)
        if blocks:
            self.worker.report(first_byte + min(size_bytes, (blocks[-1][0] + 1) * BLOCK), self.total_bytes, "copying")

    @contextmanager
    def _export(self, snapshot_id: str) -> Iterator[str]:
        attachment_id = new_id()
        try:
            attached = self.worker.call(
                self.fabric.attach(attachment_id, snapshot_id=snapshot_id, role="reader", uid=os.geteuid())
            )
            yield str(attached["export"])
        finally:
            self.worker.call(self.fabric.detach(attachment_id))

    def _file(self, content: bytes, writer: PackWriter) -> PointFile:
        parts = [
            writer.store(encode(content[at : at + FILE_PART_BYTES]), Kind.FILE)
            for at in range(0, len(content), FILE_PART_BYTES)
        ]
        return PointFile(len(content), parts)

    def _point(self, disks: list[PointDisk], files: dict[str, PointFile], result: BackupResult) -> RestorePoint:
        inputs = self.inputs
        return RestorePoint(
            id=inputs.backup_id,
            taken_at=inputs.taken_at,
            vm_id=inputs.vm_id,
            vm_name=inputs.vm_name,
            vm=inputs.vm,
            consistency=inputs.consistency,
            base_backup_id=result.base_backup_id,
            disks=disks,
            files=files,
            statistics={
                "changed_bytes": result.changed_bytes,
                "read_bytes": result.read_bytes,
                "stored_bytes": result.stored_bytes,
                "duration_s": result.duration_s,
            },
        )

    def _publish(self, point: RestorePoint, used: set[bytes], check_lease: Callable[[], None]) -> None:
        """Make the point visible. A prune dooms before it looks for points, and this looks for dooms after the point
        is there:
        one of the two always sees the other."""
        self._refuse_doomed(used)
        self.worker.check()
        check_lease()
        self.repository.put_point(point)
        try:
            self._refuse_doomed(used)
            check_lease()
        except (PrunedMeanwhile, Unavailable):
            self.repository.remove_point(point.id)
            raise
        self.published.set()

    def _refuse_doomed(self, used: set[bytes]) -> None:
        if not used:
            return
        index = self.repository.load_index()
        for pack_id in used:
            row = index.row(pack_id)
            if row is None or not index.usable[row]:
                raise PrunedMeanwhile(
                    "repository.pruned_meanwhile",
                    f"pack {pack_id.hex()}, which the backup stands on, is being pruned",
                    remedy="run the backup again when the prune has ended",
                )
