"""Pages of lists: oldest first, a cursor that stays right while things come and go, and a label filter."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Sequence
from typing import Generic, TypeVar

from pydantic import BaseModel

from innkeeper.model.problems import Invalid
from innkeeper.model.resources import Resource

T = TypeVar("T")
R = TypeVar("R", bound=Resource)

MAX_LIMIT = 1000


class Page(BaseModel, Generic[T]):
    """Some of a list; ``next`` is the cursor of the next page, None at the end."""

    items: list[T]
    next: str | None = None


def _key(resource: Resource) -> tuple[str, str]:
    return resource.created_at.isoformat(), resource.id


def _cursor(resource: Resource) -> str:
    return base64.urlsafe_b64encode(json.dumps(_key(resource)).encode()).decode()


def _after(cursor: str) -> tuple[str, str]:
    try:
        moment, identity = json.loads(base64.urlsafe_b64decode(cursor.encode()))
    except (binascii.Error, ValueError, TypeError) as wrong:
        raise Invalid(
            "request.cursor", f"cursor: {cursor!r} is not a cursor", remedy="start without a cursor"
        ) from wrong
    return str(moment), str(identity)


def _has_labels(resource: Resource, labels: Sequence[str]) -> bool:
    for wanted in labels:
        key, equals, value = wanted.partition("=")
        if key not in resource.labels or (equals and resource.labels[key] != value):
            return False
    return True


def page(
    resources: Sequence[R], *, limit: int, cursor: str | None, labels: Sequence[str] = ()
) -> tuple[list[R], str | None]:
    """The page after ``cursor`` of those that have all ``labels`` (``key`` or ``key=value``), and the next cursor.

    Raises ``Invalid`` (``request.cursor``).
    """
    ordered = sorted((found for found in resources if _has_labels(found, labels)), key=_key)
    if cursor is not None:
        last = _after(cursor)
        ordered = [found for found in ordered if _key(found) > last]
    items = ordered[:limit]
    return items, _cursor(items[-1]) if len(ordered) > limit else None
