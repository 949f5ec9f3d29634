"""What the fake house's nouns share: a shelf of resources, and the verbs that most of them have."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, TypeVar

from innkeeper.model import requests as ask, views
from innkeeper.model.problems import Conflict, NotFound
from innkeeper.model.resources import Resource

if TYPE_CHECKING:
    from fake_house import FakeHouse

R = TypeVar("R", bound=Resource)


class Shelf(Generic[R]):
    """The resources of one kind."""

    def __init__(self, house: FakeHouse, kind: type[R]) -> None:
        self.house, self.kind = house, kind
        self.all: dict[str, R] = {}

    def add(self, resource: R) -> R:
        if any(one.name == resource.name for one in self.all.values()):
            raise Conflict(
                f"{self.kind.kind}.name_taken", f"there is a {self.kind.kind} named {resource.name!r} already"
            )
        self.all[resource.id] = resource
        self.house.note("created", resource)
        return resource

    def get(self, ref: str) -> R:
        for one in self.all.values():
            if ref in (one.id, one.name):
                return one
        raise NotFound(f"{self.kind.kind}.not_found", f"there is no {self.kind.kind} {ref!r}", remedy="see ls")

    def drop(self, ref: str) -> R:
        gone = self.all.pop(self.get(ref).id)
        self.house.note("deleted", gone)
        return gone

    def change(self, ref: str, revision: int | None = None, **fields: Any) -> R:
        found = self.get(ref)
        if revision is not None and revision != found.revision:
            raise Conflict("state.stale", f"{found.name} has changed since", remedy="read it again")
        name = fields.get("name")
        if name not in (None, found.name) and any(one.name == name for one in self.all.values()):
            raise Conflict(f"{self.kind.kind}.name_taken", f"there is a {self.kind.kind} named {name!r} already")
        for field, value in fields.items():
            setattr(found, field, value)
        self.house.note("updated", found)
        return found

    def set(self, ref: str, request: ask.Part, revision: int | None) -> R:
        wanted = {name: value for name, value in request.model_dump(exclude_unset=True).items() if value is not None}
        return self.change(ref, revision, **wanted)


class Service(Generic[R]):
    """What most nouns do."""

    def __init__(self, house: FakeHouse, kind: type[R]) -> None:
        self.house, self.shelf = house, Shelf(house, kind)

    async def ls(self) -> list[R]:
        return list(self.shelf.all.values())

    async def show(self, ref: str) -> Any:
        return self.shelf.get(ref)

    async def set(self, ref: str, request: ask.ResourceSet, *, revision: int | None = None) -> R:
        return self.shelf.set(ref, request, revision)

    async def rm(self, ref: str) -> R:
        return self.shelf.drop(ref)

    def plan(self, what: str) -> views.Plan:
        return views.Plan(summary=f"would {what}", steps=["first this", "then that"])
