"""The client's nouns, one class for each Protocol that the API serves; a test compares the two."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from datetime import datetime

from innkeeper.client.base import Noun, understand
from innkeeper.client.connection import ANSWER_TIMEOUT_S, Connection, segment
from innkeeper.model import requests as ask, resources as res, views
from innkeeper.model.capturing import CaptureStart
from innkeeper.model.journal import JournalEntry, Severity
from innkeeper.model.metering import MeterReport
from innkeeper.model.tracing import PacketAsk, ReachAsk, Trace


class Vms(Noun[res.Vm, views.VmDetail]):
    """Guests."""

    path, kind, detail = "/v1/vms", res.Vm, views.VmDetail

    def create(self, request: ask.VmCreate, *, dry_run: bool = False) -> res.Task | views.Plan:
        return self._task_or_plan(self.path, request, dry_run=dry_run)

    def set(self, ref: str, request: ask.VmSet, *, revision: int | None = None) -> res.Vm:
        return self._set(ref, request, revision)

    def rm(self, ref: str, *, with_disks: bool = False, force: bool = False) -> res.Task:
        return self._call(res.Task, "DELETE", self._at(ref), query={"with_disks": with_disks, "force": force})

    def start(self, ref: str) -> res.Task:
        return self._task(ref, "start")

    def shutdown(self, ref: str, request: ask.VmShutdown | None = None) -> res.Task:
        return self._task(ref, "shutdown", request or ask.VmShutdown())

    def poweroff(self, ref: str) -> res.Task:
        return self._task(ref, "poweroff")

    def pause(self, ref: str) -> res.Task:
        return self._task(ref, "pause")

    def resume(self, ref: str) -> res.Task:
        return self._task(ref, "resume")

    def reset(self, ref: str) -> res.Task:
        return self._task(ref, "reset")

    def save(self, ref: str) -> res.Task:
        return self._task(ref, "save")

    def clone(self, ref: str, request: ask.VmClone, *, dry_run: bool = False) -> res.Task | views.Plan:
        return self._task_or_plan(f"{self._at(ref)}/clone", request, dry_run=dry_run)

    def rename(self, ref: str, request: ask.VmRename) -> res.Vm:
        return self._call(res.Vm, "POST", f"{self._at(ref)}/rename", body=request)

    def exec(self, ref: str, request: ask.VmExec) -> views.ExecResult:
        timeout_s = request.timeout_s + ANSWER_TIMEOUT_S
        return self._call(views.ExecResult, "POST", f"{self._at(ref)}/exec", body=request, timeout_s=timeout_s)


class Checkpoints(Noun[res.Checkpoint, res.Checkpoint]):
    """Points of a vm."""

    path, kind, detail = "/v1/checkpoints", res.Checkpoint, res.Checkpoint

    @staticmethod
    def _of(vm_ref: str, ref: str = "") -> str:
        base = f"/v1/vms/{segment(vm_ref)}/checkpoints"
        return f"{base}/{segment(ref)}" if ref else base

    def create(self, vm_ref: str, request: ask.CheckpointCreate, *, dry_run: bool = False) -> res.Task | views.Plan:
        return self._task_or_plan(self._of(vm_ref), request, dry_run=dry_run)

    def of(self, vm_ref: str) -> list[res.Checkpoint]:
        """The checkpoints of one vm."""
        return self._all({"vm_ref": vm_ref})

    def find(self, vm_ref: str, ref: str) -> res.Checkpoint:
        """The checkpoint of that vm with that id or name."""
        return self._call(res.Checkpoint, "GET", self._of(vm_ref, ref))

    def set(self, vm_ref: str, ref: str, request: ask.ResourceSet, *, revision: int | None = None) -> res.Checkpoint:
        return self._set_at(self._of(vm_ref, ref), request, revision)

    def apply(self, vm_ref: str, ref: str) -> res.Task:
        return self._call(res.Task, "POST", f"{self._of(vm_ref, ref)}/apply")

    def rm(self, vm_ref: str, ref: str) -> res.Task:
        return self._call(res.Task, "DELETE", self._of(vm_ref, ref))


class Images(Noun[res.Image, res.Image]):
    """Templates and ISOs."""

    path, kind, detail = "/v1/images", res.Image, res.Image

    def build(self, request: ask.ImageBuild, *, dry_run: bool = False) -> res.Task | views.Plan:
        return self._task_or_plan(f"{self.path}/build", request, dry_run=dry_run)

    def import_(self, request: ask.ImageImport, *, dry_run: bool = False) -> res.Task | views.Plan:
        return self._task_or_plan(f"{self.path}/import", request, dry_run=dry_run)

    def set(self, ref: str, request: ask.ResourceSet, *, revision: int | None = None) -> res.Image:
        return self._set(ref, request, revision)

    def rm(self, ref: str) -> res.Image:
        return self._call(res.Image, "DELETE", self._at(ref))


class Disks(Noun[res.Disk, views.DiskDetail]):
    """Disks on the fabric."""

    path, kind, detail = "/v1/disks", res.Disk, views.DiskDetail

    def create(self, request: ask.DiskCreate, *, dry_run: bool = False) -> res.Disk | views.Plan:
        return self._new(self.path, request, dry_run=dry_run)

    def set(self, ref: str, request: ask.DiskSet, *, revision: int | None = None) -> res.Disk:
        return self._set(ref, request, revision)

    def rm(self, ref: str) -> res.Disk:
        return self._call(res.Disk, "DELETE", self._at(ref))

    def resize(self, ref: str, request: ask.DiskResize) -> res.Disk:
        return self._call(res.Disk, "POST", f"{self._at(ref)}/resize", body=request)

    def move(self, ref: str, request: ask.DiskMove) -> res.Task:
        return self._call(res.Task, "POST", f"{self._at(ref)}/move", body=request)

    def snapshot(self, ref: str, request: ask.DiskSnapshot) -> res.Disk:
        return self._call(res.Disk, "POST", f"{self._at(ref)}/snapshots", body=request)

    def snapshots(self, ref: str) -> list[views.DiskSnapshot]:
        found = self._connection.send("GET", f"{self._at(ref)}/snapshots")
        return [understand(views.DiskSnapshot, one) for one in found]

    def snapshot_rm(self, ref: str, snapshot: str) -> res.Disk:
        return self._call(res.Disk, "DELETE", f"{self._at(ref)}/snapshots/{segment(snapshot)}")

    def revert(self, ref: str, request: ask.DiskRevert) -> res.Disk:
        return self._call(res.Disk, "POST", f"{self._at(ref)}/revert", body=request)

    def clone(self, ref: str, request: ask.DiskClone, *, dry_run: bool = False) -> res.Disk | views.Plan:
        return self._new(f"{self._at(ref)}/clone", request, dry_run=dry_run)

    def diff(self, ref: str, *, base: str | None = None, snapshot: str | None = None) -> views.DiskDiff:
        return self._call(views.DiskDiff, "GET", f"{self._at(ref)}/diff", query={"base": base, "snapshot": snapshot})

    def attach(self, ref: str, request: ask.DiskAttach) -> res.Disk:
        return self._call(res.Disk, "POST", f"{self._at(ref)}/attach", body=request)

    def detach(self, ref: str) -> res.Disk:
        return self._call(res.Disk, "POST", f"{self._at(ref)}/detach")

    def export_open(self, ref: str, request: ask.DiskExport) -> views.OpenExport:
        return self._call(views.OpenExport, "POST", f"{self._at(ref)}/exports", body=request)

    def export_close(self, ref: str, attachment_id: str) -> res.Disk:
        return self._call(res.Disk, "DELETE", f"{self._at(ref)}/exports/{segment(attachment_id)}")


class Storages(Noun[res.Storage, views.StorageDetail]):
    """Policies that disks live under."""

    path, kind, detail = "/v1/storages", res.Storage, views.StorageDetail

    def create(self, request: ask.StorageCreate, *, dry_run: bool = False) -> res.Storage | views.Plan:
        return self._new(self.path, request, dry_run=dry_run)

    def set(self, ref: str, request: ask.StorageSet, *, revision: int | None = None) -> res.Storage:
        return self._set(ref, request, revision)

    def rm(self, ref: str) -> res.Storage:
        return self._call(res.Storage, "DELETE", self._at(ref))


class QosPolicies(Noun[res.Qos, views.QosDetail]):
    """What disks may take of the pool, and what they are sure of."""

    path, kind, detail = "/v1/qos", res.Qos, views.QosDetail

    def create(self, request: ask.QosCreate, *, dry_run: bool = False) -> res.Qos | views.Plan:
        return self._new(self.path, request, dry_run=dry_run)

    def set(self, ref: str, request: ask.QosSet, *, revision: int | None = None) -> res.Qos:
        return self._set(ref, request, revision)

    def rm(self, ref: str) -> res.Qos:
        return self._call(res.Qos, "DELETE", self._at(ref))


class Pools(Noun[res.Pool, views.PoolDetail]):
    """Where the fabric keeps disks' data."""

    path, kind, detail = "/v1/pools", res.Pool, views.PoolDetail

    def create(self, request: ask.PoolCreate, *, dry_run: bool = False) -> res.Pool | views.Plan:
        return self._new(self.path, request, dry_run=dry_run)

    def rm(self, ref: str, *, lost: bool = False) -> res.Pool:
        return self._call(res.Pool, "DELETE", self._at(ref), query={"lost": lost})

    def open(self, ref: str) -> res.Pool:
        return self._call(res.Pool, "POST", f"{self._at(ref)}/open")

    def set(self, ref: str, request: ask.PoolSet, *, revision: int | None = None) -> res.Pool:
        return self._set(ref, request, revision)

    def scrub(self, ref: str) -> res.Task:
        return self._call(res.Task, "POST", f"{self._at(ref)}/scrub")

    def curate(self, ref: str) -> res.Task:
        return self._call(res.Task, "POST", f"{self._at(ref)}/curate")

    def pause(self, ref: str) -> views.CuratorFacts:
        return self._call(views.CuratorFacts, "POST", f"{self._at(ref)}/pause")

    def resume(self, ref: str) -> views.CuratorFacts:
        return self._call(views.CuratorFacts, "POST", f"{self._at(ref)}/resume")

    def hot(self, ref: str) -> list[views.HotGroup]:
        return [understand(views.HotGroup, found) for found in self._connection.send("GET", f"{self._at(ref)}/hot")]

    def device_add(self, ref: str, request: ask.PoolDeviceAdd) -> views.PoolDevice:
        return self._call(views.PoolDevice, "POST", f"{self._at(ref)}/devices", body=request)

    def device_drain(self, ref: str, device: str) -> res.Task:
        return self._call(res.Task, "POST", f"{self._at(ref)}/devices/{segment(device)}/drain")


