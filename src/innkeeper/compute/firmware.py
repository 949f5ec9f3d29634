"""UEFI firmware files, and the TPM of a guest: its process (swtpm) and its state as one archive."""

from __future__ import annotations

import io
import os
import shutil
import tarfile
from dataclasses import dataclass
from pathlib import Path

from innkeeper.compute.adoption import HeldProcess
from innkeeper.model.problems import Corrupt, Failed, Refused, Unavailable
from innkeeper.system import process

_DIRECTORIES = (Path("/usr/share/OVMF"), Path("/usr/share/edk2/x64"), Path("/usr/share/edk2/ovmf"))
_MAX_TPM_BYTES = 16 * 1024 * 1024
_TPM_FILES = 16
_FORMAT_NAME = "format"
_FORMAT = b"1\n"


@dataclass(frozen=True, slots=True)
class UefiFirmware:
    """The code image, mapped read-only, and the template of the variables that a new vm starts with."""

    code: Path
    variables_template: Path


def find_uefi(*, secure_boot: bool, directories: tuple[Path, ...] = _DIRECTORIES) -> UefiFirmware:
    """The 4 MB OVMF build; with ``secure_boot`` the one whose variables hold Microsoft's keys.

    Raises ``Unavailable`` (``uefi.missing``).
    """
    flavour = ".ms" if secure_boot else ""
    for directory in directories:
        found = UefiFirmware(directory / f"OVMF_CODE_4M{flavour}.fd", directory / f"OVMF_VARS_4M{flavour}.fd")
        if found.code.exists() and found.variables_template.exists():
            return found
    raise Unavailable("uefi.missing", "no UEFI firmware is installed", remedy="install the package ovmf")


# --- TPM -------------------------------------------------------------------------------------------------------------


def tpm_command(socket: Path) -> list[str]:
    """The arguments of a guest's swtpm, to be run in its state's directory. It ends when QEMU closes the connection.

    The state is named relative to it, because the vm's uid may not be allowed to walk the path that leads there.
    """
    return [
        process.which("swtpm"),
        "socket",
        "--tpm2",
        "--tpmstate",
        "dir=.,mode=0600",
        "--ctrl",
        f"type=unixio,path={socket},mode=0600",
        "--terminate",
        "--seccomp",
        "action=kill",
    ]


async def start_tpm(state: Path, socket: Path, uid: int, log: Path) -> HeldProcess:
    """Start swtpm under the vm's uid, its state in ``state`` (made when absent).

    Raises ``Failed`` (``tpm.start_failed``), ``Unavailable`` (``tool.missing``).
    """
    command = tpm_command(socket)
    state.mkdir(mode=0o700, exist_ok=True)
    for path in (state, *state.iterdir()):
        os.chown(path, uid, uid)
    held = HeldProcess.of_child(process.spawn([*unprivileged(uid), *command], cwd=state, log=log))
    for _ in range(200):
        if socket.exists():
            return held
        if await held.wait(0.02):
            break
    await held.fence()
    raise Failed("tpm.start_failed", "the vm's TPM did not start", cause=tail(log), remedy=f"see {log}")


def unprivileged(uid: int) -> list[str]:
    """The arguments that run what follows under ``uid`` for good: no groups, no capabilities, no way back."""
    return [
        process.which("setpriv"),
        f"--reuid={uid}",
        f"--regid={uid}",
        "--clear-groups",
        "--no-new-privs",
        "--bounding-set=-all",
        "--inh-caps=-all",
        "--ambient-caps=-all",
        "--",
    ]


def tail(log: Path, since: int = 0, limit: int = 2000) -> str:
    """The end of a log file, at most ``limit`` bytes of what came after position ``since``."""
    try:
        with log.open("rb") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(since, end - limit))
            return file.read(limit).decode(errors="replace").strip()
    except OSError:
        return ""


def pack_tpm(state: Path) -> bytes:
    """The TPM's state as a tar archive, the same bytes for the same state; empty when there is none.

    Its first member is ``format`` and holds the version, ``1``; the others are swtpm's files. Only while the guest has
    no process, or is stopped.
    """
    if not state.is_dir():
        return b""
    files = [path for path in sorted(state.iterdir()) if path.is_file() and not path.is_symlink()]
    contents = {path.name: path.read_bytes() for path in files if path.name not in (".lock", _FORMAT_NAME)}
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in ({_FORMAT_NAME: _FORMAT} | contents).items():
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(content), 0o600
            tar.addfile(member, io.BytesIO(content))
    return archive.getvalue()


def unpack_tpm(archive: bytes, state: Path, uid: int) -> None:
    """Put the state back in place of what is there; an empty archive leaves no state. The guest has no process.

    Raises ``Corrupt`` (``tpm.archive``) for anything but a few plain files, ``Refused`` (``tpm.newer``) for a format of
    a later program; then nothing has changed.
    """
    files = _tpm_files(archive) if archive else {}
    fresh = state.with_name(state.name + ".new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(mode=0o700, parents=True)
    for name, data in files.items():
        (fresh / name).write_bytes(data)
        (fresh / name).chmod(0o600)
    for path in (*fresh.iterdir(), fresh):
        os.chown(path, uid, uid)
    shutil.rmtree(state, ignore_errors=True)
    fresh.rename(state)


def _tpm_files(archive: bytes) -> dict[str, bytes]:
    """The files in an archive of ``pack_tpm``. Raises what ``unpack_tpm`` does."""
    files: dict[str, bytes] = {}
    broken = "the archive of the TPM's state is damaged"
    try:
        with tarfile.open(fileobj=io.BytesIO(archive), mode="r:") as tar:
            for member in tar:
                plain = member.isreg() and "/" not in member.name and not member.name.startswith(".")
                if not plain or member.size > _MAX_TPM_BYTES or len(files) > _TPM_FILES:
                    raise Corrupt("tpm.archive", broken, cause=f"member {member.name[:80]!r}")
                content = tar.extractfile(member)
                files[member.name] = content.read() if content else b""
    except tarfile.TarError as unreadable:
        raise Corrupt("tpm.archive", broken, cause=str(unreadable)) from unreadable
    version = files.pop(_FORMAT_NAME, b"")
    if not version.strip().isdigit():
        raise Corrupt("tpm.archive", broken, cause="it does not say its format")
    if version != _FORMAT:
        raise Refused(
            "tpm.newer",
            f"the TPM's state is kept in format {int(version)}, this program knows {int(_FORMAT)}",
            remedy="install the version of Innkeeper that wrote it, or a newer one",
        )
    return files


async def stop_tpm(held: HeldProcess, timeout_s: float = 5.0) -> None:
    """Wait for swtpm to end after its QEMU; kill it when it does not."""
    if not await held.wait(timeout_s):
        await held.fence()
