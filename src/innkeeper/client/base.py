"""What the nouns of the client share."""

from __future__ import annotations

from typing import Any, ClassVar, Generic, TypeVar

from pydantic import BaseModel, ValidationError

from innkeeper.client.connection import Connection, segment
from innkeeper.model.problems import Failed
from innkeeper.model.resources import Resource, Task
from innkeeper.model.views import Plan

R = TypeVar("R", bound=Resource)
D = TypeVar("D", bound=Resource)
M = TypeVar("M", bound=BaseModel)

_PAGE = 1000


class Noun(Generic[R, D]):
    """A collection of ``R``, of which ``show`` gives the detail ``D``; ``path`` is where it lives."""

    path: ClassVar[str]
    kind: ClassVar[type[Resource]]
    detail: ClassVar[type[Resource]]

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def _call(self, kind: type[M], method: str, path: str, **options: Any) -> M:
        return understand(kind, self._connection.send(method, path, **options))

    def _task(self, ref: str, act: str, body: BaseModel | None = None) -> Task:
        return self._call(Task, "POST", f"{self._at(ref)}/{act}", body=body)

    def _task_or_plan(self, path: str, body: BaseModel, *, dry_run: bool) -> Task | Plan:
        kind: type[Task] | type[Plan] = Plan if dry_run else Task
        return self._call(kind, "POST", path, body=body, query={"dry_run": dry_run})

    def _new(self, path: str, body: BaseModel, *, dry_run: bool) -> R | Plan:
        return self._changed("POST", path, body=body, dry_run=dry_run)

    def _changed(self, method: str, path: str, *, dry_run: bool, **options: Any) -> R | Plan:
        answered = self._connection.send(method, path, query={"dry_run": dry_run}, **options)
        if dry_run:
            return understand(Plan, answered)
        return understand(self.kind, answered)  # type: ignore[return-value]

    def _at(self, ref: str) -> str:
        return f"{self.path}/{segment(ref)}"

    def ls(self, *labels: str) -> list[R]:
        """All, oldest first, or those with all ``labels`` (``key`` or ``key=value``)."""
        return self._all({"label": list(labels)} if labels else {})

    def _all(self, query: dict[str, Any]) -> list[R]:
        found: list[R] = []
        cursor: str | None = None
        while True:
            page = self._connection.send("GET", self.path, query={**query, "limit": _PAGE, "cursor": cursor})
            found += [understand(self.kind, item) for item in page["items"]]  # type: ignore[misc]
            cursor = page["next"]
            if cursor is None:
                return found

    def show(self, ref: str) -> D:
        """The one with that id or name."""
        return self._call(self.detail, "GET", self._at(ref))  # type: ignore[return-value]

    def _set(self, ref: str, body: BaseModel, revision: int | None) -> R:
        return self._set_at(self._at(ref), body, revision)

    def _set_at(self, path: str, body: BaseModel, revision: int | None) -> R:
        headers = {"If-Match": f'"{revision}"'} if revision is not None else None
        return self._call(self.kind, "PATCH", path, body=body, headers=headers)  # type: ignore[return-value]

    def _patched(self, ref: str, body: BaseModel, revision: int | None, *, dry_run: bool) -> R | Plan:
        headers = {"If-Match": f'"{revision}"'} if revision is not None else None
        return self._changed("PATCH", self._at(ref), body=body, headers=headers, dry_run=dry_run)


def understand(kind: type[M], members: Any) -> M:
    """``members`` as ``kind``.

    Raises ``Failed`` (``daemon.version``) when the daemon speaks of members that this program does not know.
    """
    try:
        return kind.model_validate(members)
    except ValidationError as strange:
        raise Failed(
            "daemon.version",
            f"the daemon's answer is not a {kind.__name__} as this program knows it",
            cause=str(strange.errors()[0]["msg"]),
            remedy="restart the daemon so that both are of one version: 'inn up --restart'",
        ) from strange
