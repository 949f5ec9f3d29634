"""What every service stands on: the inn's paths, its state, its tasks and its fabric."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

from innkeeper.daemon.journal import Journal
from innkeeper.fabric.client import FabricClient
from innkeeper.model.problems import Conflict, Problem
from innkeeper.model.requests import BackupSet, ResourceSet
from innkeeper.model.resources import Resource, Task
from innkeeper.state.store import Store
from innkeeper.system.paths import Paths
from innkeeper.tasks.engine import ENDED, Engine

log = logging.getLogger(__name__)

R = TypeVar("R", bound=Resource)


@dataclass(frozen=True, slots=True)
class Rooms:
    """The rooms below the services. One per daemon."""

    paths: Paths
    store: Store
    engine: Engine
    fabric: FabricClient
    journal: Journal

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

    def take_back(self, before: Resource, fields: Iterable[str]) -> None:
        """Put ``fields`` of a stored resource back as they were in ``before``; what others changed meanwhile stays.

        For a change that was refused, whose problem is being raised: one of its own is only logged.
        """
        try:
            current = self.store.get(type(before), before.id)
            self.change(current, None, **{name: getattr(before, name) for name in fields})
        except Problem as refused:
            log.warning("%s %s keeps a change that was refused: %s", before.kind, before.name, refused)

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
