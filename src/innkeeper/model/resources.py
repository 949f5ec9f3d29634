"""Typed resources: what the state stores, the API speaks and the CLI prints.

Every resource has an id (UUID), a name unique in its kind, labels, a revision for compare-and-swap, and conditions.
``spec`` is what is desired, ``status`` what was last observed. Sizes are bytes, times are UTC.
"""

from __future__ import annotations

import ipaddress
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any, ClassVar, Literal
from uuid import uuid4

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints

from innkeeper.model.acl import AclLists, NicAcl
from innkeeper.model.dhcp import DhcpSettings
from innkeeper.model.guards import Guards, NicGuards, from_before
from innkeeper.model.host_firewall import FirewallTrial, HostFirewall
from innkeeper.model.learning import LearnedAddress
from innkeeper.model.metering import MeterCount
from innkeeper.model.overlay import Overlay
from innkeeper.model.sizes import MIB
from innkeeper.model.traffic import BitRate, NicTraffic
from innkeeper.model.uplink import Uplink
from innkeeper.model.vlan import NicVlan

MacAddress = Annotated[str, StringConstraints(pattern=r"^([0-9a-f]{2}:){5}[0-9a-f]{2}$")]
Compression = Literal["off", "lz4", "zstd"]
Tier = Literal["fast", "slow"]
Uuid = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$")]


def new_id() -> str:
    """A fresh random UUID as text."""
    return str(uuid4())


def now() -> datetime:
    """The present moment in UTC."""
    return datetime.now(UTC)


class Part(BaseModel):
    """A piece of a resource; unknown members are refused so that a typing error is never silently dropped."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True)


class Condition(Part):
    """Something worth knowing about a resource: ``type`` such as ``Degraded``, true or not, since when and why."""

    type: str
    status: bool
    reason: str = ""
    message: str = ""
    since: datetime = Field(default_factory=now)


class Resource(Part):
    """What all kinds share."""

    kind: ClassVar[str]

    id: Uuid = Field(default_factory=new_id)
    name: str
    labels: dict[str, str] = Field(default_factory=dict)
    revision: int = 0
    created_at: datetime = Field(default_factory=now)
    conditions: list[Condition] = Field(default_factory=list)


# --- guests ----------------------------------------------------------------------------------------------------------


class VmState(StrEnum):
    """The life cycle of a guest; ``daemon`` services guard each operation by it."""

    CREATING = "creating"
    STOPPED = "stopped"
    STARTING = "starting"
    RUNNING = "running"
    PAUSED = "paused"
    SAVED = "saved"
    STOPPING = "stopping"
    CRASHED = "crashed"
    DELETING = "deleting"


class Firmware(StrEnum):
    """How the guest boots."""

    BIOS = "bios"
    UEFI = "uefi"


class DiskLink(Part):
    """A disk attached to a vm; ``boot_index`` 1 boots first, None never."""

    disk_id: Uuid
    boot_index: int | None = None
    read_only: bool = False


class CloudInit(Part):
    """What the NoCloud seed carries; ``user_data`` and ``network_config`` are the user's own text, verbatim."""

    user_data: str | None = None
    network_config: str | None = None
    ssh_keys: list[str] = Field(default_factory=list)
    hostname: str | None = None


class VmSpec(Part):
    """What the administrator wants of a guest."""

    cpus: int = Field(default=1, ge=1, le=512)
    memory_bytes: int = Field(default=512 * 1024 * 1024, ge=32 * 1024 * 1024)
    firmware: Firmware = Firmware.BIOS
    secure_boot: bool = False
    tpm: bool = False
    machine: str | None = None
    """The pinned QEMU machine type, such as ``pc-q35-10.0``; set at first start."""
    disks: list[DiskLink] = Field(default_factory=list)
    iso_image_id: Uuid | None = None
    iso_boot_first: bool = False
    nvram_disk_id: Uuid | None = None
    """The fabric disk that holds the UEFI variables; made with a UEFI vm, snapshot and cloned with its disks."""
    cloud_init: CloudInit | None = None
    protect: bool = False
    """Deletion is refused while set."""
    autostart: Literal["never", "last", "always"] = "last"
    autostop: Literal["shutdown", "save", "poweroff"] = "shutdown"
    description: str = ""


