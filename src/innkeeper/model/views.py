"""Answers that are not stored: plans, results, details joined from several places, and events."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import ConfigDict, Field

from innkeeper.model.guards import Guards
from innkeeper.model.host_firewall import HostFirewall
from innkeeper.model.overlay import LookupRecord
from innkeeper.model.resources import Acl, Disk, Nic, Part, Pool, Qos, Storage, Switch, Tier, Uuid, Vm


class Plan(Part):
    """What a request would do (``--dry-run``); nothing has been done.

    ``steps`` are sentences for people; ``diff`` is a unified text diff of what is compiled (nft rules, DHCP
    configuration) where there is one.
    """

    summary: str
    steps: list[str] = Field(default_factory=list)
    diff: str = ""


class PrunePlan(Plan):
    """What a retention policy keeps and removes; each entry is ``{id, name, reason}``."""

    keep: list[dict[str, str]] = Field(default_factory=list)
    remove: list[dict[str, str]] = Field(default_factory=list)


class ExecResult(Part):
    """How a command in a guest ended. The outputs are base64 in JSON; ``truncated`` when the agent cut them."""

    model_config = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64")

    exit_code: int | None = None
    signal: int | None = None
    stdout: bytes = b""
    stderr: bytes = b""
    truncated: bool = False


class VmDetail(Vm):
    """A vm with its cards and where its sockets are: ``serial``, ``vnc``, ``qmp`` while it has a process."""

    nics: list[Nic] = Field(default_factory=list)
    disk_names: dict[str, str] = Field(default_factory=dict)
    """disk id -> name."""
    iso_name: str | None = None
    sockets: dict[str, str] = Field(default_factory=dict)


class Lease(Part):
    """A DHCP lease that a switch gave."""

    address: str
    mac: str
    hostname: str = ""
    expires_at: datetime | None = None


class Figures(Part):
    """What disks hold, and what that takes.

    ``data_bytes`` is what of them is no hole; ``distinct_bytes`` the blocks that hold it, equal ones counted once;
    ``stored_bytes`` what those and their maps take; ``snapshot_bytes`` what is stored besides, for their snapshots;
    ``undrained_bytes`` what waits in the log. ``dedup_ratio`` is data over distinct (clones count as equal blocks),
    ``compression_ratio`` what compression makes of the distinct ones.
    """

    data_bytes: int
    distinct_bytes: int
    stored_bytes: int
    snapshot_bytes: int
    undrained_bytes: int
    dedup_ratio: float
    compression_ratio: float


class DiskPlace(Part):
    """How much of what a disk reaches is on a device; what it shares with others counts whole."""

    device: str
    path: str
    tier: Tier
    stored_bytes: int
    groups: int


class DiskActivity(Part):
    """What a disk's user asked for since the fabric started. ``waits``: how often a QoS policy, or the log, held
    requests back; latencies are means, in ms."""

    reads: int
    read_bytes: int
    writes: int
    written_bytes: int
    flushes: int
    waits: int
    read_ms: float
    write_ms: float
    flush_ms: float


class DiskDetail(Disk):
    """A disk with what it holds and takes, and where; None while it is being made, or was not used.

    ``promised_bytes`` is what is kept free for a thick one; ``log_room_bytes`` what it may still write before the log
    holds it back. ``figures.undrained_bytes`` is what of it waits there.
    """

    figures: Figures | None = None
    places: list[DiskPlace] = Field(default_factory=list)
    promised_bytes: int = 0
    log_room_bytes: int = 0
    activity: DiskActivity | None = None


class StorageDetail(Storage):
    """A storage with the disks that live under it: how many, the sum of their sizes, what they hold and take."""

    disks: int = 0
    logical_bytes: int = 0
    figures: Figures


class QosFlow(Part):
    """What is under a policy now: a disk, or all of an aggregated one's (``disk_id`` None), and what it takes.

    ``minimum_missed``: the minimum cannot be held, though others were held back for it.
    """

    disk_id: Uuid | None
    iops: float
    minimum_missed: bool


class QosDetail(Qos):
    """A QoS policy with the disks under it, and those of them that are in use."""

    disk_ids: list[Uuid] = Field(default_factory=list)
    flows: list[QosFlow] = Field(default_factory=list)


class CuratorFacts(Part):
    """Background work on what is stored. ``left_*``: what of the present pass is to be packed anew; the rest since the
    fabric started."""

    paused: bool
    pass_at: datetime | None = None
    left_groups: int = 0
    left_bytes: int = 0
    groups_recoded: int = 0
    recoded_bytes: int = 0


class HotGroup(Part):
    """A group that is read much: ``touches`` is in how many spans of 10 s of the last 10 minutes, 3 at most."""

    number: int
    device: str
    tier: Tier
    size_bytes: int
    touches: int
    disk_ids: list[Uuid] = Field(default_factory=list)


class CacheFacts(Part):
    """The content cache of a pool: what it holds, and what it has done since the fabric started.

    ``hits``: extents that were in memory; ``misses``: extents that were read from their groups and decoded.
    """

    limit_bytes: int
    used_bytes: int
    single_touch_bytes: int
    multi_touch_bytes: int
    hits: int
    misses: int
    evictions: int


class PoolDevice(Part):
    """A directory, a block device (``source``, mounted at ``path``) or an object store of a pool. ``home`` is the
    pool's own directory, which has the log besides; ``draining`` ones are given up.

    ``total_bytes`` and ``free_bytes`` are of its file system (0 of a store), ``group_bytes`` what the pool has there.
    ``copies`` on a fast device are of what is hot on slow ones: no data, they may go at any time. ``away``: a store
    that does not answer as it should, ``problem`` says how.
    """

    id: str
    path: str
    tier: Tier
    state: Literal["online", "draining"]
    total_bytes: int
    free_bytes: int
    groups: int
    group_bytes: int
    copies: int = 0
    copy_bytes: int = 0
    kind: Literal["directory", "block", "object"] = "directory"
    source: str = ""
    endpoint: str = ""
    region: str = ""
    away: bool = False
    problem: str | None = None


class PoolDetail(Pool):
    """A pool as its fabric sees it.

    ``used_bytes`` is what it takes of its file system, ``logical_bytes`` the sum of the disks' sizes. Of the log,
    ``log_bytes`` is taken, overwritten writes included, and ``log_undrained_bytes`` waits to be drained, without them;
    from ``log_drain_at_bytes`` on it is drained at once, at ``log_limit_bytes`` it holds writers back. ``scrubbed_at``
    is when all of it had been read and verified last, ``damaged`` how many items were found damaged, ``repaired`` how
    many were put right since the fabric started. ``problem`` is what keeps the pool from being sound, from draining or
    from being written.
    """

    available: bool = True
    """False: it is closed, ``problem`` says why and ``remedy`` what to do; nothing else is known of it."""
    remedy: str | None = None
    capacity_bytes: int = 0
    free_bytes: int = 0
    used_bytes: int = 0
    logical_bytes: int = 0
    log_bytes: int = 0
    log_limit_bytes: int = 0
    log_drain_at_bytes: int = 0
    log_undrained_bytes: int = 0
    groups: int = 0
    disks: int = 0
    snapshots: int = 0
    attachments: int = 0
    damaged: int = 0
    repaired: int = 0
    scrubbed_at: datetime | None = None
    figures: Figures | None = None
    cache: CacheFacts | None = None
    promised_bytes: int = 0
    """Kept free for thick disks and storages' reservations."""
    curator: CuratorFacts | None = None
    devices: list[PoolDevice] = Field(default_factory=list)


