"""Where an inn keeps what: the one place that knows its directories, sockets and kernel names.

An inn is one state directory. ``inn.json`` there gives it a short id that every name in the kernel carries, so that two
inns share a machine.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import string
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from innkeeper.model.problems import Corrupt, Failed, Unavailable

DEFAULT_STATE = Path("/var/lib/innkeeper")
RUN_ROOT = Path("/run/innkeeper")
FORMAT_VERSION = 1
_DIGITS = string.digits + string.ascii_lowercase
VM_UIDS = 1000
"""Uids in an inn's block, one for each vm."""


def _base36(number: int) -> str:
    digits = ""
    while True:
        number, rest = divmod(number, 36)
        digits = _DIGITS[rest] + digits
        if number == 0:
            return digits


@dataclass(frozen=True, slots=True)
class Paths:
    """All paths and kernel names of one inn."""

    state: Path
    inn_id: str
    inn_uuid: str

    @classmethod
    def locate(cls, state_dir: str | os.PathLike[str] | None = None) -> Path:
        """The state directory meant: the argument, else ``$INNKEEPER_STATE``, else ``/var/lib/innkeeper``."""
        return Path(state_dir or os.environ.get("INNKEEPER_STATE") or DEFAULT_STATE).absolute()

    @classmethod
    def open(cls, state_dir: str | os.PathLike[str] | None = None, *, create: bool = False) -> Paths:
        """The inn at ``state_dir``; with ``create`` it is founded when absent.

        Raises ``Unavailable`` (``inn.absent``), ``Corrupt`` (``inn.format``), ``Failed`` (``inn.unwritable``).
        """
        state = cls.locate(state_dir)
        identity = state / "inn.json"
        if not identity.exists():
            if not create:
                raise Unavailable("inn.absent", f"there is no inn at {state}", remedy="run 'inn up' to found one")
            _found(state, identity)
        try:
            facts = json.loads(identity.read_text())
            if facts["format"] != FORMAT_VERSION:
                raise Corrupt(
                    "inn.format",
                    f"{identity} has format {facts['format']}, this program knows {FORMAT_VERSION}",
                    remedy="install the version of Innkeeper that wrote it, or a newer one",
                )
            return cls(state, facts["id"], facts["uuid"])
        except (OSError, ValueError, KeyError, TypeError) as unreadable:
            raise Corrupt(
                "inn.format",
                f"{identity} cannot be read",
                cause=repr(unreadable),
                remedy="put it back from a backup: every name that the inn has in the kernel comes from it",
            ) from unreadable

    @property
    def run(self) -> Path:
        """Sockets and pid files."""
        return RUN_ROOT / self.inn_id

    @property
    def api_socket(self) -> Path:
        return self.run / "api.sock"

    @property
    def fabric_socket(self) -> Path:
        return self.run / "fabric.sock"

    @property
    def nbd_socket(self) -> Path:
        return self.run / "nbd.sock"

    @property
    def database(self) -> Path:
        return self.state / "state.db"

    @property
    def journal(self) -> Path:
        """What happened, for `inn event`."""
        return self.state / "journal.db"

    @property
    def daemon_lock(self) -> Path:
        return self.state / "daemon.lock"

    @property
    def pool(self) -> Path:
        return self.state / "fabric"

    @property
    def pool_list(self) -> Path:
        """Which pools there are besides."""
        return self.state / "pools.json"

    def device(self, device_id: str) -> Path:
        """Where the file system of a pool's block device is mounted."""
        return self.state / "devices" / device_id

    @property
    def logs(self) -> Path:
        return self.state / "log"

    @property
    def cache(self) -> Path:
        return self.state / "cache"

    def vm_state(self, vm_id: str) -> Path:
        """TPM state, saved memory and logs of a vm."""
        return self.state / "vms" / vm_id

    def vm_run(self, vm_id: str) -> Path:
        """Sockets of a running vm."""
        return self.run / "vms" / vm_id[:8]

    def checkpoint(self, checkpoint_id: str) -> Path:
        return self.state / "checkpoints" / checkpoint_id

    def bridge(self, number: int) -> str:
        """The bridge device of the switch with that number."""
        return f"inbr-{self.inn_id}{_base36(number)}"

    def tap(self, number: int) -> str:
        """The tap device of the nic with that number."""
        return f"intp-{self.inn_id}{_base36(number)}"

    @property
    def nft_table(self) -> str:
        return f"inn_{self.inn_id}"

    @property
    def cgroup(self) -> str:
        return f"innkeeper-{self.inn_id}"

    @property
    def first_uid(self) -> int:
        """First of the block of ``VM_UIDS`` uids for vms."""
        return 200_000 + VM_UIDS * (int.from_bytes(self._digest()[:4], "big") % 500)

    @property
    def mac_prefix(self) -> str:
        """The first four octets of every mac of this inn, such as ``52:54:3f:a1``."""
        digest = self._digest()
        return f"52:54:{digest[4]:02x}:{digest[5]:02x}"

    def _digest(self) -> bytes:
        return hashlib.sha256(self.inn_uuid.encode()).digest()


def _found(state: Path, identity: Path) -> None:
    """Make the directory and its identity; a crash leaves either no identity or a whole one."""
    taken = {entry.name for entry in RUN_ROOT.iterdir()} if RUN_ROOT.is_dir() else set()
    while (inn_id := "".join(secrets.choice(_DIGITS) for _ in range(4))) in taken:
        pass
    facts = {"format": FORMAT_VERSION, "id": inn_id, "uuid": str(uuid4())}
    try:
        state.mkdir(mode=0o711, parents=True, exist_ok=True)
        fresh = identity.with_suffix(".new")
        with fresh.open("w") as file:
            json.dump(facts, file)
            file.flush()
            os.fsync(file.fileno())
        fresh.rename(identity)
    except OSError as refused:
        raise Failed(
            "inn.unwritable",
            f"{state} cannot be written",
            cause=str(refused),
            remedy="run as root, or choose another --state-dir",
        ) from refused