class VmStatus(Part):
    """What was last observed of a guest."""

    state: VmState = VmState.CREATING
    uid: int | None = None
    pid: int | None = None
    process_start: int | None = None
    """Start time of the process in clock ticks since boot (field 22 of /proc/PID/stat): tells a reused pid apart."""
    accelerator: Literal["kvm", "tcg"] | None = None
    started_at: datetime | None = None
    agent: bool = False
    addresses: list[str] = Field(default_factory=list)
    reason: str = ""
    generation_id: Uuid = Field(default_factory=new_id)
    """VM Generation ID: changes when the guest is rewound or cloned."""
    attachments: dict[str, str] = Field(default_factory=dict)
    """disk id -> fabric attachment id while the guest has a process."""
    start_again: bool = False
    """Set when the inn ended the guest, not somebody: with ``autostart`` last it then starts with the inn."""
    checkpoint_id: Uuid | None = None
    """The checkpoint that the guest's present state grew from: the parent of the next one."""


class Vm(Resource):
    """A guest."""

    kind: ClassVar[str] = "vm"
    spec: VmSpec = Field(default_factory=VmSpec)
    status: VmStatus = Field(default_factory=VmStatus)


class CheckpointKind(StrEnum):
    """production: agent-frozen disks; standard: memory and disks of one instant."""

    PRODUCTION = "production"
    STANDARD = "standard"


class Checkpoint(Resource):
    """A point that a vm can be put back to; ``name`` is unique within its vm, stored as ``<vm name>/<name>``.

    ``spec_then`` is the vm's spec as it was; ``snapshots`` maps disk id -> fabric snapshot id.
    """

    kind: ClassVar[str] = "checkpoint"
    vm_id: Uuid
    parent_id: Uuid | None = None
    checkpoint_kind: CheckpointKind = CheckpointKind.PRODUCTION
    frozen: bool = False
    """True when the guest's file systems were frozen by the agent at that instant."""
    snapshots: dict[str, str] = Field(default_factory=dict)
    spec_then: VmSpec = Field(default_factory=VmSpec)
    memory_bytes: int = 0
    """Size of the stored memory image; 0 for a production checkpoint."""
    has_tpm_state: bool = False
    ready: bool = False


# --- disks and images ------------------------------------------------------------------------------------------------


class Storage(Resource):
    """A policy that disks live under (what the seed calls a container); ``level`` counts for zstd only.

    Data that was not read for ``cold_after_s`` is packed again with zstd at ``cold_level``. ``quota_bytes`` bounds what
    its disks hold together, before deduplication and compression; ``reservation_bytes`` is kept free for them. ``tier``
    and ``qos_id`` are for disks without their own.
    """

    kind: ClassVar[str] = "storage"
    compression: Compression = "lz4"
    level: int = Field(default=0, ge=0, le=19)
    dedup: bool = True
    cold_level: int | None = Field(default=None, ge=1, le=19)
    cold_after_s: float = Field(default=259_200.0, ge=0)
    quota_bytes: int | None = Field(default=None, ge=1)
    reservation_bytes: int | None = Field(default=None, ge=1)
    tier: Tier | None = None
    qos_id: Uuid | None = None
    pool_id: Uuid | None = None
    """The pool that its disks are kept in; stored from the first start of a daemon that knows several pools."""


class Qos(Resource):
    """A QoS policy: bounds in normalised I/Os (every 8 KiB is one) and bytes a second, for each of its disks, or
    aggregated for all of them together. ``burst_s`` seconds of a maximum may be saved up."""

    kind: ClassVar[str] = "qos"
    max_iops: int | None = Field(default=None, ge=1)
    min_iops: int | None = Field(default=None, ge=1)
    max_bytes_per_s: int | None = Field(default=None, ge=1)
    min_bytes_per_s: int | None = Field(default=None, ge=1)
    burst_s: float = Field(default=1.0, ge=0.05, le=3600)
    aggregated: bool = False


class Pool(Resource):
    """A place where the fabric keeps disks' data. ``cache_bytes`` is memory for the content cache; None: its choice."""

    kind: ClassVar[str] = "pool"
    path: str
    cache_bytes: int | None = Field(default=None, ge=8 * MIB)
    problem: str | None = None
    """What keeps it from being used, or from being sound; observed when it is asked for."""