class UplinkCard(Part):
    """A card of an external switch's uplink; ``carrier``: there is a link to the outside."""

    device: str
    present: bool
    carrier: bool = False
    mac: str = ""
    mtu: int = 0


class SwitchDetail(Switch):
    """A switch with its bridge, its gateway address and its leases, and the cards of its uplink as they are now.

    ``own_records``: what other hosts of a virtual switch must know.
    """

    bridge: str = ""
    gateway_address: str | None = None
    gateway_address6: str | None = None
    leases: list[Lease] = Field(default_factory=list)
    cards: list[UplinkCard] = Field(default_factory=list)
    own_records: list[LookupRecord] = Field(default_factory=list)


KnownFrom = Literal["dhcp", "cloud-init", "document", "mac", "dhcp-learned"]


class KnownAddress(Part):
    """An address that the guards let a card use, and where it is known from.

    ``dhcp``: the switch's own DHCP gives it; ``cloud-init``: its seed does; ``document``: ``--address`` and the like;
    ``mac``: made of it; ``dhcp-learned``: a DHCP server of the network outside gave it, until ``ends_at``.
    """

    address: str
    known_from: KnownFrom
    ends_at: datetime | None = None


class NicDetail(Nic):
    """A card with its tap and how many packets each guard dropped (guard name -> packets)."""

    vm_name: str = ""
    switch_name: str = ""
    tap: str = ""
    ipv6_addresses: list[str] = Field(default_factory=list)
    """Those that the guards know: link-local, and of its switch's subnet."""
    dropped_packets: dict[str, int] = Field(default_factory=dict)
    guards_in_force: Guards = Field(default_factory=Guards)
    """What its port is held to: its own guards over its switch's."""
    guards_without_address: list[str] = Field(default_factory=list)
    """Guards that leave IPv4 alone because the card's address is not known."""
    known_addresses: list[KnownAddress] = Field(default_factory=list)


