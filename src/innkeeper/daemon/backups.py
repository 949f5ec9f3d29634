"""Backups: a guest's disks of one instant, quiesced, into a repository; and back as a new vm."""

from __future__ import annotations

from typing import Any

from innkeeper.daemon.assembly import Assembly, Blueprint, DiskPlan
from innkeeper.daemon.checkpoints import disk_ids
from innkeeper.daemon.disks import Disks
from innkeeper.daemon.husks import drop_husks
from innkeeper.daemon.nics import like, macs_in_use
from innkeeper.daemon.power import Power
from innkeeper.daemon.quiesce import Quiescer
from innkeeper.daemon.repositories import Repositories, backup_name, progress_of
from innkeeper.daemon.rooms import Rooms
from innkeeper.daemon.storages import Storages
from innkeeper.daemon.tpm import restore_tpm, tpm_at_rest
from innkeeper.daemon.vms import Vms
from innkeeper.model import requests as ask, views
from innkeeper.model.problems import Invalid, NotFound, Problem
from innkeeper.model.resources import (
    Acl,
    Backup,
    Disk,
    DiskLink,
    Nic,
    Repository,
    Switch,
    Task,
    Vm,
    VmSpec,
    VmStatus,
    new_id,
    now,
)
from innkeeper.model.sizes import format_size
from innkeeper.protect.backup import TPM_FILE, BackupInputs, BackupResult, backup_vm
from innkeeper.protect.points import RestorePoint
from innkeeper.protect.restore import read_file, restore_disks
from innkeeper.tasks.engine import Run, Step, TaskKind