class Disk(Resource):
    """A virtual disk on the fabric; the fabric disk has the same id."""

    kind: ClassVar[str] = "disk"
    size_bytes: int = Field(gt=0)
    storage_id: Uuid
    vm_id: Uuid | None = None
    """The vm it is attached to, if any."""
    role: Literal["data", "nvram", "image"] = "data"
    snapshots: dict[str, str] = Field(default_factory=dict)
    """Snapshots that people made, name -> fabric snapshot id."""
    tier: Tier | None = None
    """Where its data stays; None: as its storage says."""
    thick: bool = False
    """All of its size is kept free for it."""
    qos_id: Uuid | None = None
    ready: bool = False


class Image(Resource):
    """A template to make disks from, or an ISO; content is the fabric snapshot ``snapshot_id`` of disk ``disk_id``."""

    kind: ClassVar[str] = "image"
    image_kind: Literal["disk", "iso"] = "disk"
    disk_id: Uuid | None = None
    snapshot_id: Uuid | None = None
    size_bytes: int = 0
    source: str = ""
    sha256: str | None = None
    ready: bool = False


# --- network ---------------------------------------------------------------------------------------------------------


class SwitchKind(StrEnum):
    """private: guests only; internal: guests and host; nat: internal with a way out through the host; external: guests
    and host are in the network that an uplink leads to; virtual: guests only, on this host and others."""

    PRIVATE = "private"
    INTERNAL = "internal"
    NAT = "nat"
    EXTERNAL = "external"
    VIRTUAL = "virtual"


class PortForward(Part):
    """Traffic to ``host_port`` of the host reaches ``nic_id``'s address at ``guest_port``."""

    protocol: Literal["tcp", "udp"] = "tcp"
    host_port: int = Field(ge=1, le=65535)
    guest_port: int = Field(ge=1, le=65535)
    nic_id: Uuid
    host_address: str | None = None


class Switch(Resource):
    """A virtual switch; ``subnet`` (IPv4, CIDR) is None for a private switch without addresses."""

    kind: ClassVar[str] = "switch"
    switch_kind: SwitchKind = SwitchKind.NAT
    number: int = 0
    """Small number, unique in the inn, that names its bridge."""
    subnet: str | None = None
    subnet6: str | None = None
    """A /64 (CIDR), None for no IPv6 but link-local."""
    ra_mode: Literal["managed", "slaac"] = "managed"
    """How guests get addresses of it: by DHCPv6, or made of the prefix and their macs."""
    dhcp: bool = True
    dns_domain: str = "inn"
    mtu: int = Field(default=1500, ge=1280, le=9216)
    forwards: list[PortForward] = Field(default_factory=list)
    guards: Guards = Field(default_factory=Guards)
    """What its ports are held to where a card does not say otherwise."""
    dhcp_settings: DhcpSettings = Field(default_factory=DhcpSettings)
    uplink: Uplink | None = None
    """How an external switch reaches the outside."""
    overlay: Overlay | None = None
    """How a virtual switch reaches other hosts."""
    host_services: list[str] = Field(default_factory=list)
    """What its guests may use of the host beside DHCP and DNS: ``tcp/3142``, ``tcp/22@10.77.0.0/28``."""
    uplink_rate_bits_per_s: BitRate | None = None
    """What its uplink carries; minimums of cards are parts of it."""

    @property
    def gateway(self) -> str | None:
        """The first address of the subnet, which routes; None where there is none of the inn's."""
        if self.subnet is None or self.switch_kind in (SwitchKind.PRIVATE, SwitchKind.EXTERNAL):
            return None
        return str(next(ipaddress.ip_network(self.subnet).hosts()))


class Nic(Resource):
    """A network card of a vm and its port on a switch; named ``<vm name>-<n>``."""

    kind: ClassVar[str] = "nic"
    vm_id: Uuid
    switch_id: Uuid
    number: int = 0
    """Small number, unique in the inn, that names its tap."""
    mac: MacAddress
    address: str | None = None
    """The IPv4 address reserved for it on its switch; None on a switch without addresses."""
    address6: str | None = None
    """An IPv6 address of the switch's subnet in place of the one that is made of the mac."""
    static: bool = False
    """The guest gets its addresses through cloud-init, not by DHCP."""
    mtu: int | None = Field(default=None, ge=1280, le=9216)
    """Where it is less than the switch's."""
    extra_addresses: list[str] = Field(default_factory=list)
    """Further addresses (IPv4, IPv6) that it may use, also together with another card (VRRP)."""
    extra_macs: list[MacAddress] = Field(default_factory=list)
    """Further macs that it may use: virtual routers, containers."""
    acl: NicAcl = Field(default_factory=NicAcl)
    guards: Annotated[NicGuards, BeforeValidator(from_before)] = Field(default_factory=NicGuards)
    traffic: NicTraffic = Field(default_factory=NicTraffic)
    vlan: NicVlan = Field(default_factory=NicVlan)
    index: int = 0
    """Order among the vm's cards."""


