"""Taking a stranger's disk image: look at its header, compare its checksum, convert it in a jail.

The format is what the caller says or what the first bytes say at this one moment; from then on it is explicit, and
nothing probes the content again (a guest may write another format's header onto its raw disk: CVE-2026-24708).
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import signal
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

from innkeeper.compute.images import compression, qcow2
from innkeeper.compute.images.jail import Jail, conversion, jailed
from innkeeper.compute.images.scratch import working_directory
from innkeeper.model.problems import Corrupt, Failed, Invalid, NoSpace, NotFound, Problem, Refused
from innkeeper.system import process

_SECTOR_BYTES = 512
_FOREIGN_MAGICS = {
    b"KDMV": "VMDK",
    b"COWD": "VMDK",
    b"# Disk DescriptorFile": "VMDK",
    b"vhdxfile": "VHDX",
    b"conectix": "VHD",
    b"QED\0": "QED",
    b"LUKS\xba\xbe": "LUKS",
    b"WithoutFreeSpace": "Parallels",
    b"WithouFreSpacExt": "Parallels",
    b"<<< Oracle VM VirtualBox Disk Image": "VDI",
    b"\xfd7zXZ\0": "xz (name it .xz)",
    b"\x28\xb5\x2f\xfd": "zstd (name it .zst)",
    b"\x1f\x8b": "gzip",
    b"PK\x03\x04": "zip",
}
_PROGRESS = re.compile(rb"\((\d+\.\d+)/100%\)")
_ROOM_FOR_ERRORS = 2000


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """``format`` is ``raw`` or ``qcow2``; ``virtual_size_bytes`` is the disk's size, whole sectors."""

    format: str
    virtual_size_bytes: int


def inspect(path: Path, image_format: str | None = None) -> ImageFacts:
    """What the file at ``path`` holds; ``image_format`` None decides by its first bytes.

    A compressed file is read to its end. Raises ``NotFound`` (``image.no_file``), ``Refused`` (``image.hostile``),
    ``Invalid`` (``image.unsupported``), ``Corrupt`` (``image.corrupt``).
    """
    with _opened(path) as file:
        head, total = _measure(path, file)
    if total == 0:
        raise Corrupt("image.corrupt", f"{path.name} is empty", remedy="fetch the file again")
    image_format = image_format or _recognise(path, head)
    if image_format == "qcow2":
        return ImageFacts("qcow2", _whole_sectors(qcow2.check_header(head, total).virtual_size_bytes))
    if image_format != "raw":
        raise Invalid("image.unsupported", f"format {image_format} cannot be imported", remedy="use raw or qcow2")
    return ImageFacts("raw", _whole_sectors(total))


def verify_checksum(path: Path, expected: str) -> None:
    """Compare the file as given (still compressed, if it is) with a SHA-256 or SHA-512 in hexadecimal.

    Raises ``Corrupt`` (``image.checksum``), ``Invalid`` (``image.checksum_form``), ``NotFound`` (``image.no_file``).
    """
    algorithm = {64: "sha256", 128: "sha512"}.get(len(expected))
    if algorithm is None or not re.fullmatch(r"[0-9a-fA-F]+", expected):
        raise Invalid("image.checksum_form", "a checksum is 64 (SHA-256) or 128 (SHA-512) hexadecimal digits")
    with _opened(path) as file:
        found = hashlib.file_digest(file, algorithm).hexdigest()
    if found != expected.lower():
        raise Corrupt(
            "image.checksum",
            f"{path.name} has another checksum than expected",
            cause=f"{algorithm} is {found}, expected {expected.lower()}",
            remedy="fetch the file again from a source that you trust",
        )


async def convert_to_nbd(
    path: Path,
    image_format: str,
    *,
    socket: Path,
    export: str,
    uid: int,
    progress: Callable[[float], None] = lambda fraction: None,
    scratch: Path | None = None,
    timeout_s: float = 6 * 3600,
) -> None:
    """Write the content of ``path`` to the new, all-zero NBD ``export`` at ``socket``; zeros do not travel.

    The converter runs as ``uid``, which the export must admit. ``scratch`` (default: the system's temporary directory)
    takes a sparse copy where the file is compressed or not readable by everybody. Cancelling kills the converter.
    Raises as ``inspect`` does, ``Failed`` (``image.convert_failed``, ``image.convert_timeout``), ``NoSpace``
    (``image.no_space``).
    """
    if not re.fullmatch(r"[A-Za-z0-9_.-]+", export):
        raise Invalid("image.export", f"{export!r} is not an export's name")
    with working_directory(scratch or Path(tempfile.gettempdir()), "import") as work:
        source = await asyncio.to_thread(_readable_source, path, uid, work)
        # The header is checked again on what is really converted: the file may have been swapped since.
        await asyncio.to_thread(inspect, source, image_format)
        async with _jail(work, source, socket, uid) as jail:
            command = jailed(jail, conversion(image_format, export), root_is_mount_point=_root_is_mount_point())
            await _run(command, work / "log", progress, timeout_s)