class Backups:
    """The ``backup`` noun."""

    def __init__(
        self,
        rooms: Rooms,
        disks: Disks,
        storages: Storages,
        vms: Vms,
        power: Power,
        quiescer: Quiescer,
        repositories: Repositories,
        assembly: Assembly,
    ) -> None:
        self._rooms = rooms
        self._disks = disks
        self._storages = storages
        self._vms = vms
        self._power = power
        self._quiescer = quiescer
        self._repositories = repositories
        rooms.engine.register(
            TaskKind(
                "backup.create",
                [Step("snapshot and copy", self._back_up_all, self._drop_unpublished)],
            )
        )
        record, make_disks = assembly.steps()
        rooms.engine.register(
            TaskKind(
                "backup.restore",
                [
                    record,
                    Step("restore the disks", self._restore_disks, self._unmake_disks, weight=10),
                    make_disks,
                    Step("restore the TPM", self._restore_tpm, weight=0.1),
                    *assembly.last_steps(),
                ],
            )
        )
        rooms.engine.register(
            TaskKind("backup.rm", [Step("remove the restore point", self._remove)], after_crash="resume")
        )

    # --- back up ---

    async def create(self, request: ask.BackupCreate, *, dry_run: bool = False) -> Task | views.Plan:
        """Raises ``NotFound`` (``vm.not_found``, ``repository.not_found``, ``repository.absent``)."""
        repository = self._rooms.store.get(Repository, request.repository)
        vms = [self._rooms.store.get(Vm, ref) for ref in request.vms]
        await self._repositories.open(repository)
        if dry_run:
            steps = []
            for vm in vms:
                base = None if request.full else self._base(vm, repository)
                steps.append(f"{vm.name}: {f'what changed since {base.name}' if base else 'everything'}")
            return views.Plan(summary=f"back up {len(vms)} vms into {repository.name}", steps=steps)
        work = [
            {
                "vm_id": vm.id,
                "backup_id": new_id(),
                "snapshots": {disk_id: new_id() for disk_id in disk_ids(vm.spec)},
            }
            for vm in vms
        ]
        single = vms[0] if len(vms) == 1 else None
        return self._rooms.engine.start(
            "backup.create",
            {
                "repository_id": repository.id,
                "work": work,
                "full": request.full,
                "quiesce": request.quiesce,
                "labels": request.labels,
            },
            target_kind="vm" if single else "repository",
            target_id=single.id if single else repository.id,
            target_name=single.name if single else repository.name,
        )

    def _base(self, vm: Vm, repository: Repository) -> Backup | None:
        """The newest backup of the vm there: the next one costs what changed since then."""
        backups = self._rooms.store.find(Backup, repository_id=repository.id, vm_id=vm.id)
        return max(backups, key=lambda backup: backup.taken_at, default=None)

    async def _back_up_all(self, run: Run) -> None:
        done: list[dict[str, Any]] = run.result.setdefault("backups", [])
        finished = {entry["id"] for entry in done}
        for work in run.parameters["work"]:
            if work["backup_id"] not in finished:
                done.append(await self._back_up(run, work))

    async def _back_up(self, run: Run, work: dict[str, Any]) -> dict[str, Any]:
        store = self._rooms.store
        repository = store.get(Repository, run.parameters["repository_id"])
        opened = await self._repositories.open(repository)
        vm = store.get(Vm, work["vm_id"])
        has_process = self._power.has_process(vm)
        frozen = await self._quiescer.snapshot(vm, work["snapshots"], quiesce=run.parameters["quiesce"])
        taken_at = now()
        base = None if run.parameters["full"] else self._base(vm, repository)
        consistency = "crash" if not frozen else "application" if has_process else "offline"
        inputs = BackupInputs(
            backup_id=work["backup_id"],
            vm_id=vm.id,
            vm_name=vm.name,
            vm=self._document(vm),
            taken_at=taken_at,
            disks=work["snapshots"],
            tpm=await tpm_at_rest(self._power, vm),
            consistency=consistency,  # type: ignore[arg-type]
            base_backup_id=base.id if base else None,
        )
        result = await backup_vm(opened, inputs, self._rooms.fabric, self._rooms.paths.nbd_socket, progress_of(run))
        backup = self._record(repository, vm, inputs, result, run.parameters["labels"])
        if base is not None:
            await drop_husks(self._rooms, base)
        shown = ("id", "name", "vm_name", "logical_bytes", "read_bytes", "stored_bytes", "duration_s", "consistency")
        return {key: value for key, value in backup.model_dump(mode="json").items() if key in shown}

    def _document(self, vm: Vm) -> dict[str, Any]:
        """What a restore needs of the vm: its document, its cards, its disks' names."""
        store = self._rooms.store
        disks = [store.get(Disk, disk_id) for disk_id in disk_ids(vm.spec)]
        return {
            "vm": vm.model_dump(mode="json"),
            "nics": [
                {
                    **nic.model_dump(mode="json"),
                    "switch_name": store.get(Switch, nic.switch_id).name,
                    "acls": [store.get(Acl, acl_id).model_dump(mode="json") for acl_id in nic.acl.sets],
                }
                for nic in sorted(store.find(Nic, vm_id=vm.id), key=lambda nic: nic.index)
            ],
            "disks": [disk.model_dump(mode="json") for disk in disks],
        }

    def _record(
        self, repository: Repository, vm: Vm, inputs: BackupInputs, result: BackupResult, labels: dict[str, str]
    ) -> Backup:
        moment = inputs.taken_at.isoformat(timespec="seconds")
        return self._rooms.store.create(
            Backup(
                id=inputs.backup_id,
                name=backup_name(vm.name, moment, inputs.backup_id),
                labels=labels,
                repository_id=repository.id,
                vm_id=vm.id,
                vm_name=vm.name,
                taken_at=inputs.taken_at,
                consistency=inputs.consistency,
                base_backup_id=result.base_backup_id,
                logical_bytes=result.logical_bytes,
                read_bytes=result.read_bytes,
                stored_bytes=result.stored_bytes,
                duration_s=result.duration_s,
                husks=inputs.disks,
            )
        )

    async def _drop_unpublished(self, run: Run) -> None:
        """Undo: drop the snapshots of backups that were not recorded; those that were are whole and stay."""
        for work in run.parameters["work"]:
            if not self._rooms.store.find(Backup, id=work["backup_id"]):
                for snapshot_id in work["snapshots"].values():
                    await self._rooms.fabric.snapshot_rm(snapshot_id)

    # --- the noun ---

    async def ls(self) -> list[Backup]:
        for repository in self._rooms.store.ls(Repository):
            try:
                await self._repositories.sync(repository)
            except Problem:
                continue  # a repository that is away keeps the backups that are known of it
        return sorted(self._rooms.store.ls(Backup), key=lambda backup: backup.taken_at)

    def resolve(self, ref: str) -> Backup:
        """The backup with that id or name; the newest one of a vm when ``ref`` is a vm's name.

        Raises ``NotFound`` (``backup.not_found``).
        """
        backups = self._rooms.store.ls(Backup)
        exact = [backup for backup in backups if ref in (backup.id, backup.name)]
        of_vm = [backup for backup in backups if ref in (backup.vm_id, backup.vm_name)]
        if not exact and not of_vm:
            raise NotFound("backup.not_found", f"there is no backup {ref!r}", remedy="'inn backup ls' lists them")
        return exact[0] if exact else max(of_vm, key=lambda backup: backup.taken_at)

    async def show(self, ref: str) -> Backup:
        return self.resolve(ref)

    async def set(self, ref: str, request: ask.BackupSet, *, revision: int | None = None) -> Backup:
        return self._rooms.apply_set(self.resolve(ref), request, revision)

    async def rm(self, ref: str) -> Task:
        backup = self.resolve(ref)
        return self._rooms.engine.start(
            "backup.rm",
            {"backup_id": backup.id, "repository_id": backup.repository_id},
            target_kind="repository",
            target_id=backup.repository_id,
            target_name=backup.name,
        )

    async def _remove(self, run: Run) -> None:
        repository = self._rooms.store.get(Repository, run.parameters["repository_id"])
        opened = await self._repositories.open(repository)
        await self._repositories.remove_point(opened, run.parameters["backup_id"])

    async def verify(self, ref: str) -> Task:
        backup = self.resolve(ref)
        return await self._repositories.verify(backup.repository_id, backup.id)

    # --- restore ---

    async def restore(self, ref: str, request: ask.BackupRestore, *, dry_run: bool = False) -> Task | views.Plan:
        """Raises ``Conflict`` (``vm.name_taken``), ``NotFound``, ``Corrupt``."""
        backup = self.resolve(ref)
        self._rooms.check_name_free(Vm, request.as_name)
        opened = await self._repositories.open(self._rooms.store.get(Repository, backup.repository_id))
        point = opened.point(backup.id)
        blueprint, mapping = self._blueprint(point, request)
        if dry_run:
            steps = [f"restore disk {plan.disk.name}: {format_size(plan.disk.size_bytes)}" for plan in blueprint.disks]
            steps += [f"plug a card into switch {wish.switch}" for wish in blueprint.nics]
            return views.Plan(summary=f"restore {backup.name} as vm {request.as_name}", steps=steps)
        return self._rooms.engine.start(
            "backup.restore",
            {
                "backup_id": backup.id,
                "repository_id": backup.repository_id,
                "blueprint": blueprint.model_dump(mode="json"),
                "mapping": mapping,
                "storage_id": self._storages.resolve(request.storage).id,
                "start": request.start,
            },
            target_kind="vm",
            target_id=blueprint.vm.id,
            target_name=request.as_name,
        )

    def _blueprint(self, point: RestorePoint, request: ask.BackupRestore) -> tuple[Blueprint, dict[str, str]]:
        """The vm to be, and: disk id in the restore point -> id of the new disk."""
        old = Vm.model_validate(point.vm["vm"])
        vm_id = new_id()
        sizes = {disk.disk_id: disk.size_bytes for disk in point.disks}
        mapping = {disk_id: new_id() for disk_id in sizes}
        storage_id = self._storages.resolve(request.storage).id
        plans = []
        for number, link in enumerate((link for link in old.spec.disks if link.disk_id in sizes), start=1):
            name = f"{request.as_name}-disk{number if number > 1 else ''}"
            disk = self._disks.blank(name, sizes[link.disk_id], request.storage, id=mapping[link.disk_id], vm_id=vm_id)
            plans.append(DiskPlan(disk=disk))
        nvram_id = old.spec.nvram_disk_id
        if nvram_id is not None:
            disk = Disk(
                id=mapping[nvram_id],
                name=f"{request.as_name}-nvram",
                size_bytes=sizes[nvram_id],
                storage_id=storage_id,
                role="nvram",
                vm_id=vm_id,
            )
            plans.append(DiskPlan(disk=disk))
        spec = self._spec(old, mapping)
        vm = Vm(
            id=vm_id,
            name=request.as_name,
            labels=old.labels,
            spec=spec,
            status=VmStatus(uid=self._vms.free_uid()),
        )
        nics = [self._card(card, request) for card in point.vm["nics"]]
        return Blueprint(vm=vm, disks=plans, nics=nics), mapping

    @staticmethod
    def _spec(old: Vm, mapping: dict[str, str]) -> VmSpec:
        links = [
            DiskLink(disk_id=mapping[link.disk_id], boot_index=link.boot_index)
            for link in old.spec.disks
            if link.disk_id in mapping
        ]
        nvram_id = old.spec.nvram_disk_id
        return old.spec.model_copy(
            update={
                "disks": links,
                "nvram_disk_id": mapping[nvram_id] if nvram_id else None,
                "iso_image_id": None,
                "iso_boot_first": False,
                "protect": False,
            }
        )

    def _card(self, card: dict[str, Any], request: ask.BackupRestore) -> ask.VmNic:
        """The card of the restored vm: on its old switch by id, then by name, or on the one that was asked for."""
        switches = {switch.id: switch for switch in self._rooms.store.ls(Switch)}
        by_name = {switch.name: switch for switch in switches.values()}
        nic = Nic.model_validate({key: value for key, value in card.items() if key in Nic.model_fields})
        acls = {acl.id for acl in self._rooms.store.ls(Acl)}
        kept = [Acl.model_validate(acl) for acl in card.get("acls", ())]
        nic.acl = nic.acl.with_lines_of(acl for acl in kept if acl.id not in acls)
        switch = self._rooms.store.get(Switch, request.switch) if request.switch else switches.get(nic.switch_id)
        switch = switch or by_name.get(card["switch_name"])
        if switch is None:
            raise Invalid(
                "backup.switch_gone",
                f"the switch {card['switch_name']!r} of the backup is not here",
                remedy="make it, or say --switch",
            )
        keep_mac = request.keep_macs and nic.mac not in macs_in_use(self._rooms, switch)
        return like(nic, switch, nic.mac if keep_mac else None)

    async def _restore_disks(self, run: Run) -> None:
        repository = self._rooms.store.get(Repository, run.parameters["repository_id"])
        opened = await self._repositories.open(repository)
        result = await restore_disks(
            opened,
            run.parameters["backup_id"],
            self._rooms.fabric,
            self._rooms.paths.nbd_socket,
            run.parameters["mapping"],
            run.parameters["storage_id"],
            progress_of(run),
        )
        run.result.update(written_bytes=result.written_bytes, read_bytes=result.read_bytes)

    async def _unmake_disks(self, run: Run) -> None:
        for disk_id in run.parameters["mapping"].values():
            await self._disks.unmake(disk_id)

    async def _restore_tpm(self, run: Run) -> None:
        vm = self._rooms.store.get(Vm, Blueprint.model_validate(run.parameters["blueprint"]).vm.id)
        if not vm.spec.tpm:
            return
        opened = await self._repositories.open(self._rooms.store.get(Repository, run.parameters["repository_id"]))
        archive = read_file(opened, opened.point(run.parameters["backup_id"]), TPM_FILE)
        if archive is not None:
            restore_tpm(self._power, vm, archive)