class Switches(Noun[res.Switch, views.SwitchDetail]):
    """Virtual switches."""

    path, kind, detail = "/v1/switches", res.Switch, views.SwitchDetail

    def create(self, request: ask.SwitchCreate, *, dry_run: bool = False) -> res.Switch | views.Plan:
        return self._new(self.path, request, dry_run=dry_run)

    def set(
        self, ref: str, request: ask.SwitchSet, *, revision: int | None = None, dry_run: bool = False
    ) -> res.Switch | views.Plan:
        return self._patched(ref, request, revision, dry_run=dry_run)

    def simulate(self, ref: str, request: ReachAsk) -> Trace:
        return self._call(Trace, "POST", f"{self._at(ref)}/simulate", body=request)

    def rm(self, ref: str, *, dry_run: bool = False) -> res.Switch | views.Plan:
        return self._changed("DELETE", self._at(ref), dry_run=dry_run)

    def confirm(self, ref: str) -> res.Switch:
        """Keep the host's network where an external switch has moved it to."""
        return self._call(res.Switch, "POST", f"{self._at(ref)}/confirm")


class Nics(Noun[res.Nic, views.NicDetail]):
    """Cards and their ports."""

    path, kind, detail = "/v1/nics", res.Nic, views.NicDetail

    def create(self, request: ask.NicCreate, *, dry_run: bool = False) -> res.Nic | views.Plan:
        return self._new(self.path, request, dry_run=dry_run)

    def set(
        self, ref: str, request: ask.NicSet, *, revision: int | None = None, dry_run: bool = False
    ) -> res.Nic | views.Plan:
        return self._patched(ref, request, revision, dry_run=dry_run)

    def rm(self, ref: str, *, dry_run: bool = False) -> res.Nic | views.Plan:
        return self._changed("DELETE", self._at(ref), dry_run=dry_run)

    def trace(self, ref: str, request: PacketAsk) -> Trace:
        return self._call(Trace, "POST", f"{self._at(ref)}/trace", body=request)

    def meters(self, ref: str) -> MeterReport:
        return self._call(MeterReport, "GET", f"{self._at(ref)}/meters")

    def reset_meters(self, ref: str) -> MeterReport:
        return self._call(MeterReport, "POST", f"{self._at(ref)}/meters/reset")

    def capture(self, ref: str, request: CaptureStart) -> Generator[bytes, None, None]:
        """What passes its port as pcap, piece by piece; closing the iterator ends it."""
        return self._connection.pieces(f"{self._at(ref)}/capture", request.model_dump(exclude_unset=True))