def _opened(path: Path) -> BufferedReader:
    try:
        if not path.is_file():
            raise NotFound("image.no_file", f"there is no file {path}", remedy="give the path of a file on this host")
        return path.open("rb")
    except OSError as refused:
        raise Failed("image.unreadable", f"{path} cannot be read", cause=str(refused)) from refused


def _measure(path: Path, file: BufferedReader) -> tuple[bytes, int]:
    """The first ``qcow2.HEAD_BYTES`` of the (decompressed) content and its length."""
    if not compression.is_compressed(path):
        return file.read(qcow2.HEAD_BYTES), os.fstat(file.fileno()).st_size
    head, total = b"", 0
    for chunk in compression.chunks(path, file):
        if len(head) < qcow2.HEAD_BYTES:
            head = (head + chunk)[: qcow2.HEAD_BYTES]
        total += len(chunk)
        _check_bound(path, total)
    return head, total


def _check_bound(path: Path, total: int) -> None:
    if total > qcow2.MAX_VIRTUAL_BYTES:
        raise Refused("image.hostile", f"{path.name} unpacks to more than 64 TiB", remedy="do not use this file")


def _recognise(path: Path, head: bytes) -> str:
    if head.startswith(qcow2.MAGIC):
        return "qcow2"
    for magic, name in _FOREIGN_MAGICS.items():
        if head.startswith(magic):
            raise Invalid(
                "image.unsupported",
                f"{path.name} looks like {name}, which cannot be imported",
                remedy="convert it to qcow2 first; or say --format raw if it is a raw disk that only looks so",
            )
    return "raw"


def _whole_sectors(size_bytes: int) -> int:
    return -(-size_bytes // _SECTOR_BYTES) * _SECTOR_BYTES


def _readable_source(path: Path, uid: int, work: Path) -> Path:
    """``path`` itself when any uid may read it, else a copy in ``work`` that ``uid`` owns: decompressed and sparse."""
    with _opened(path) as file:
        facts = os.fstat(file.fileno())
        if not compression.is_compressed(path) and facts.st_mode & 0o004:
            return path
        copy = work / "source"
        try:
            with copy.open("xb") as target:
                os.fchmod(target.fileno(), 0o400)
                os.fchown(target.fileno(), uid, uid)
                total = 0
                for chunk in compression.chunks(path, file):
                    if chunk.count(0) == len(chunk):
                        target.seek(len(chunk), os.SEEK_CUR)
                    else:
                        target.write(chunk)
                    total += len(chunk)
                    _check_bound(path, total)
                target.truncate(total)
        except OSError as full:
            raise NoSpace(
                "image.no_space",
                f"a copy of {path.name} could not be written",
                cause=str(full),
                remedy=f"free disk space in {work.parent}",
            ) from full
    return copy


def _root_is_mount_point() -> bool:
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    return any(line.split()[4] == "/" for line in mounts)


@asynccontextmanager
async def _jail(work: Path, source: Path, socket: Path, uid: int) -> AsyncIterator[Jail]:
    root = work / "jail"
    root.mkdir()
    try:
        yield Jail(root, source, socket, uid)
    finally:
        if root.is_mount():
            await process.run_async(["umount", "--lazy", "--recursive", str(root)], check=False)


async def _run(command: tuple[str, ...], log: Path, progress: Callable[[float], None], timeout_s: float) -> None:
    started = process.spawn(command, log=log)
    try:
        async with asyncio.timeout(timeout_s):
            while started.poll() is None:
                await asyncio.sleep(0.1)
                _report(log, progress)
    except TimeoutError as late:
        raise Failed(
            "image.convert_timeout", f"the conversion took longer than {timeout_s:.0f} s", remedy="check the image file"
        ) from late
    finally:
        if started.poll() is None:
            os.killpg(started.pid, signal.SIGKILL)
            await asyncio.to_thread(started.wait)
    if started.returncode != 0:
        raise _conversion_failed(log, started.returncode)
    progress(1.0)


def _report(log: Path, progress: Callable[[float], None]) -> None:
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 200))
        seen = _PROGRESS.findall(file.read())
    if seen:
        progress(float(seen[-1]) / 100)


def _conversion_failed(log: Path, status: int) -> Problem:
    lines = log.read_bytes()[-_ROOM_FOR_ERRORS:].replace(b"\r", b"\n").decode(errors="replace").splitlines()
    text = "\n".join(line.strip() for line in lines if line.strip() and not _PROGRESS.search(line.encode()))
    if "No space left" in text:
        return NoSpace("image.no_space", "the pool is full", cause=text, remedy="free space: inn disk rm")
    return Failed(
        "image.convert_failed",
        f"the image could not be converted (status {status})",
        cause=text or None,
        remedy="the file may be damaged: compare its checksum, or try qemu-img check on it",
    )
