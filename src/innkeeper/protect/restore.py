"""Restore: the disks of a restore point become new fabric disks, every block verified before it is written.

Entries are read in the order of the packs, several reads at once, in windows of 64 MiB of the disk; a name that
occurs often in a window is read once.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from innkeeper.fabric.layout import BLOCK
from innkeeper.fabric.nbd.client import Buffer, NbdClient
from innkeeper.model.problems import Invalid, NotFound
from innkeeper.model.resources import new_id
from innkeeper.protect.bridge import FabricApi, ProgressCallback, Worker, in_thread
from innkeeper.protect.index import Names
from innkeeper.protect.maps import Leaf, taken_places
from innkeeper.protect.pack import check_entry
from innkeeper.protect.points import PointDisk, RestorePoint
from innkeeper.protect.repository import EntryReader, Repository, missing
from innkeeper.protect.sealing import NAME_BYTES, damaged

_THREADS = 2
_SPAN_BYTES = 4 * 1024 * 1024
_GAP_BYTES = 256 * 1024
_WRITE_BLOCKS = 16


class Wanted(NamedTuple):
    """An entry to read: which pack (row of the index) and where in it, and what it must turn out to be."""

    pack: int
    offset: int
    stored: int
    raw: int
    crc: int
    codec: int
    kind: int
    name: bytes


@dataclass(frozen=True, slots=True)
class RestoreResult:
    """What a restore did; bytes of blocks written to the new disks, and of stored bytes read."""

    written_bytes: int
    read_bytes: int
    duration_s: float


async def restore_disks(
    repository: Repository,
    backup_id: str,
    fabric: FabricApi,
    nbd_socket: Path,
    new_disks: Mapping[str, str],
    storage_id: str,
    progress: ProgressCallback | None = None,
) -> RestoreResult:
    """Make the new fabric disks (``new_disks``: disk id in the restore point -> new id) and fill them.

    A new disk must not have been written to before; one that exists with the right size is taken (a repeated step).
    When it fails or is cancelled the new disks are the caller's to remove. Raises ``NotFound``
    (``backup.not_found``), ``Invalid`` (``backup.disk``), ``Corrupt`` (``repository.corrupt``,
    ``repository.incomplete``), ``Unavailable`` (``nbd.connection``) and what the fabric raises.
    """

    def work(worker: Worker) -> RestoreResult:
        point = repository.point(backup_id)
        with repository.lease("reader", [point]):
            return _restore(worker, repository, point, fabric, nbd_socket, dict(new_disks), storage_id)

    return await in_thread(work, progress)


def read_file(repository: Repository, point: RestorePoint, name: str) -> bytes | None:
    """A small file of the restore point, such as ``tpm.tar``; ``None`` when it has none. Raises ``Corrupt``."""
    file = point.files.get(name)
    if file is None:
        return None
    reader = repository.reader()
    content = b"".join(reader.read(part) for part in file.parts)
    if len(content) != file.size_bytes:
        raise damaged(f"points/{point.id}", 0, f"its file {name} does not have the length that it should")
    return content


def _restore(
    worker: Worker,
    repository: Repository,
    point: RestorePoint,
    fabric: FabricApi,
    nbd_socket: Path,
    new_disks: dict[str, str],
    storage_id: str,
) -> RestoreResult:
    started = repository.clock.monotonic()
    for disk_id in new_disks:
        if point.disk(disk_id) is None:
            raise Invalid("backup.disk", f"restore point {point.id} has no disk {disk_id}")
    disks = [disk for disk in point.disks if disk.disk_id in new_disks]
    total_bytes = sum(disk.logical_bytes for disk in disks)
    fetcher = Fetcher(repository)
    written_bytes = 0
    with ExitStack() as stack:
        stack.callback(fetcher.close)
        for disk in disks:
            new_disk = new_disks[disk.disk_id]
            worker.call(fabric.disk_create(new_disk, disk.size_bytes, storage_id))
            with _writer(worker, fabric, nbd_socket, new_disk) as nbd:
                for leaf in fetcher.reader.maps.walk(disk.map_root):
                    written_bytes += _write_leaf(worker, fetcher, disk, leaf, nbd)
                    worker.report(written_bytes, total_bytes, "restoring")
                nbd.flush()
    return RestoreResult(written_bytes, fetcher.read_bytes, repository.clock.monotonic() - started)


@contextmanager
def _writer(worker: Worker, fabric: FabricApi, nbd_socket: Path, disk_id: str) -> Iterator[NbdClient]:
    attachment_id = new_id()
    try:
        attached = worker.call(fabric.attach(attachment_id, disk_id=disk_id, role="writer", uid=os.geteuid()))
        with NbdClient(nbd_socket, str(attached["export"])) as nbd:
            yield nbd
    finally:
        worker.call(fabric.detach(attachment_id))


def _write_leaf(worker: Worker, fetcher: Fetcher, disk: PointDisk, leaf: Leaf, nbd: NbdClient) -> int:
    places = np.flatnonzero(taken_places(leaf.names)).tolist()
    contents = fetcher.fetch(leaf.names[places], worker)
    flat = leaf.names.tobytes()
    written = 0
    at = 0
    while at < len(places):
        end = at + 1
        while end < len(places) and end - at < _WRITE_BLOCKS and places[end] == places[end - 1] + 1:
            end += 1
        parts: list[Buffer] = [
            contents[flat[place * NAME_BYTES : (place + 1) * NAME_BYTES]] for place in places[at:end]
        ]
        offset = (leaf.first_block + places[at]) * BLOCK
        beyond = offset + sum(map(len, parts)) - disk.size_bytes
        if beyond > 0:
            parts[-1] = parts[-1][:-beyond]
        nbd.submit_write(offset, parts)
        written += sum(map(len, parts))
        worker.check()
        at = end
    nbd.settle()
    return written


class Fetcher:
    """Reads many entries, in the order of the packs, verified."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository
        self.reader: EntryReader = repository.reader()
        self._executor = ThreadPoolExecutor(_THREADS, thread_name_prefix="restore-read")
        self.read_bytes = 0

    def close(self) -> None:
        self._executor.shutdown(wait=True, cancel_futures=True)

    def fetch(self, names: Names, worker: Worker) -> dict[bytes, bytes]:
        """Name -> plaintext for every one of ``names``, shape (n, 32).

        Raises ``Corrupt`` (``repository.corrupt``, ``repository.incomplete``).
        """
        unique = np.unique(names, axis=0)
        try:
            return self._fetch(unique, worker)
        except NotFound:
            self.reader.reload()  # a prune moved entries into other packs meanwhile
            try:
                return self._fetch(unique, worker)
            except NotFound as gone:
                raise missing(unique[0].tobytes()) from gone

    def _fetch(self, names: Names, worker: Worker) -> dict[bytes, bytes]:
        found = self.reader.index.find(names)
        if len(names) and found.pack.min() < 0:
            self.reader.reload()
            found = self.reader.index.find(names)
            if found.pack.min() < 0:
                raise missing(names[int(np.argmin(found.pack))].tobytes())
        wanted = [
            Wanted(pack, int(row["offset"]), int(row["stored"]), int(row["raw"]), int(row["crc"]), int(row["codec"]),
                   int(row["kind"]), row["name"].tobytes())
            for pack, row in zip(found.pack.tolist(), found.records, strict=True)
        ]  # fmt: skip
        wanted.sort()
        result: dict[bytes, bytes] = {}
        for part in self._executor.map(self._read_span, _spans(wanted)):
            worker.check()
            result.update(part)
        return result

    def _read_span(self, span: list[Wanted]) -> dict[bytes, bytes]:
        start, end = span[0].offset, max(entry.offset + entry.stored for entry in span)
        blob_name = self.reader.index.name_of(span[0].pack)
        data = self._repository.blobs.get(blob_name, start, end - start)
        self.read_bytes += len(data)
        result = {}
        for entry in span:
            stored = data[entry.offset - start : entry.offset - start + entry.stored]
            checked = check_entry(
                self._repository.key, entry.name, entry.kind, stored, entry.crc, entry.codec, entry.raw
            )
            if isinstance(checked, str):
                raise damaged(blob_name, entry.offset, checked)
            result[entry.name] = checked
        return result


def _spans(wanted: list[Wanted]) -> list[list[Wanted]]:
    """Neighbours of one pack together, each read at most about 4 MiB."""
    result: list[list[Wanted]] = []
    for entry in wanted:
        last = result[-1] if result else None
        if (
            last is not None
            and last[0].pack == entry.pack
            and entry.offset - (last[-1].offset + last[-1].stored) <= _GAP_BYTES
            and entry.offset + entry.stored - last[0].offset <= _SPAN_BYTES
        ):
            last.append(entry)
        else:
            result.append([entry])
    return result