class Acls(Noun[res.Acl, views.AclDetail]):
    """Named ACLs."""

    path, kind, detail = "/v1/acls", res.Acl, views.AclDetail

    def create(self, request: ask.AclCreate, *, dry_run: bool = False) -> res.Acl | views.Plan:
        return self._new(self.path, request, dry_run=dry_run)

    def set(self, ref: str, request: ask.AclSet, *, revision: int | None = None) -> res.Acl:
        return self._set(ref, request, revision)

    def rm(self, ref: str) -> res.Acl:
        return self._call(res.Acl, "DELETE", self._at(ref))


class Repositories(Noun[res.Repository, res.Repository]):
    """Places for backups."""

    path, kind, detail = "/v1/repositories", res.Repository, res.Repository

    def create(self, request: ask.RepositoryCreate, *, dry_run: bool = False) -> res.Repository | views.Plan:
        return self._new(self.path, request, dry_run=dry_run)

    def set(self, ref: str, request: ask.ResourceSet, *, revision: int | None = None) -> res.Repository:
        return self._set(ref, request, revision)

    def rm(self, ref: str) -> res.Repository:
        return self._call(res.Repository, "DELETE", self._at(ref))

    def verify(self, ref: str) -> res.Task:
        return self._task(ref, "verify")

    def prune(self, ref: str, request: ask.RepositoryPrune, *, dry_run: bool = False) -> res.Task | views.PrunePlan:
        path, query = f"{self._at(ref)}/prune", {"dry_run": dry_run}
        if dry_run:
            return self._call(views.PrunePlan, "POST", path, body=request, query=query)
        return self._call(res.Task, "POST", path, body=request, query=query)


