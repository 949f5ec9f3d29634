"""Request bodies: what a client may ask, one class per operation.

``*Create`` describes something new; ``*Set`` changes what it names and leaves alone what it does not (JSON merge patch:
a member that is absent is unchanged, one that is ``null`` is cleared; see ``model_fields_set``). Another resource is
named by id or name. Sizes are bytes. Names are checked here, so that services can trust them.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, StringConstraints, model_validator

from innkeeper.model.acl import NicAcl, NicAclSet
from innkeeper.model.acl_requests import AclCreate as AclCreate, AclSet as AclSet
from innkeeper.model.dhcp import DhcpSettings, DhcpSettingsSet
from innkeeper.model.guards import Guards, GuardsSet as GuardsSet, NicGuards
from innkeeper.model.host_firewall import HostFirewallSet as HostFirewallSet, HostService
from innkeeper.model.overlay import OverlayCreate, OverlaySet
from innkeeper.model.request_types import (
    CardAddress,
    CardMac,
    CardMtu,
    Cpus,
    DiskBytes,
    HostPath,
    ImageName,
    IpAddress,
    Ipv4,
    Ipv6,
    Labels,
    MemoryBytes,
    Name,
    Port,
    Ref,
    ResourceSet as ResourceSet,
    Subnet,
    Subnet6Wish,
)
from innkeeper.model.resources import (
    CheckpointKind,
    CloudInit,
    Firmware,
    MacAddress,
    Part,
    SwitchKind,
)
from innkeeper.model.sizes import MIB
from innkeeper.model.storage_requests import (
    DiskCreate as DiskCreate,
    DiskMove as DiskMove,
    DiskSet as DiskSet,
    PoolCreate as PoolCreate,
    PoolDeviceAdd as PoolDeviceAdd,
    PoolSet as PoolSet,
    QosCreate as QosCreate,
    QosSet as QosSet,
    StorageCreate as StorageCreate,
    StorageSet as StorageSet,
)
from innkeeper.model.traffic import BitRate, NicTraffic, NicTrafficSet
from innkeeper.model.uplink import DeviceName, TeamMode
from innkeeper.model.vlan import NicVlan

ConfirmWithin = Annotated[float, Field(ge=1, le=3600)]

# --- guests ----------------------------------------------------------------------------------------------------------


class VmNic(Part):
    """A card of a new vm. ``mac`` and ``address`` come from the pools when absent.

    ``static``: the guest gets its address through cloud-init; always so for an address on a switch without DHCP.
    """

    switch: Ref
    mac: MacAddress | None = None
    address: Ipv4 | None = None
    address6: Ipv6 | None = None
    static: bool = False
    mtu: int | None = Field(default=None, ge=1280, le=9216)
    acl: NicAcl = Field(default_factory=NicAcl)
    guards: NicGuards = Field(default_factory=NicGuards)
    traffic: NicTraffic = Field(default_factory=NicTraffic)
    vlan: NicVlan = Field(default_factory=NicVlan)


class VmDisk(Part):
    """A disk of a new vm beside the image's: an existing one (``disk``) or a new empty one (``size_bytes``)."""

    disk: Ref | None = None
    size_bytes: DiskBytes | None = None
    name: Name | None = None
    """Of a new disk; ``<vm name>-<n>`` when absent."""

    @model_validator(mode="after")
    def _one_of_both(self) -> VmDisk:
        if (self.disk is None) == (self.size_bytes is None):
            raise ValueError("name either an existing disk or the size of a new one")
        if self.disk is not None and self.name is not None:
            raise ValueError("an existing disk keeps its name")
        return self


