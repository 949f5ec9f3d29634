"""What every service stands on: the inn's paths, its state, its tasks and its fabric."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

from innkeeper.fabric.client import FabricClient
from innkeeper.model.problems import Conflict
from innkeeper.model.requests import BackupSet, ResourceSet
from innkeeper.model.resources import Resource, Task
from innkeeper.state.store import Store
from innkeeper.system.paths import Paths
from innkeeper.tasks.engine import ENDED, Engine

R = TypeVar("R", bound=Resource)


@dataclass(frozen=True, slots=True)
class Rooms:
    """The rooms below the services. One per daemon."""

    paths: Paths
    store: Store
    engine: Engine
    fabric: FabricClient

    def check_name_free(self, kind: type[Resource], name: str) -> None:
        """Raises ``Conflict`` (``<kind>.name_taken``) when a resource of that kind has the name."""
        if any(other.name == name for other in self.store.ls(kind)):
            raise Conflict(
                f"{kind.kind}.name_taken",
                f"the name {name!r} is taken by another {kind.kind}",
                remedy="choose another name",
            )

    def change(self, resource: R, revision: int | None, **fields: Any) -> R:
        """Store ``resource`` with other fields; ``revision`` is the one its reader saw, if it matters.

        Raises ``Conflict`` (``state.stale``, ``<kind>.name_taken``).
        """
        if revision is not None:
            resource = resource.model_copy(update={"revision": revision})
        return self.store.update(resource.model_copy(update=fields))

    def apply_set(self, resource: R, request: ResourceSet | BackupSet, revision: int | None) -> R:
        """Store ``resource`` with the name and the labels that the request sets."""
        wanted = {key: value for key, value in request.model_dump(exclude_unset=True).items() if value is not None}
        return self.change(resource, revision, **wanted)

    def in_unfinished_task(self, resource_id: str) -> bool:
        """Whether a task that has not ended works on that id: recovery will finish or undo it."""
        return any(
            task.state not in ENDED and resource_id in task.model_dump_json(include={"parameters", "context"})
            for task in self.store.ls(Task)
        )
