"""Repositories: places for backups, known here by name; what is in them is theirs to say."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from pathlib import Path
from typing import Any

from innkeeper.daemon.husks import drop_husks
from innkeeper.daemon.rooms import Rooms
from innkeeper.model import requests as ask, views
from innkeeper.model.problems import Conflict
from innkeeper.model.resources import Backup, Repository, Task, Vm, now
from innkeeper.protect import prune, retention
from innkeeper.protect.bridge import Progress
from innkeeper.protect.points import RestorePoint
from innkeeper.protect.repository import Repository as OpenRepository
from innkeeper.protect.verify import VerifyReport, verify
from innkeeper.tasks.engine import Run, Step, TaskKind


class Repositories:
    """The ``repository`` noun."""

    def __init__(self, rooms: Rooms) -> None:
        self._rooms = rooms
        rooms.engine.register(
            TaskKind("repository.verify", [Step("verify every checksum", self._verify)], after_crash="resume")
        )
        rooms.engine.register(
            TaskKind(
                "repository.prune",
                [Step("remove restore points", self._remove), Step("give space back", self._prune)],
                after_crash="resume",
            )
        )

    # --- for backups ---

    async def open(self, repository: Repository) -> OpenRepository:
        """Open it, making sure that it is the one that was meant.

        Raises ``NotFound`` (``repository.absent``), ``Conflict`` (``repository.changed``), ``Corrupt``, ``Refused``.
        """
        return await asyncio.to_thread(OpenRepository.open, Path(repository.path), uuid=repository.uuid)

    async def sync(self, repository: Repository) -> None:
        """Make the documents of its backups be what the repository holds (another inn may use it too)."""
        opened = await self.open(repository)
        points, _unreadable = await asyncio.to_thread(opened.points)
        known = {backup.id: backup for backup in self._rooms.store.find(Backup, repository_id=repository.id)}
        for point in points:
            if point.id not in known:
                self._rooms.store.create(backup_document(repository, point))
        present = set(await asyncio.to_thread(opened.point_ids))
        for backup in known.values():
            if backup.id not in present:
                await self.forget(backup)

    async def forget(self, backup: Backup) -> None:
        """Drop a backup's document and the fabric snapshots that the next incremental would have stood on."""
        await drop_husks(self._rooms, backup)
        self._rooms.store.delete("backup", backup.id)

    # --- the noun ---

    async def create(self, request: ask.RepositoryCreate, *, dry_run: bool = False) -> Repository | views.Plan:
        """Raises ``Conflict`` (``repository.foreign``, ``repository.path_taken``), ``Invalid``, ``NoSpace``."""
        self._rooms.check_name_free(Repository, request.name)
        path = str(Path(request.path))
        for other in self._rooms.store.ls(Repository):
            if other.path == path:
                raise Conflict(
                    "repository.path_taken", f"{path} is repository {other.name!r} already", remedy="use that one"
                )
        if dry_run:
            return views.Plan(summary=f"make repository {request.name}", steps=[f"in {path}"])
        opened = await asyncio.to_thread(OpenRepository.create, Path(path))
        repository = self._rooms.store.create(
            Repository(name=request.name, path=path, labels=request.labels, uuid=opened.uuid)
        )
        await self.sync(repository)
        return repository

    async def ls(self) -> list[Repository]:
        return self._rooms.store.ls(Repository)

    async def show(self, ref: str) -> Repository:
        return self._rooms.store.get(Repository, ref)

    async def set(self, ref: str, request: ask.ResourceSet, *, revision: int | None = None) -> Repository:
        return self._rooms.apply_set(self._rooms.store.get(Repository, ref), request, revision)

    async def rm(self, ref: str) -> Repository:
        """Forget the repository; its directory stays as it is."""
        repository = self._rooms.store.get(Repository, ref)
        if self._rooms.in_unfinished_task(repository.id):
            raise Conflict("repository.in_use", f"a task uses repository {repository.name!r}", remedy="wait for it")
        for backup in self._rooms.store.find(Backup, repository_id=repository.id):
            await self.forget(backup)
        self._rooms.store.delete("repository", repository.id)
        return repository

    # --- verify and prune ---

    def _start(self, task_kind: str, repository: Repository, **parameters: Any) -> Task:
        return self._rooms.engine.start(
            task_kind,
            {"repository_id": repository.id, **parameters},
            target_kind="repository",
            target_id=repository.id,
            target_name=repository.name,
        )

    async def verify(self, ref: str, backup_id: str | None = None) -> Task:
        """Verify the whole repository, or what one restore point needs; damage fails the task and is in its result."""
        return self._start("repository.verify", self._rooms.store.get(Repository, ref), backup_id=backup_id)

    async def _verify(self, run: Run) -> None:
        repository = self._rooms.store.get(Repository, run.parameters["repository_id"])
        opened = await self.open(repository)
        report: VerifyReport = await verify(opened, run.parameters["backup_id"], progress_of(run))
        run.result.update(report.as_dict())
        problem = report.problem()
        if problem is not None:
            raise problem

    async def prune(self, ref: str, request: ask.RepositoryPrune, *, dry_run: bool = False) -> Task | views.PrunePlan:
        repository = self._rooms.store.get(Repository, ref)
        await self.sync(repository)
        plan = self._plan(repository, request)
        if dry_run:
            return plan
        return self._start("repository.prune", repository, remove=[entry["id"] for entry in plan.remove])

    def _plan(self, repository: Repository, request: ask.RepositoryPrune) -> views.PrunePlan:
        """What the policy keeps and removes, vm by vm."""
        backups = self._rooms.store.find(Backup, repository_id=repository.id)
        if request.vm is not None:
            vm_ids = {vm.id for vm in self._rooms.store.ls(Vm) if request.vm in (vm.id, vm.name)}
            backups = [one for one in backups if one.vm_id in vm_ids or request.vm in (one.vm_id, one.vm_name)]
        policy = retention.Policy(
            last=request.keep_last or 0, within=timedelta(days=request.keep_days) if request.keep_days else None
        )
        plan = views.PrunePlan(summary="")
        names = {backup.id: backup.name for backup in backups}
        for vm_id in sorted({backup.vm_id for backup in backups}):
            dated = [retention.Dated(one.id, one.taken_at) for one in backups if one.vm_id == vm_id]
            for verdict in retention.select(dated, policy, now()).verdicts:
                entry = {"id": verdict.id, "name": names[verdict.id], "reason": verdict.reason}
                (plan.keep if verdict.keep else plan.remove).append(entry)
        plan.summary = f"keep {len(plan.keep)} and remove {len(plan.remove)} backups of repository {repository.name}"
        plan.steps = [f"remove {entry['name']}: {entry['reason']}" for entry in plan.remove]
        return plan

    async def _remove(self, run: Run) -> None:
        repository = self._rooms.store.get(Repository, run.parameters["repository_id"])
        opened = await self.open(repository)
        for backup_id in run.parameters["remove"]:
            await self.remove_point(opened, backup_id)

    async def remove_point(self, opened: OpenRepository, backup_id: str) -> None:
        """Remove a restore point and its document; may be repeated."""
        if backup_id in await asyncio.to_thread(opened.point_ids):
            await asyncio.to_thread(opened.remove_point, backup_id)
        for backup in self._rooms.store.find(Backup, id=backup_id):
            await self.forget(backup)

    async def _prune(self, run: Run) -> None:
        repository = self._rooms.store.get(Repository, run.parameters["repository_id"])
        done = await prune.prune(await self.open(repository), progress=progress_of(run))
        run.result.update(removed=len(run.parameters["remove"]), freed_bytes=done.freed_bytes)


def progress_of(run: Run) -> Any:
    """A progress callback of the protect room that reports to a task."""

    def report(progress: Progress) -> None:
        run.progress(progress.fraction, progress.text)

    return report


def backup_document(repository: Repository, point: RestorePoint) -> Backup:
    """The document of a restore point that the repository holds."""
    statistics = point.statistics
    return Backup(
        id=point.id,
        name=backup_name(point.vm_name, point.taken_at.isoformat(timespec="seconds"), point.id),
        repository_id=repository.id,
        vm_id=point.vm_id,
        vm_name=point.vm_name,
        taken_at=point.taken_at,
        consistency=point.consistency,
        base_backup_id=point.base_backup_id,
        logical_bytes=point.logical_bytes,
        read_bytes=int(statistics.get("read_bytes", 0)),
        stored_bytes=int(statistics.get("stored_bytes", 0)),
        duration_s=float(statistics.get("duration_s", 0.0)),
    )


def backup_name(vm_name: str, moment: str, backup_id: str) -> str:
    """``web@2026-03-01T10:20:30-1a2b``: the vm, the UTC time, and enough of the id to be unique."""
    return f"{vm_name}@{moment.replace('+00:00', '')}-{backup_id[:4]}"