class VmCreate(Part):
    """A new guest.

    With ``image`` its first disk is a clone of that image, grown to ``disk_bytes``; without, an empty disk of
    ``disk_bytes`` (none when that is absent too). ``start`` starts it when it is made.
    """

    name: Name
    labels: Labels = Field(default_factory=dict)
    image: Ref | None = None
    disk_bytes: DiskBytes | None = None
    storage: Ref | None = None
    """The storage for new disks; ``default`` when absent."""
    disks: list[VmDisk] = Field(default_factory=list, max_length=60)
    nics: list[VmNic] = Field(default_factory=list, max_length=16)
    cpus: Cpus = 1
    memory_bytes: MemoryBytes = 512 * MIB
    firmware: Firmware = Firmware.BIOS
    secure_boot: bool = False
    tpm: bool = False
    iso: Ref | None = None
    iso_boot_first: bool = False
    cloud_init: CloudInit | None = None
    protect: bool = False
    autostart: Literal["never", "last", "always"] = "last"
    autostop: Literal["shutdown", "save", "poweroff"] = "shutdown"
    description: str = Field(default="", max_length=4000)
    start: bool = True

    @model_validator(mode="after")
    def _possible(self) -> VmCreate:
        if self.secure_boot and self.firmware != Firmware.UEFI:
            raise ValueError("secure_boot needs firmware uefi")
        if self.iso_boot_first and self.iso is None:
            raise ValueError("iso_boot_first needs iso")
        return self


class VmSet(Part):
    """Changes to a guest. ``cpus``, ``memory_bytes``, ``firmware``, ``tpm`` take effect at its next start.

    ``iso`` inserts an ISO image (by id or name), ``null`` ejects it. ``boot_order`` lists disks, first to last; a disk
    that is not listed does not boot.
    """

    labels: Labels | None = None
    cpus: Cpus | None = None
    memory_bytes: MemoryBytes | None = None
    secure_boot: bool | None = None
    tpm: bool | None = None
    iso: Ref | None = None
    iso_boot_first: bool | None = None
    boot_order: list[Ref] | None = None
    cloud_init: CloudInit | None = None
    protect: bool | None = None
    autostart: Literal["never", "last", "always"] | None = None
    autostop: Literal["shutdown", "save", "poweroff"] | None = None
    description: str | None = Field(default=None, max_length=4000)


class VmRename(Part):
    """A new name for a guest; its cards, disks' default names, checkpoints and DNS name follow."""

    name: Name


class VmClone(Part):
    """A copy of a guest: its disks as they are now (or at ``checkpoint``), new MACs, a new generation id."""

    name: Name
    checkpoint: Ref | None = None
    labels: Labels | None = None
    start: bool = False


class VmShutdown(Part):
    """Ask the guest to end itself: through its agent, else by ACPI.

    ``Failed`` (``vm.shutdown_ignored``) when it has not ended within ``timeout_s``; ``force`` then powers it off.
    """

    timeout_s: float = Field(default=90.0, gt=0, le=3600)
    force: bool = False


class VmExec(Part):
    """A command to run in a guest through its agent; ``argv[0]`` is found on the guest's path.

    ``stdin`` is base64 in JSON. The command is left running in the guest when it takes longer than ``timeout_s``.
    """

    model_config = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64")

    argv: list[str] = Field(min_length=1, max_length=1000)
    stdin: bytes | None = Field(default=None, max_length=8 * MIB)
    env: dict[str, str] = Field(default_factory=dict)
    timeout_s: float = Field(default=60.0, gt=0, le=86400)


class CheckpointCreate(Part):
    """A point to come back to. ``frozen`` demands frozen file systems: without the agent the request then fails."""

    name: Name
    kind: CheckpointKind = CheckpointKind.PRODUCTION
    frozen: bool = False
    labels: Labels = Field(default_factory=dict)


# --- disks and images ------------------------------------------------------------------------------------------------


class DiskResize(Part):
    """A new size. Shrinking throws the end away and is refused without ``shrink``."""

    size_bytes: DiskBytes
    shrink: bool = False


class DiskSnapshot(Part):
    """A snapshot of a disk under a name that is unique within the disk."""

    name: Name


class DiskRevert(Part):
    """Give a disk that is not in use the content and the size that it had at one of its snapshots."""

    snapshot: Ref


class DiskClone(Part):
    """A new disk with the content of this one now, or of its ``snapshot``."""

    name: Name
    snapshot: Ref | None = None
    labels: Labels = Field(default_factory=dict)


class DiskAttach(Part):
    """Put a disk into a guest, running or not."""

    vm: Ref
    boot_index: int | None = Field(default=None, ge=1, le=64)
    read_only: bool = False


class DiskExport(Part):
    """Serve a disk, or its ``snapshot``, over NBD to processes of ``uid``; the uid of the caller when absent.

    It ends when the caller's process does; ``pid`` is that, whatever the request says.
    """

    snapshot: Ref | None = None
    writable: bool = False
    uid: int | None = Field(default=None, ge=0, lt=2**32 - 1)
    pid: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _writable_head(self) -> DiskExport:
        if self.snapshot is not None and self.writable:
            raise ValueError("a snapshot cannot be written; clone it instead")
        return self


