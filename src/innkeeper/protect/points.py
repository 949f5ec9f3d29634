"""Restore points: the documents that say what a vm was at one instant."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from innkeeper.protect.maps import MapRoot

Consistency = Literal["application", "crash", "offline"]


@dataclass(frozen=True, slots=True)
class PointDisk:
    """A disk of a restore point: its map, and the fabric snapshot that it was read from."""

    disk_id: str
    size_bytes: int
    levels: int
    root: bytes | None
    logical_bytes: int
    incarnation: str
    snapshot_id: str

    @property
    def map_root(self) -> MapRoot:
        return MapRoot(self.root, self.levels)


@dataclass(frozen=True, slots=True)
class PointFile:
    """A small file kept with a restore point, cut into entries."""

    size_bytes: int
    parts: list[bytes]


@dataclass(frozen=True, slots=True)
class RestorePoint:
    """What one backup of one vm left: enough to make the vm again."""

    id: str
    taken_at: datetime
    vm_id: str
    vm_name: str
    vm: dict[str, Any]
    consistency: Consistency
    base_backup_id: str | None
    disks: list[PointDisk]
    files: dict[str, PointFile] = field(default_factory=dict)
    statistics: dict[str, float] = field(default_factory=dict)

    @property
    def logical_bytes(self) -> int:
        return sum(disk.logical_bytes for disk in self.disks)

    def disk(self, disk_id: str) -> PointDisk | None:
        return next((disk for disk in self.disks if disk.disk_id == disk_id), None)

    def as_document(self) -> dict[str, Any]:
        """JSON form."""
        return {
            "id": self.id,
            "taken_at": self.taken_at.isoformat(),
            "vm_id": self.vm_id,
            "vm_name": self.vm_name,
            "vm": self.vm,
            "consistency": self.consistency,
            "base_backup_id": self.base_backup_id,
            "disks": [
                {
                    "disk_id": disk.disk_id,
                    "size_bytes": disk.size_bytes,
                    "levels": disk.levels,
                    "root": disk.root.hex() if disk.root else None,
                    "logical_bytes": disk.logical_bytes,
                    "fabric": {"incarnation": disk.incarnation, "snapshot_id": disk.snapshot_id},
                }
                for disk in self.disks
            ],
            "files": {
                name: {"size_bytes": file.size_bytes, "parts": [part.hex() for part in file.parts]}
                for name, file in self.files.items()
            },
            "statistics": self.statistics,
        }

    @classmethod
    def of_document(cls, document: dict[str, Any]) -> RestorePoint:
        """The point of ``as_document``; the document's seal has been checked."""
        disks = [
            PointDisk(
                disk_id=disk["disk_id"],
                size_bytes=disk["size_bytes"],
                levels=disk["levels"],
                root=bytes.fromhex(disk["root"]) if disk["root"] else None,
                logical_bytes=disk["logical_bytes"],
                incarnation=disk["fabric"]["incarnation"],
                snapshot_id=disk["fabric"]["snapshot_id"],
            )
            for disk in document["disks"]
        ]
        files = {
            name: PointFile(file["size_bytes"], [bytes.fromhex(part) for part in file["parts"]])
            for name, file in document["files"].items()
        }
        return cls(
            id=document["id"],
            taken_at=datetime.fromisoformat(document["taken_at"]),
            vm_id=document["vm_id"],
            vm_name=document["vm_name"],
            vm=document["vm"],
            consistency=document["consistency"],
            base_backup_id=document["base_backup_id"],
            disks=disks,
            files=files,
            statistics=document["statistics"],
        )