class AclDetail(Acl):
    """A named ACL with the names of the cards that have it."""

    nics: list[str] = Field(default_factory=list)


SnapshotKind = Literal["snapshot", "checkpoint", "backup", "image", "other"]


class DiskSnapshot(Part):
    """A snapshot of a disk: one that people made, or that a checkpoint, the newest backup of a vm or an image keeps.

    ``parent_id`` is the one that it was taken after; ``current``: the disk went on from it. ``changed_bytes`` is what
    it holds that the one before it had not, ``own_bytes`` what of that nothing later, no clone and not the disk itself
    has: what would be free without it, before deduplication and compression.
    """

    id: Uuid
    name: str
    snapshot_kind: SnapshotKind
    parent_id: Uuid | None
    created_at: datetime
    size_bytes: int
    changed_bytes: int
    own_bytes: int
    current: bool = False
    clone_ids: list[Uuid] = Field(default_factory=list)
    """Disks that stand on it."""


class DiskRange(Part):
    """A run of changed bytes; ``hole`` when it now reads as zeros."""

    offset_bytes: int
    length_bytes: int
    hole: bool = False


class DiskDiff(Part):
    """What differs between two points of a disk, at 64 KiB grain, in address order."""

    disk_id: Uuid
    base: str | None = None
    """Name of the snapshot compared with; None: everything that is not a hole."""
    snapshot: str | None = None
    """Name of the newer snapshot; None: the disk now."""
    changed_bytes: int = 0
    ranges: list[DiskRange] = Field(default_factory=list)


class OpenExport(Part):
    """A disk that is served over NBD: connect to ``socket`` with ``export`` as the export name."""

    attachment_id: Uuid
    export: str
    socket: str
    size_bytes: int
    read_only: bool


class Check(Part):
    """One finding of the doctor."""

    name: str
    state: Literal["ok", "warning", "failed"]
    detail: str
    cause: str | None = None
    remedy: str | None = None
    essential: bool = False
    """An inn cannot run while it fails."""


class HostView(Part):
    """The host, the inn's processes and what it holds."""

    inn_id: str
    inn_uuid: str
    version: str
    state_dir: str
    hostname: str = ""
    daemon_pid: int
    fabric_pid: int | None = None
    keeper_pid: int | None = None
    started_at: datetime
    cpus: int = 0
    memory_bytes: int = 0
    memory_available_bytes: int = 0
    accelerator: Literal["kvm", "tcg"] = "tcg"
    qemu_version: str | None = None
    pool: dict[str, Any] = Field(default_factory=dict)
    """As the fabric's ``pool_show`` answers."""
    vms: dict[str, int] = Field(default_factory=dict)
    """Life-cycle state -> number of guests."""
    allow_docker: bool = False
    """Whether guests are let through Docker's rules."""


class FirewallView(HostFirewall):
    """The host's firewall as it was confirmed, and ``trial``, what holds instead until ``confirm_by``.

    Interfaces and switches go by their names.
    """

    trial: HostFirewall | None = None
    confirm_by: datetime | None = None
    not_confirmed: bool = False
    """The last change was not confirmed in time."""
    dropped_packets: int = 0
    """Since the rules were loaded."""
    findings: list[str] = Field(default_factory=list)
    """What will not have been meant."""


class Health(Part):
    """Whether the daemon and the fabric behind it answer."""

    inn_id: str
    version: str
    daemon_pid: int
    fabric: bool


class Event(Part):
    """A change of a resource; ``revision`` grows by one with every change of anything in the inn."""

    revision: int
    action: Literal["created", "updated", "deleted"]
    kind: str
    id: str
    name: str
    resource: dict[str, Any] | None = None
