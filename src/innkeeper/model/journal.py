"""The journal: what happened in the inn that somebody may want to know later. Words as Kubernetes' events have them."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

Severity = Literal["info", "warning", "error"]
SEVERITIES: tuple[Severity, ...] = ("info", "warning", "error")
"""From the least to the worst."""
Reason = Annotated[str, StringConstraints(min_length=1, max_length=63)]
"""Why it is told, for programs: ``GuardDropped``. Reasons never change once released."""


JournalLimit = Annotated[int, Field(ge=1, le=20_000)]


class Subject(BaseModel):
    """What an entry is about: any resource, or the host. ``vm_id`` is the vm that it is or belongs to."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: str
    id: str
    name: str
    vm_id: str | None = None


class JournalEntry(BaseModel):
    """Something that happened ``count`` times from ``first_at`` to ``last_at``, told in one sentence.

    ``revision`` grows with every change of the journal; a repetition gives an entry a new one.
    """

    model_config = ConfigDict(extra="forbid")

    id: int
    revision: int
    reason: Reason
    severity: Severity
    subject: Subject
    message: str
    count: int = Field(ge=1)
    first_at: datetime
    last_at: datetime


class JournalFilter(BaseModel):
    """Which entries: about a subject (id or name), a vm (id) and what belongs to it, at least so severe, since then."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    subject: str | None = None
    vm_id: str | None = None
    severity: Severity = "info"
    since: datetime | None = None