class Backups(Noun[res.Backup, res.Backup]):
    """Restore points."""

    path, kind, detail = "/v1/backups", res.Backup, res.Backup

    def create(self, request: ask.BackupCreate, *, dry_run: bool = False) -> res.Task | views.Plan:
        return self._task_or_plan(self.path, request, dry_run=dry_run)

    def set(self, ref: str, request: ask.BackupSet, *, revision: int | None = None) -> res.Backup:
        return self._set(ref, request, revision)

    def rm(self, ref: str) -> res.Task:
        return self._call(res.Task, "DELETE", self._at(ref))

    def verify(self, ref: str) -> res.Task:
        return self._task(ref, "verify")

    def restore(self, ref: str, request: ask.BackupRestore, *, dry_run: bool = False) -> res.Task | views.Plan:
        return self._task_or_plan(f"{self._at(ref)}/restore", request, dry_run=dry_run)


class Tasks(Noun[res.Task, res.Task]):
    """Long work."""

    path, kind, detail = "/v1/tasks", res.Task, res.Task

    def cancel(self, ref: str) -> res.Task:
        return self._task(ref, "cancel")

    def watch(self, ref: str) -> Iterator[res.Task]:
        """The task now, then after every change, until it has ended (or the daemon has: ``daemon.lost``)."""
        for data in self._connection.events(f"{self._at(ref)}/events"):
            yield res.Task.model_validate_json(data)


class Journal:
    """What happened."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def ls(
        self,
        *,
        subject: str | None = None,
        vm: str | None = None,
        severity: Severity = "info",
        since: datetime | None = None,
        last: int = 1_000,
    ) -> list[JournalEntry]:
        """The latest entries, the oldest first."""
        query = {"subject": subject, "vm": vm, "severity": severity, "last": last}
        query["since"] = since.isoformat() if since is not None else None
        return [understand(JournalEntry, one) for one in self._connection.send("GET", "/v1/journal", query=query)]

    def watch(
        self,
        *,
        subject: str | None = None,
        vm: str | None = None,
        severity: Severity = "info",
        after_revision: int | None = None,
    ) -> Iterator[JournalEntry]:
        """Entries as they come, until the daemon ends (``daemon.lost``)."""
        query = {"subject": subject, "vm": vm, "severity": severity, "after_revision": after_revision}
        given = {name: str(value) for name, value in query.items() if value is not None}
        for data in self._connection.events("/v1/journal/events", given):
            yield JournalEntry.model_validate_json(data)


class Host:
    """The host and the inn on it."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def show(self) -> views.HostView:
        return understand(views.HostView, self._connection.send("GET", "/v1/host"))

    def set(self, request: ask.HostSet) -> views.HostView:
        return understand(views.HostView, self._connection.send("PATCH", "/v1/host", body=request))

    def health(self) -> views.Health:
        return understand(views.Health, self._connection.send("GET", "/v1/host/health", timeout_s=10.0))

    def doctor(self) -> list[views.Check]:
        return [understand(views.Check, found) for found in self._connection.send("GET", "/v1/host/doctor")]

    def metrics(self) -> str:
        return self._connection.text("/metrics")

    def stop(self, request: ask.HostStop) -> res.Task:
        return understand(res.Task, self._connection.send("POST", "/v1/host/stop", body=request))


class Firewall:
    """What of the host is reached from outside."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def show(self) -> views.FirewallView:
        return understand(views.FirewallView, self._connection.send("GET", "/v1/host/firewall"))

    def set(self, request: ask.HostFirewallSet, *, dry_run: bool = False) -> views.FirewallView | views.Plan:
        kind: type[views.FirewallView] | type[views.Plan] = views.Plan if dry_run else views.FirewallView
        answered = self._connection.send("PATCH", "/v1/host/firewall", body=request, query={"dry_run": dry_run})
        return understand(kind, answered)

    def confirm(self) -> views.FirewallView:
        """Keep the last change."""
        return understand(views.FirewallView, self._connection.send("POST", "/v1/host/firewall/confirm"))
