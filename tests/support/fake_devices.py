"""What the fake house's guests are made of: images, disks, storages, switches, cards."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from fake_shelf import Service

from innkeeper.model import requests as ask, views
from innkeeper.model.capturing import CaptureStart
from innkeeper.model.metering import MeterCount, MeterReport
from innkeeper.model.problems import Conflict, Invalid, NotFound
from innkeeper.model.resources import Acl, Disk, Image, Nic, Pool, Qos, Storage, Switch, new_id, now
from innkeeper.model.tracing import PacketAsk, ReachAsk, Trace, TraceStep
from innkeeper.model.uplink import Uplink
from innkeeper.network.capture import pcap_header, pcap_record

if TYPE_CHECKING:
    from fake_house import FakeHouse


class Images(Service[Image]):
    async def build(self, request: ask.ImageBuild, *, dry_run: bool = False) -> Any:
        if request.name not in ("probe", "debian/12"):
            raise NotFound("image.unknown", f"no recipe for {request.name!r}", remedy="build probe or debian/12")
        if dry_run:
            return self.plan(f"build {request.name}")
        image = Image(name=request.name, size_bytes=2**29, source="packages", ready=True)
        return self.house.run("image.build", image, lambda: self.shelf.add(image))

    async def import_(self, request: ask.ImageImport, *, dry_run: bool = False) -> Any:
        if dry_run:
            return self.plan(f"import {request.name}")
        image = Image(name=request.name, image_kind=request.image_kind, source=request.path, ready=True)
        return self.house.run("image.import", image, lambda: self.shelf.add(image))


FIGURES = views.Figures(
    data_bytes=4 << 20,
    distinct_bytes=2 << 20,
    stored_bytes=1 << 20,
    snapshot_bytes=0,
    undrained_bytes=0,
    dedup_ratio=2.0,
    compression_ratio=2.1,
)


def named(house: FakeHouse, request: ask.StorageSet | ask.DiskSet) -> dict[str, Any]:
    """What a request changes, with the id of the QoS policy that it names."""
    wanted = request.model_dump(exclude_unset=True)
    if "qos" in wanted:
        ref = wanted.pop("qos")
        wanted["qos_id"] = house.qos.shelf.get(ref).id if ref else None
    return wanted


class Disks(Service[Disk]):
    def __init__(self, house: FakeHouse) -> None:
        super().__init__(house, Disk)
        self.exports: dict[str, ask.DiskExport] = {}
        self.nbd_socket = "/nowhere/nbd.sock"

    async def create(self, request: ask.DiskCreate, *, dry_run: bool = False) -> Any:
        storage = self.house.storages.shelf.get(request.storage or "default")
        if dry_run:
            return self.plan(f"create disk {request.name}")
        size = request.size_bytes or self.house.images.shelf.get(request.image or "").size_bytes
        own = {"tier": request.tier, "thick": request.thick, "labels": request.labels}
        return self.shelf.add(Disk(name=request.name, size_bytes=size, storage_id=storage.id, **own))

    async def show(self, ref: str) -> views.DiskDetail:
        disk = self.shelf.get(ref)
        place = views.DiskPlace(device="home", path="/pool", tier="fast", stored_bytes=1 << 20, groups=1)
        own = {name: getattr(disk, name) for name in Disk.model_fields}
        return views.DiskDetail(**own, figures=FIGURES, places=[place])

    async def set(self, ref: str, request: ask.DiskSet, *, revision: int | None = None) -> Disk:  # type: ignore[override]
        wanted = named(self.house, request)
        if "storage" in wanted:
            wanted["storage_id"] = self.house.storages.shelf.get(wanted.pop("storage")).id
        return self.shelf.change(ref, revision, **wanted)

    async def resize(self, ref: str, request: ask.DiskResize) -> Disk:
        if request.size_bytes < self.shelf.get(ref).size_bytes and not request.shrink:
            raise Invalid("disk.shrink", "that is smaller", remedy="use --shrink")
        return self.shelf.change(ref, size_bytes=request.size_bytes)

    async def move(self, ref: str, request: ask.DiskMove) -> Any:
        disk, storage = self.shelf.get(ref), self.house.storages.shelf.get(request.storage)
        return self.house.run("disk.move", disk, lambda: self.shelf.change(ref, storage_id=storage.id))

    async def snapshot(self, ref: str, request: ask.DiskSnapshot) -> Disk:
        disk = self.shelf.get(ref)
        return self.shelf.change(ref, snapshots={**disk.snapshots, request.name: new_id()})

    async def snapshot_rm(self, ref: str, snapshot: str) -> Disk:
        kept = dict(self.shelf.get(ref).snapshots)
        if kept.pop(snapshot, None) is None:
            raise NotFound("snapshot.not_found", f"there is no snapshot {snapshot!r}")
        return self.shelf.change(ref, snapshots=kept)

    async def snapshots(self, ref: str) -> list[views.DiskSnapshot]:
        disk = self.shelf.get(ref)
        found: list[views.DiskSnapshot] = []
        for name, snapshot_id in disk.snapshots.items():
            found.append(
                views.DiskSnapshot(
                    id=snapshot_id,
                    name=name,
                    snapshot_kind="snapshot",
                    parent_id=found[0].id if found else None,
                    created_at=now(),
                    size_bytes=disk.size_bytes,
                    changed_bytes=65536,
                    own_bytes=0,
                    current=len(found) == 1,
                    clone_ids=[disk.id] if not found else [],
                )
            )
        return found

    async def revert(self, ref: str, request: ask.DiskRevert) -> Disk:
        if request.snapshot not in self.shelf.get(ref).snapshots:
            raise NotFound("snapshot.not_found", f"there is no snapshot {request.snapshot!r}")
        return self.shelf.get(ref)

    async def clone(self, ref: str, request: ask.DiskClone, *, dry_run: bool = False) -> Any:
        disk = self.shelf.get(ref)
        if dry_run:
            return self.plan(f"clone {disk.name}")
        return self.shelf.add(Disk(name=request.name, size_bytes=disk.size_bytes, storage_id=disk.storage_id))

    async def diff(self, ref: str, *, base: str | None = None, snapshot: str | None = None) -> views.DiskDiff:
        found = views.DiskRange(offset_bytes=65536, length_bytes=131072)
        return views.DiskDiff(disk_id=self.shelf.get(ref).id, base=base, changed_bytes=131072, ranges=[found])

    async def attach(self, ref: str, request: ask.DiskAttach) -> Disk:
        return self.shelf.change(ref, vm_id=self.house.vms.shelf.get(request.vm).id)

    async def detach(self, ref: str) -> Disk:
        return self.shelf.change(ref, vm_id=None)

    async def export_open(self, ref: str, request: ask.DiskExport) -> views.OpenExport:
        disk, attachment = self.shelf.get(ref), new_id()
        self.exports[attachment] = request
        return views.OpenExport(
            attachment_id=attachment,
            export=attachment,
            socket=self.nbd_socket,
            size_bytes=disk.size_bytes,
            read_only=not request.writable,
        )

    async def export_close(self, ref: str, attachment_id: str) -> Disk:
        if self.exports.pop(attachment_id, None) is None:
            raise NotFound("export.not_found", "there is no such export")
        return self.shelf.get(ref)


class Storages(Service[Storage]):
    async def create(self, request: ask.StorageCreate, *, dry_run: bool = False) -> Any:
        if "storages.create" in self.house.broken:
            raise self.house.broken.pop("storages.create")
        qos_id = self.house.qos.shelf.get(request.qos).id if request.qos else None
        pool_id = self.house.pools.shelf.get(request.pool or "default").id
        plain = request.model_dump(exclude={"level", "qos", "pool"})
        made = Storage(**plain, level=request.level or 0, qos_id=qos_id, pool_id=pool_id)
        return self.plan(f"create {made.name}") if dry_run else self.shelf.add(made)

    async def set(self, ref: str, request: ask.StorageSet, *, revision: int | None = None) -> Storage:  # type: ignore[override]
        return self.shelf.change(ref, revision, **named(self.house, request))

    async def show(self, ref: str) -> views.StorageDetail:
        storage = self.shelf.get(ref)
        own = {name: getattr(storage, name) for name in Storage.model_fields}
        return views.StorageDetail(**own, disks=2, figures=FIGURES)


class QosPolicies(Service[Qos]):
    async def create(self, request: ask.QosCreate, *, dry_run: bool = False) -> Any:
        made = Qos(**request.model_dump())
        return self.plan(f"create {made.name}") if dry_run else self.shelf.add(made)

    async def show(self, ref: str) -> views.QosDetail:
        policy = self.shelf.get(ref)
        flow = views.QosFlow(disk_id=None, iops=120.5, minimum_missed=True)
        return views.QosDetail(**{name: getattr(policy, name) for name in Qos.model_fields}, flows=[flow])

    async def set(self, ref: str, request: ask.QosSet, *, revision: int | None = None) -> Qos:  # type: ignore[override]
        wanted = request.model_dump(exclude_unset=True)
        bounds = ("max_", "min_")  # only these can be taken away by null
        kept = {name: value for name, value in wanted.items() if value is not None or name.startswith(bounds)}
        return self.shelf.change(ref, revision, **kept)


class Pools(Service[Pool]):
    def __init__(self, house: FakeHouse) -> None:
        super().__init__(house, Pool)
        self.devices: list[views.PoolDevice] = []

    async def create(self, request: ask.PoolCreate, *, dry_run: bool = False) -> Any:
        made = Pool(**request.model_dump())
        return self.plan(f"create {made.name}") if dry_run else self.shelf.add(made)

    async def rm(self, ref: str, *, lost: bool = False) -> Pool:
        return self.shelf.drop(ref)

    async def open(self, ref: str) -> Pool:
        return self.shelf.get(ref)

    async def set(self, ref: str, request: ask.PoolSet, *, revision: int | None = None) -> Pool:  # type: ignore[override]
        return self.shelf.change(ref, revision, **request.model_dump(exclude_unset=True))

    async def show(self, ref: str) -> views.PoolDetail:
        pool = self.shelf.get(ref)
        cache = views.CacheFacts(
            limit_bytes=pool.cache_bytes or 1 << 30,
            used_bytes=3 << 20,
            single_touch_bytes=1 << 20,
            multi_touch_bytes=2 << 20,
            hits=9,
            misses=1,
            evictions=0,
        )
        counts = dict.fromkeys(("groups", "disks", "snapshots", "attachments"), 1)
        sizes = {
            name: 1 << 20 for name in views.PoolDetail.model_fields if name.endswith("_bytes") and name != "cache_bytes"
        }
        own = {name: getattr(pool, name) for name in Pool.model_fields}
        return views.PoolDetail(**own, **counts, **sizes, cache=cache, figures=FIGURES, devices=self.devices)

    async def scrub(self, ref: str) -> Any:
        return self.house.run("pool.scrub", self.shelf.get(ref), lambda: None)

    async def curate(self, ref: str) -> Any:
        return self.house.run("pool.curate", self.shelf.get(ref), lambda: None)

    async def pause(self, ref: str) -> views.CuratorFacts:
        self.shelf.get(ref)
        return views.CuratorFacts(paused=True)

    async def resume(self, ref: str) -> views.CuratorFacts:
        self.shelf.get(ref)
        return views.CuratorFacts(paused=False)

    async def hot(self, ref: str) -> list[views.HotGroup]:
        self.shelf.get(ref)
        return [views.HotGroup(number=7, device="home", tier="fast", size_bytes=1 << 26, touches=3)]

    async def device_add(self, ref: str, request: ask.PoolDeviceAdd) -> views.PoolDevice:
        self.shelf.get(ref)
        self.added = request
        self.devices.append(
            views.PoolDevice(
                id=new_id(),
                path=request.path,
                tier=request.tier,
                state="online",
                total_bytes=1 << 40,
                free_bytes=1 << 39,
                groups=0,
                group_bytes=0,
            )
        )
        return self.devices[-1]

    async def device_drain(self, ref: str, device: str) -> Any:
        found = [each for each in self.devices if each.id == device]
        if not found:
            raise NotFound("device.not_found", "no such device")
        return self.house.run("pool.device_drain", self.shelf.get(ref), lambda: self.devices.remove(found[0]))


class Switches(Service[Switch]):
    async def create(self, request: ask.SwitchCreate, *, dry_run: bool = False) -> Any:
        subnet = request.subnet or "10.0.0.0/24"
        made = Switch(
            name=request.name, switch_kind=request.kind, subnet=subnet, labels=request.labels, guards=request.guards
        )
        if request.uplinks:
            made.uplink, made.subnet = Uplink(devices=request.uplinks, team=request.team, state="pending"), None
        return self.plan(f"create {made.name}") if dry_run else self.shelf.add(made)

    async def show(self, ref: str) -> views.SwitchDetail:
        switch = self.shelf.get(ref)
        return views.SwitchDetail(**{name: getattr(switch, name) for name in Switch.model_fields}, bridge="inbr-1")

    async def set(self, ref: str, request: Any, *, revision: int | None = None, dry_run: bool = False) -> Any:
        if dry_run:
            return views.Plan(summary=f"would change {self.shelf.get(ref).name}", diff="-old\n+new\n")
        if request.guards is not None:
            switch = self.shelf.get(ref)
            switch.guards = request.guards.applied_to_switch(switch.guards)
        known = {"name", "labels", "dhcp", "dns_domain", "mtu", "host_services"}
        named = request.model_dump(exclude_unset=True, include=known)
        return self.shelf.change(ref, revision, **{name: value for name, value in named.items() if value is not None})

    async def simulate(self, ref: str, request: ReachAsk) -> Trace:
        step = TraceStep(
            where=f"{request.target}: extended acl, in", allowed=False, line="weight 1: deny in any", logged=True
        )
        return Trace(allowed=False, steps=[TraceStep(where=self.shelf.get(ref).name, allowed=True, line="both"), step])

    async def rm(self, ref: str, *, dry_run: bool = False) -> Any:
        return self.plan(f"remove {self.shelf.get(ref).name}") if dry_run else self.shelf.drop(ref)

    async def confirm(self, ref: str) -> Switch:
        switch = self.shelf.get(ref)
        if switch.uplink is None:
            raise Conflict("switch.not_external", f"switch {switch.name} has no uplink", remedy="none")
        changed: Switch = self.shelf.change(ref, None, uplink=switch.uplink.model_copy(update={"state": "taken"}))
        return changed


class Pieces:
    """A capture of one frame; with the filter ``endless`` it goes on in silence."""

    def __init__(self, nic: Nic, request: CaptureStart) -> None:
        self.nic, self.request = nic, request
        self.closed = asyncio.Event()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield pcap_header()
        yield b""
        yield pcap_record(1, 2, self.nic.mac.encode(), 17)
        if self.request.filter == "endless":
            await asyncio.Event().wait()

    def close(self) -> None:
        self.closed.set()


class Nics(Service[Nic]):
    async def create(self, request: ask.NicCreate, *, dry_run: bool = False) -> Any:
        vm, switch = self.house.vms.shelf.get(request.vm), self.house.switches.shelf.get(request.switch)
        count = len(self.shelf.all)
        mac = request.mac or f"52:54:00:00:01:{count % 256:02x}"
        made = Nic(name=f"{vm.name}-{count}", vm_id=vm.id, switch_id=switch.id, mac=mac, address=request.address)
        return self.plan(f"create {made.name}") if dry_run else self.shelf.add(made)

    async def show(self, ref: str) -> views.NicDetail:
        nic = self.shelf.get(ref)
        members = {name: getattr(nic, name) for name in Nic.model_fields}
        return views.NicDetail(**members, dropped_packets={"arp": 7}, tap="intp-1")

    async def set(self, ref: str, request: Any, *, revision: int | None = None, dry_run: bool = False) -> Any:
        if dry_run:
            return self.plan(f"change {self.shelf.get(ref).name}")
        nic = self.shelf.get(ref)
        if request.guards is not None:
            nic.guards = request.guards.applied_to(nic.guards)
        if request.traffic is not None:
            nic.traffic = request.traffic.applied_to(nic.traffic)
        if request.acl is not None:
            nic.acl = request.acl.applied_to(nic.acl)
        nic.extra_macs = nic.extra_macs if request.extra_macs is None else request.extra_macs
        if request.vlan is not None:
            nic.vlan = request.vlan
        return self.shelf.change(ref, revision, **({"address": request.address} if request.address else {}))

    async def trace(self, ref: str, request: PacketAsk) -> Trace:
        line = f"{request.protocol} {request.local_port} {request.remote_port}"
        return Trace(allowed=True, steps=[TraceStep(where=self.shelf.get(ref).name, allowed=True, line=line)])

    async def meters(self, ref: str) -> MeterReport:
        nic = self.shelf.get(ref)
        counts = [MeterCount(direction="out", remote=remote, packets=3, bytes=1500) for remote in nic.traffic.meters]
        return MeterReport(nic_id=nic.id, nic_name=nic.name, since=nic.created_at, counts=counts)

    async def capture(self, ref: str, request: CaptureStart) -> Pieces:
        nic = self.shelf.get(ref)
        if "bogus" in request.filter:
            raise Invalid("capture.filter", f"{request.filter!r} is not a filter", remedy="write another")
        self.captured = Pieces(nic, request)
        return self.captured

    async def reset_meters(self, ref: str) -> MeterReport:
        report = await self.meters(ref)
        counts = [MeterCount(direction="out", remote=one.remote) for one in report.counts]
        return report.model_copy(update={"counts": counts})

    async def rm(self, ref: str, *, dry_run: bool = False) -> Any:
        return self.plan(f"remove {self.shelf.get(ref).name}") if dry_run else self.shelf.drop(ref)


class Acls(Service[Acl]):
    async def create(self, request: ask.AclCreate, *, dry_run: bool = False) -> Any:
        made = Acl(**dict(request))
        return self.plan(f"create {made.name}") if dry_run else self.shelf.add(made)

    async def show(self, ref: str) -> views.AclDetail:
        return views.AclDetail(**dict(self.shelf.get(ref)), nics=["web-0"])

    async def set(self, ref: str, request: ask.AclSet, *, revision: int | None = None) -> Acl:  # type: ignore[override]
        return self.shelf.change(ref, revision, **{name: value for name, value in request if value is not None})
