"""Images: built from Debian packages or imported from files, kept on the fabric as a disk and its snapshot.

A disk made from an image is a clone of that snapshot, so it costs nothing until it is written.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from innkeeper.compute.images import catalogue, importer
from innkeeper.daemon.copying import fill_disk
from innkeeper.daemon.disks import Disks
from innkeeper.daemon.rooms import Rooms
from innkeeper.daemon.storages import Storages
from innkeeper.model import requests as ask, views
from innkeeper.model.problems import Conflict, NotFound
from innkeeper.model.resources import Disk, Image, Task, Vm, new_id
from innkeeper.model.sizes import format_size
from innkeeper.tasks.engine import Run, Step, TaskKind


class Images:
    """The ``image`` noun."""

    def __init__(self, rooms: Rooms, disks: Disks, storages: Storages) -> None:
        self._rooms = rooms
        self._disks = disks
        self._storages = storages
        store_steps = [
            Step("record it", self._record, self._forget, weight=0.05),
            Step("copy it to the fabric", self._copy, self._uncopy),
            Step("finish", self._finish, weight=0.05),
        ]
        rooms.engine.register(
            TaskKind("image.build", [Step("build it", self._build, self._unbuild, weight=3), *store_steps])
        )
        rooms.engine.register(TaskKind("image.import", [Step("check the file", self._check), *store_steps]))

    # --- requests ---

    async def build(self, request: ask.ImageBuild, *, dry_run: bool = False) -> Task | views.Plan:
        """Raises ``NotFound`` (``image.unknown``), ``Conflict`` (``image.name_taken``)."""
        catalogue.find(request.name)
        existing = self._rooms.store.find(Image, name=request.name)
        if existing and not request.rebuild:
            raise Conflict(
                "image.name_taken", f"image {request.name!r} exists", remedy="say --rebuild to build it anew"
            )
        if dry_run:
            return views.Plan(
                summary=f"build image {request.name} from Debian packages",
                steps=["replace the present one; disks made from it stay"] if existing else [],
            )
        return self._start("image.build", request.name, {}, request.name, rebuild=request.rebuild)

    async def import_(self, request: ask.ImageImport, *, dry_run: bool = False) -> Task | views.Plan:
        """Raises ``NotFound`` (``image.no_file``), ``Refused`` (``image.hostile``), ``Corrupt``, ``Conflict``."""
        self._rooms.check_name_free(Image, request.name)
        path = Path(request.path)
        if not path.is_file():
            raise NotFound("image.no_file", f"there is no file {path}", remedy="give the path of a file on this host")
        if dry_run:
            facts = await asyncio.to_thread(importer.inspect, path, request.format)
            return views.Plan(
                summary=f"import {path} as image {request.name}",
                steps=[f"{facts.format}, {format_size(facts.virtual_size_bytes)}"],
            )
        return self._start("image.import", request.name, request.model_dump(mode="json"), str(path))

    def _start(self, task_kind: str, name: str, request: dict[str, Any], source: str, *, rebuild: bool = False) -> Task:
        image_id = new_id()
        parameters = {
            "image_id": image_id,
            "disk_id": new_id(),
            "snapshot_id": new_id(),
            "name": name,
            "source": source,
            "request": request,
            "rebuild": rebuild,
        }
        return self._rooms.engine.start(
            task_kind, parameters, target_kind="image", target_id=image_id, target_name=name
        )

    # --- steps ---

    def _built_file(self, run: Run) -> Path:
        return self._rooms.paths.cache / "builds" / f"{run.parameters['image_id']}.raw"

    async def _build(self, run: Run) -> None:
        loop = asyncio.get_running_loop()

        def progress(fraction: float, text: str) -> None:
            loop.call_soon_threadsafe(run.progress, fraction, text)

        built_file = self._built_file(run)
        built_file.parent.mkdir(parents=True, exist_ok=True)
        builder = catalogue.find(run.parameters["name"])
        built = await asyncio.to_thread(builder, built_file, cache_dir=self._rooms.paths.cache, progress=progress)
        run.context.update(
            path=str(built.path),
            format="raw",
            size_bytes=built.size_bytes,
        )

    async def _unbuild(self, run: Run) -> None:
        self._built_file(run).unlink(missing_ok=True)

    async def _check(self, run: Run) -> None:
        request = ask.ImageImport.model_validate(run.parameters["request"])
        facts = await asyncio.to_thread(importer.inspect, Path(request.path), request.format)
        if request.sha256 is not None:
            await asyncio.to_thread(importer.verify_checksum, Path(request.path), request.sha256)
        run.context.update(
            path=request.path,
            format=facts.format,
            size_bytes=facts.virtual_size_bytes,
            image_kind=request.image_kind,
            labels=request.labels,
            sha256=request.sha256,
        )

    def _image(self, run: Run) -> Image | None:
        found = self._rooms.store.find(Image, id=run.parameters["image_id"])
        return found[0] if found else None

    async def _record(self, run: Run) -> None:
        if self._image(run) is not None:
            return
        replaced = self._rooms.store.find(Image, name=run.parameters["name"]) if run.parameters["rebuild"] else []
        for old in replaced:
            run.context["replaced_id"] = old.id
            run.save()
            retired = f"{old.name.replace('/', '-')}-{old.id[:8]}"
            self._rooms.change(old, None, name=retired)
        self._rooms.store.create(
            Image(
                id=run.parameters["image_id"],
                name=run.parameters["name"],
                source=run.parameters["source"],
                size_bytes=run.context["size_bytes"],
                image_kind=run.context.get("image_kind", "disk"),
                labels=run.context.get("labels", {}),
                sha256=run.context.get("sha256"),
            )
        )

    async def _forget(self, run: Run) -> None:
        self._rooms.store.delete("image", run.parameters["image_id"])
        for old in self._rooms.store.find(Image, id=run.context.get("replaced_id", "")):
            self._rooms.change(old, None, name=run.parameters["name"])

    async def _copy(self, run: Run) -> None:
        disk_id = run.parameters["disk_id"]
        await self._disks.unmake(disk_id)
        disk = Disk(
            id=disk_id,
            name=f"image-{run.parameters['image_id'][:8]}",
            size_bytes=run.context["size_bytes"],
            storage_id=self._storages.resolve(None).id,
            role="image",
        )
        await self._disks.make(disk)
        source, image_format = Path(run.context["path"]), run.context["format"]
        await fill_disk(self._rooms, disk_id, source, image_format, lambda fraction: run.progress(fraction, "copying"))
        await self._rooms.fabric.snapshot_create({run.parameters["snapshot_id"]: disk_id})

    async def _uncopy(self, run: Run) -> None:
        await self._rooms.fabric.snapshot_rm(run.parameters["snapshot_id"])
        await self._disks.unmake(run.parameters["disk_id"])

    async def _finish(self, run: Run) -> None:
        image = self._rooms.store.get(Image, run.parameters["image_id"])
        self._rooms.change(
            image,
            None,
            ready=True,
            disk_id=run.parameters["disk_id"],
            snapshot_id=run.parameters["snapshot_id"],
        )
        self._built_file(run).unlink(missing_ok=True)
        for old in self._rooms.store.find(Image, id=run.context.get("replaced_id", "")):
            await self._remove(old)
        run.result["image_id"] = image.id

    # --- the noun ---

    async def ls(self) -> list[Image]:
        return self._rooms.store.ls(Image)

    async def show(self, ref: str) -> Image:
        return self._rooms.store.get(Image, ref)

    async def set(self, ref: str, request: ask.ResourceSet, *, revision: int | None = None) -> Image:
        return self._rooms.apply_set(self._rooms.store.get(Image, ref), request, revision)

    async def rm(self, ref: str) -> Image:
        """Disks made from the image stay. Raises ``Conflict`` (``image.in_use``, ``image.not_ready``)."""
        image = self._rooms.store.get(Image, ref)
        if self._rooms.in_unfinished_task(image.id):
            raise Conflict("image.not_ready", f"image {image.name!r} is being made", remedy="cancel its task instead")
        users = [vm.name for vm in self._rooms.store.ls(Vm) if vm.spec.iso_image_id == image.id]
        if users:
            raise Conflict(
                "image.in_use",
                f"image {image.name!r} is in the drive of vm {users[0]!r}",
                remedy=f"eject it first: inn vm set {users[0]} --no-iso",
            )
        await self._remove(image)
        return image

    async def _remove(self, image: Image) -> None:
        if image.snapshot_id is not None:
            await self._rooms.fabric.snapshot_rm(image.snapshot_id)
        if image.disk_id is not None:
            await self._disks.unmake(image.disk_id)
        self._rooms.store.delete("image", image.id)
