"""What is no JSON: server-sent events (what becomes of a task, every change in the inn), and the metrics.

Annotations are not postponed here: FastAPI must see ``Depends`` on a function that exists only inside ``add``.
"""

from collections.abc import AsyncIterable, Callable
from typing import Annotated

from fastapi import Depends, FastAPI, Header, Path, Query
from fastapi.responses import PlainTextResponse
from fastapi.sse import EventSourceResponse, ServerSentEvent

from innkeeper.api.routes import METRICS, STREAMS
from innkeeper.api.services import House
from innkeeper.api.translation import PROBLEM_RESPONSES
from innkeeper.model.journal import JournalFilter, Severity
from innkeeper.model.resources import Task


def add(app: FastAPI, house: House) -> None:
    """Register the streams with ``app``.

    An event's id is a revision, so that a client that lost the line can go on from it.
    """

    async def known_task(ref: Annotated[str, Path(max_length=200)]) -> Task:
        """The task; a problem here is still an HTTP status, in the stream it could not be."""
        return await house.tasks.show(ref)

    async def task_events(task: Annotated[Task, Depends(known_task)]) -> AsyncIterable[ServerSentEvent]:
        """The task now, then after every change, until it has ended."""
        async for state in house.tasks.watch(task.id):
            yield ServerSentEvent(raw_data=state.model_dump_json(), event="task", id=str(state.revision))

    async def events(
        since: Annotated[int | None, Query(ge=0, description="a revision; changes after it come first")] = None,
        last_event_id: Annotated[int | None, Header(alias="Last-Event-ID", ge=0)] = None,
    ) -> AsyncIterable[ServerSentEvent]:
        """Every change of every resource, as it happens."""
        async for event in house.events(since if last_event_id is None else last_event_id):
            yield ServerSentEvent(raw_data=event.model_dump_json(), event=event.kind, id=str(event.revision))

    async def metrics() -> PlainTextResponse:
        """Everything that is measured, in Prometheus' text format."""
        return PlainTextResponse(await house.host.metrics(), media_type="text/plain; version=0.0.4; charset=utf-8")

    app.add_api_route(
        METRICS["host.metrics"],
        metrics,
        name="host.metrics",
        operation_id="host.metrics",
        tags=["host"],
        response_class=PlainTextResponse,
        responses=PROBLEM_RESPONSES,
    )
    for name, endpoint in (("tasks.watch", task_events), ("house.events", events)):
        _stream(app, name, endpoint)
    _add_journal(app, house)


def _stream(app: FastAPI, name: str, endpoint: Callable[..., AsyncIterable[ServerSentEvent]]) -> None:
    app.add_api_route(
        STREAMS[name],
        endpoint,
        name=name,
        operation_id=name,
        tags=["events"],
        response_class=EventSourceResponse,
        responses=PROBLEM_RESPONSES,
    )


def _add_journal(app: FastAPI, house: House) -> None:
    async def known_subject(
        subject: Annotated[str | None, Query(max_length=200)] = None,
        vm: Annotated[str | None, Query(max_length=200)] = None,
        severity: Severity = "info",
    ) -> JournalFilter:
        """Which entries are wanted; ``vm`` as the id of one that is there."""
        vm_id = None if vm is None else (await house.vms.show(vm)).id
        return JournalFilter(subject=subject, vm_id=vm_id, severity=severity)

    async def journal_events(
        wanted: Annotated[JournalFilter, Depends(known_subject)],
        after_revision: Annotated[int | None, Query(ge=0, description="entries changed after it come first")] = None,
        last_event_id: Annotated[int | None, Header(alias="Last-Event-ID", ge=0)] = None,
    ) -> AsyncIterable[ServerSentEvent]:
        """Every entry of the journal as it is written or repeated."""
        after = after_revision if last_event_id is None else last_event_id
        async for entry in house.journal.watch(
            subject=wanted.subject, vm=wanted.vm_id, severity=wanted.severity, after_revision=after
        ):
            yield ServerSentEvent(raw_data=entry.model_dump_json(), event=entry.reason, id=str(entry.revision))

    _stream(app, "journal.watch", journal_events)
