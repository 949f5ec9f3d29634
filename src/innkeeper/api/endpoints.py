"""Makes one HTTP endpoint of one service operation, by the operation's signature.

parameter of the Protocol             where HTTP has it
``request``                           JSON body; may be absent where every member has a default
in the route's path                   path
``revision``                          ``If-Match`` (the ``ETag`` that a read gave)
any other                             query

answer                                HTTP
``Task``                              202, ``Location: /v1/tasks/<id>``
``Plan`` of a dry run                 200
a resource, newly made                201, ``Location``
a resource                            200, ``ETag: "<revision>"``
list of resources                     200, a ``Page``
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Awaitable, Callable
from types import UnionType
from typing import Annotated, Any, get_args, get_origin

from fastapi import Body, FastAPI, Header, Path, Query, Request
from fastapi.responses import Response
from pydantic import BaseModel, TypeAdapter

from innkeeper.api.idempotency import Idempotency
from innkeeper.api.paging import MAX_LIMIT, Page, page
from innkeeper.api.peer import peer_pid, peer_uid
from innkeeper.api.routes import Route
from innkeeper.api.services import House
from innkeeper.api.translation import PROBLEM_RESPONSES
from innkeeper.model.problems import Invalid
from innkeeper.model.requests import DiskExport
from innkeeper.model.resources import Resource, Task
from innkeeper.model.views import Plan

_REF = r"^[A-Za-z0-9][A-Za-z0-9_.:@-]{0,199}$"
_IMAGE_REF = r"^[A-Za-z0-9][A-Za-z0-9_.:@/-]{0,199}$"
_RESERVED = ("limit", "cursor", "label")
_KEYWORD = inspect.Parameter.KEYWORD_ONLY


def _revision(if_match: str | None) -> int | None:
    if if_match is None or if_match.strip() == "*":
        return None
    text = if_match.strip().removeprefix("W/").strip('"')
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise Invalid(
            "request.if_match", f"If-Match: {if_match!r} is not an ETag of ours", remedy="repeat the ETag given"
        )
    return int(text)


def _json(value: BaseModel, status: int, headers: dict[str, str] | None = None) -> Response:
    return Response(value.model_dump_json(), status_code=status, media_type="application/json", headers=headers)


def answer(route: Route, value: Any) -> Response:
    """The HTTP answer for what an operation returned."""
    if isinstance(value, Task) and route.noun.attribute != "tasks":
        return _json(value, 202, {"Location": f"/v1/tasks/{value.id}"})
    if isinstance(value, Plan):
        return _json(value, 200)
    if isinstance(value, list):
        return Response(TypeAdapter(list[Any]).dump_json(value), media_type="application/json")
    assert isinstance(value, BaseModel)
    headers = {}
    if isinstance(value, Resource):
        headers["ETag"] = f'"{value.revision}"'
        if route.created:
            headers["Location"] = f"{route.noun.path}/{value.id}"
    return _json(value, 201 if route.created else 200, headers)


def _parameter(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, _KEYWORD, annotation=annotation, default=default)


class Endpoint:
    """The endpoint of ``route`` over ``house``, with the signature that FastAPI reads."""

    def __init__(self, house: House, route: Route, memory: Idempotency) -> None:
        self._house = house
        self._route = route
        self._memory = memory
        self._operation = getattr(getattr(house, route.noun.attribute), route.operation)
        declared = inspect.signature(getattr(route.noun.protocol, route.operation), eval_str=True)
        self._taken = {name: each for name, each in declared.parameters.items() if name != "self"}
        self._returns = declared.return_annotation
        self._listing = self._is_listing()

    def _is_listing(self) -> bool:
        if get_origin(self._returns) is not list:
            return False
        (item,) = get_args(self._returns)
        return issubclass(item, Resource)

    def signature(self) -> inspect.Signature:
        """What FastAPI is to parse for this operation."""
        parameters = [_parameter("http", Request, inspect.Parameter.empty)]
        for name, declared in self._taken.items():
            parameters.append(self._declare(name, declared))
        if self._listing:
            parameters += [
                _parameter("limit", Annotated[int, Query(ge=1, le=MAX_LIMIT)], MAX_LIMIT),
                _parameter("cursor", Annotated[str | None, Query(max_length=400)], None),
                _parameter("label", Annotated[list[str] | None, Query(description="key or key=value")], None),
            ]
        if self._route.method == "POST":
            key = Annotated[str | None, Header(alias="Idempotency-Key", min_length=1, max_length=200)]
            parameters.append(_parameter("idempotency_key", key, None))
        return inspect.Signature(parameters)

    def _declare(self, name: str, declared: inspect.Parameter) -> inspect.Parameter:
        annotation, default = declared.annotation, declared.default
        if name == "request":
            optional = not any(field.is_required() for field in annotation.model_fields.values())
            return _parameter(
                name, Annotated[annotation, Body()], annotation.model_construct() if optional else default
            )
        if f"{{{name}}}" in self._route.path:
            return _parameter(name, Annotated[str, Path(pattern=_REF)], default)
        if f"{{{name}:path}}" in self._route.path:
            return _parameter(name, Annotated[str, Path(pattern=_IMAGE_REF)], default)
        if name == "revision":
            return _parameter(name, Annotated[str | None, Header(alias="If-Match", max_length=40)], default)
        if annotation in (str, str | None):
            return _parameter(name, Annotated[annotation, Query(pattern=_REF)], default)
        return _parameter(name, Annotated[annotation, Query()], default)

    def responses(self) -> tuple[int, Any, dict[int | str, dict[str, Any]]]:
        """The usual status, its model, and all other answers that the OpenAPI document names."""
        others: dict[int | str, dict[str, Any]] = dict(PROBLEM_RESPONSES)
        if self._listing:
            return 200, Page[get_args(self._returns)[0]], others  # type: ignore[misc]
        kinds = get_args(self._returns) if isinstance(self._returns, UnionType) else (self._returns,)
        first = kinds[0]
        is_task = first is Task and self._route.noun.attribute != "tasks"
        status = 202 if is_task else 201 if self._route.created else 200
        if status == 200:
            return status, self._returns, others  # a resource, or the plan of a dry run
        for plan in kinds[1:]:
            others[200] = {"model": plan, "description": "The plan of a dry run; nothing has been done"}
        return status, first, others

    async def __call__(self, http: Request, **given: Any) -> Response:
        key = given.pop("idempotency_key", None)
        paging = {name: given.pop(name) for name in _RESERVED if name in given}
        if "revision" in self._taken:
            given["revision"] = _revision(given["revision"])
        if isinstance(given.get("request"), DiskExport):
            wish = given["request"]
            uid = peer_uid(http) if wish.uid is None else wish.uid
            given["request"] = wish.model_copy(update={"uid": uid, "pid": peer_pid(http)})
        if key is None:
            return await self._act(given, paging)
        body = await http.body()
        fingerprint = hashlib.sha256(f"{http.method} {http.url}\n".encode() + body).hexdigest()
        return await self._memory.once(key, fingerprint, lambda: self._act(given, paging))

    async def _act(self, given: dict[str, Any], paging: dict[str, Any]) -> Response:
        positional = [
            given.pop(name) for name, declared in self._taken.items() if declared.kind != _KEYWORD and name in given
        ]
        value = await self._operation(*positional, **given)
        if not self._listing:
            return answer(self._route, value)
        items, following = page(value, limit=paging["limit"], cursor=paging["cursor"], labels=paging["label"] or ())
        return _json(Page[Any](items=items, next=following), 200)


def add(app: FastAPI, house: House, route: Route, memory: Idempotency) -> None:
    """Register the endpoint of ``route`` with ``app``."""
    endpoint = Endpoint(house, route, memory)
    status, model, others = endpoint.responses()

    async def call(http: Request, **given: Any) -> Response:
        return await endpoint(http, **given)

    call.__signature__ = endpoint.signature()  # type: ignore[attr-defined]  # FastAPI reads it through inspect
    summary = inspect.getdoc(getattr(route.noun.protocol, route.operation))
    described: Callable[..., Awaitable[Response]] = call
    app.add_api_route(
        route.path,
        described,
        methods=[route.method],
        name=route.name,
        operation_id=route.name,
        tags=[route.noun.attribute],
        summary=f"{route.operation.rstrip('_')} {route.noun.attribute}",
        description=summary or "",
        status_code=status,
        response_model=model,
        responses=others,
    )