class ImageBuild(Part):
    """Build a known image, such as ``probe`` or ``debian/12``, from packages; ``rebuild`` replaces one that exists."""

    name: ImageName
    rebuild: bool = False


class ImageImport(Part):
    """Take a file of this host as an image: raw or qcow2, also .xz or .zst, or an ISO.

    ``sha256`` (of the file as given, in hex) is compared before anything is made of it.
    """

    name: ImageName
    path: HostPath
    image_kind: Literal["disk", "iso"] = "disk"
    format: Literal["raw", "qcow2"] | None = None
    """Found out from the file when absent."""
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-fA-F]{64}$")] | None = None
    labels: Labels = Field(default_factory=dict)


# --- network ---------------------------------------------------------------------------------------------------------


class ForwardCreate(Part):
    """A port forward of a NAT switch to a vm's first card on it, or to ``nic``.

    It is for both IP versions, as far as the card has addresses of them; ``host_address`` bounds it to its own.
    """

    protocol: Literal["tcp", "udp"] = "tcp"
    host_port: Port
    guest_port: Port
    vm: Ref | None = None
    nic: Ref | None = None
    host_address: IpAddress | None = None

    @model_validator(mode="after")
    def _one_target(self) -> ForwardCreate:
        if (self.vm is None) == (self.nic is None):
            raise ValueError("name either a vm or a nic")
        return self


class SwitchCreate(Part):
    """A new virtual switch; a free subnet is chosen when ``subnet`` is absent (a private switch then has none).

    An external one has ``uplinks`` instead, cards of the host (several as a ``team``). Where the host's addresses are
    on them, they move to the switch and come back after ``confirm_within_s`` unless that is confirmed. Its ``mtu`` is
    the uplink's unless a smaller one is given.
    ``overlay`` is for the kind ``virtual``, whose ``mtu`` leaves room for the encapsulation when it is absent.
    """

    name: Name
    labels: Labels = Field(default_factory=dict)
    kind: SwitchKind = SwitchKind.NAT
    subnet: Subnet | None = None
    subnet6: Subnet6Wish | None = None
    ra_mode: Literal["managed", "slaac"] = "managed"
    dhcp: bool = True
    dns_domain: Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9.-]{0,62}$")] = "inn"
    mtu: int = Field(default=1500, ge=1280, le=9216)
    guards: Guards = Field(default_factory=Guards)
    dhcp_settings: DhcpSettings = Field(default_factory=DhcpSettings)
    host_services: list[HostService] = Field(default_factory=list, max_length=100)
    uplinks: list[DeviceName] = Field(default_factory=list, max_length=8)
    team: TeamMode | None = None
    confirm_within_s: ConfirmWithin = 30.0
    overlay: OverlayCreate | None = None
    uplink_rate_bits_per_s: BitRate | None = None

    @model_validator(mode="after")
    def _connected(self) -> SwitchCreate:
        if self.uplink_rate_bits_per_s is not None and not self.uplinks:
            raise ValueError("the rate of an uplink is that of an external switch's")
        if (self.kind == SwitchKind.EXTERNAL) != bool(self.uplinks):
            raise ValueError("an external switch needs an uplink, and only an external one has any")
        if self.kind == SwitchKind.EXTERNAL and (self.subnet is not None or self.subnet6 is not None):
            raise ValueError("an external switch has the addresses of the network outside, not a subnet")
        if self.team is not None and not self.uplinks:
            raise ValueError("a team is made of uplinks")
        if (self.overlay is not None) != (self.kind == SwitchKind.VIRTUAL):
            raise ValueError("a virtual switch, and no other, has a vni and a provider address")
        return self