class Acl(Resource, AclLists):
    """Lines of access control that many cards can be given by name; a change holds for all of them at once."""

    kind: ClassVar[str] = "acl"


class MeterReading(Resource):
    """What the meters of a card have counted; named by the card's id. ``created_at`` is since when."""

    kind: ClassVar[str] = "meter"
    nic_id: Uuid
    counts: list[MeterCount] = Field(default_factory=list)


class LearnedAddresses(Resource):
    """What was learned of a card on the switch that it is plugged into; named by the card's id."""

    kind: ClassVar[str] = "learned"
    nic_id: Uuid
    switch_id: Uuid
    addresses: list[LearnedAddress] = Field(default_factory=list)


# --- protection ------------------------------------------------------------------------------------------------------


class Repository(Resource):
    """Where backups live; ``path`` is a directory on this host."""

    kind: ClassVar[str] = "repository"
    path: str
    uuid: Uuid | None = None


class Backup(Resource):
    """A restore point in a repository; ``name`` is ``<vm name>@<UTC time>``."""

    kind: ClassVar[str] = "backup"
    repository_id: Uuid
    vm_id: Uuid
    vm_name: str
    taken_at: datetime
    consistency: Literal["application", "crash", "offline"] = "crash"
    base_backup_id: Uuid | None = None
    logical_bytes: int = 0
    """Bytes of the disks that are not holes."""
    read_bytes: int = 0
    stored_bytes: int = 0
    duration_s: float = 0.0
    husks: dict[str, str] = Field(default_factory=dict)
    """disk id -> fabric snapshot id kept as the base of the next incremental."""


# --- host and tasks --------------------------------------------------------------------------------------------------


class TaskState(StrEnum):
    """queued → running → succeeded | failed | cancelled; ``undoing`` while a failed or cancelled task cleans up."""

    QUEUED = "queued"
    RUNNING = "running"
    UNDOING = "undoing"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


class TaskStep(Part):
    """One step of a task."""

    name: str
    state: Literal["pending", "running", "done", "undone", "failed"] = "pending"
    duration_s: float = 0.0


class Task(Resource):
    """Long work: what it does, to what, how far it is, and why it failed."""

    kind: ClassVar[str] = "task"
    task_kind: str
    target_kind: str | None = None
    target_id: str | None = None
    target_name: str | None = None
    state: TaskState = TaskState.QUEUED
    progress: float = 0.0
    message: str = ""
    steps: list[TaskStep] = Field(default_factory=list)
    parameters: dict[str, Any] = Field(default_factory=dict)
    context: dict[str, Any] = Field(default_factory=dict)
    result: dict[str, Any] = Field(default_factory=dict)
    problem: dict[str, Any] | None = None
    cancel_requested: bool = False
    started_at: datetime | None = None
    ended_at: datetime | None = None


class HostSettings(Resource):
    """What the administrator has settled about this host; there is one, named ``host``."""

    kind: ClassVar[str] = "host_settings"
    allow_docker: bool = False
    """Whether the inn may put one tagged rule into Docker's chain DOCKER-USER."""
    firewall: HostFirewall = Field(default_factory=HostFirewall)
    """What of the host is reached from outside, as it was confirmed."""
    firewall_trial: FirewallTrial | None = None


KINDS: dict[str, type[Resource]] = {
    kind.kind: kind
    for kind in (
        Vm,
        Checkpoint,
        Image,
        Disk,
        Storage,
        Qos,
        Pool,
        Switch,
        Acl,
        Nic,
        MeterReading,
        LearnedAddresses,
        Repository,
        Backup,
        Task,
        HostSettings,
    )
}
