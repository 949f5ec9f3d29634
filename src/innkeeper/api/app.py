"""The application: the route table over a ``House``, problems translated, changes logged with who asked."""

from __future__ import annotations

import logging
import time
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import innkeeper
from innkeeper.api import captures, endpoints, streams, translation
from innkeeper.api.idempotency import Idempotency
from innkeeper.api.routes import ROUTES
from innkeeper.api.services import House

log = logging.getLogger(__name__)


class AuditLog:
    """Logs each request that changes something: who (uid and pid of the peer), what, the status, how long it took."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD"):
            await self._app(scope, receive, send)
            return
        began, status = time.monotonic(), 0

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, noting)
        finally:
            who, pid = scope.get("client") or ("in-process", 0)
            taken_ms = (time.monotonic() - began) * 1000
            log.info("%s pid:%s %s %s -> %d in %.0f ms", who, pid, scope["method"], scope["path"], status, taken_ms)


def create_app(house: House) -> FastAPI:
    """The HTTP API over ``house``; its OpenAPI document is at ``/v1/openapi.json``."""
    app = FastAPI(
        title="Innkeeper",
        version=innkeeper.__version__,
        openapi_url="/v1/openapi.json",
        docs_url=None,
        redoc_url=None,
        separate_input_output_schemas=False,
    )
    translation.install(app)
    memory = Idempotency()
    streams.add(app, house)
    captures.add(app, house)
    for route in ROUTES:
        endpoints.add(app, house, route, memory)
    app.add_middleware(AuditLog)
    _describe_problems(app)
    return app


def _describe_problems(app: FastAPI) -> None:
    """Put the problem's schema, which every route's ``default`` answer refers to, into the OpenAPI document."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = get_openapi(title=app.title, version=app.version, routes=app.routes)
            schemas = document.setdefault("components", {}).setdefault("schemas", {})
            schemas["ProblemBody"] = translation.ProblemBody.model_json_schema()
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # the way FastAPI documents for extending it