class SwitchSet(Part):
    """Changes to a switch; ``forwards`` replaces all its port forwards, ``uplinks`` the cards of an external one.

    ``overlay`` changes what it names.
    """

    name: Name | None = None
    labels: Labels | None = None
    subnet6: Subnet6Wish | None = None
    ra_mode: Literal["managed", "slaac"] | None = None
    dhcp: bool | None = None
    dns_domain: Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9.-]{0,62}$")] | None = None
    mtu: int | None = Field(default=None, ge=1280, le=9216)
    forwards: list[ForwardCreate] | None = Field(default=None, max_length=1000)
    dhcp_settings: DhcpSettingsSet | None = None
    host_services: list[HostService] | None = Field(default=None, max_length=100)
    uplinks: list[DeviceName] | None = Field(default=None, min_length=1, max_length=8)
    team: TeamMode | None = None
    confirm_within_s: ConfirmWithin = 30.0
    overlay: OverlaySet | None = None
    uplink_rate_bits_per_s: BitRate | None = None

    @model_validator(mode="after")
    def _connected(self) -> SwitchSet:
        if self.team is not None and not self.uplinks:
            raise ValueError("a team is made of uplinks: name them all")
        return self

    guards: GuardsSet | None = None


class NicCreate(Part):
    """A new card for a vm, running or not; otherwise as ``VmNic``."""

    vm: Ref
    switch: Ref
    mac: MacAddress | None = None
    address: Ipv4 | None = None
    address6: Ipv6 | None = None
    static: bool = False
    mtu: int | None = Field(default=None, ge=1280, le=9216)
    acl: NicAcl = Field(default_factory=NicAcl)
    guards: NicGuards = Field(default_factory=NicGuards)
    traffic: NicTraffic = Field(default_factory=NicTraffic)
    vlan: NicVlan = Field(default_factory=NicVlan)
    labels: Labels = Field(default_factory=dict)


class NicSet(Part):
    """Changes to a card. ``switch`` plugs it into another switch; ``address`` is then chosen anew unless given."""

    labels: Labels | None = None
    switch: Ref | None = None
    address: Ipv4 | None = None
    address6: Ipv6 | None = None
    static: bool | None = None
    mtu: CardMtu | None = None
    extra_addresses: list[CardAddress] | None = Field(default=None, max_length=64)
    extra_macs: list[CardMac] | None = Field(default=None, max_length=16)
    acl: NicAclSet | None = None
    guards: GuardsSet | None = None
    traffic: NicTrafficSet | None = None
    vlan: NicVlan | None = None


# --- protection ------------------------------------------------------------------------------------------------------


class RepositoryCreate(Part):
    """A place for backups: a directory of this host, empty or already a repository (it is then taken over)."""

    name: Name
    path: HostPath
    labels: Labels = Field(default_factory=dict)


class BackupCreate(Part):
    """Back guests up into a repository, all at one instant each.

    ``full`` reads everything instead of what changed. ``quiesce``: ``auto`` freezes the guest's file systems when its
    agent answers, ``require`` fails without, ``never`` does not try.
    """

    vms: list[Ref] = Field(min_length=1, max_length=1000)
    repository: Ref
    full: bool = False
    quiesce: Literal["auto", "require", "never"] = "auto"
    labels: Labels = Field(default_factory=dict)


class BackupSet(Part):
    """Changes to what is known here of a restore point; in its repository it never changes."""

    labels: Labels | None = None


class BackupRestore(Part):
    """Make a new vm ``as_name`` of a backup; its cards join the switches they had (by id, then name) or ``switch``."""

    as_name: Name
    switch: Ref | None = None
    storage: Ref | None = None
    start: bool = False
    keep_macs: bool = False
    """Keep the MAC addresses where they are free; new ones otherwise."""


class RetentionPolicy(Part):
    """What to keep of each vm's backups: the newest ``keep_last``, and all younger than ``keep_days``."""

    keep_last: int | None = Field(default=None, ge=1, le=100000)
    keep_days: float | None = Field(default=None, gt=0, le=36500)

    @model_validator(mode="after")
    def _says_something(self) -> RetentionPolicy:
        if self.keep_last is None and self.keep_days is None:
            raise ValueError("say keep_last, keep_days or both")
        return self


class RepositoryPrune(RetentionPolicy):
    """Apply a retention policy to a repository, or to the backups of ``vm`` (name or id) in it."""

    vm: Ref | None = None


# --- host ------------------------------------------------------------------------------------------------------------


class HostSet(Part):
    """Changes to what is settled about this host."""

    allow_docker: bool | None = None


class HostStop(Part):
    """End what the daemon holds: guests by their ``autostop`` (``force`` powers them off), switches, helpers."""

    force: bool = False
