"""The one place where errors become HTTP: problem+json (RFC 9457) with code, cause and remedy."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from innkeeper.model.problems import Failed, Invalid, NotFound, Problem

log = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"


class ProblemBody(BaseModel):
    """A problem as the API answers it; the class of the exception is in ``kind``."""

    type: str
    title: str
    status: int
    code: str
    detail: str
    cause: str | None
    remedy: str | None
    kind: str


PROBLEM_RESPONSES: dict[int | str, dict[str, Any]] = {
    "default": {
        "description": "A problem: stable code, cause and remedy",
        "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/ProblemBody"}}},
    }
}


def invalid_request(errors: Sequence[Any]) -> Invalid:
    """The problem for what the validator found; names every field that is wrong."""
    lines = []
    for error in errors:
        where = [str(part) for part in error["loc"] if part not in ("body", "query", "path", "header")]
        message = str(error["msg"]).removeprefix("Value error, ")
        lines.append(f"{'.'.join(where)}: {message}" if where else message)
    return Invalid("request.invalid", lines[0], cause="; ".join(lines[1:]) or None, remedy="correct the request")


def respond(problem: Problem, request: Request) -> JSONResponse:
    """The HTTP answer for a problem."""
    body = problem.as_dict()
    if problem.code == "state.stale" and "if-match" in request.headers:
        body["status"] = 412
    headers = {"Retry-After": "2"} if body["status"] == 503 else None
    return JSONResponse(body, status_code=body["status"], media_type=MEDIA_TYPE, headers=headers)


async def _problem(request: Request, problem: Exception) -> JSONResponse:
    assert isinstance(problem, Problem)
    if problem.http_status >= 500:
        log.error("%s %s: %s", request.method, request.url.path, problem)
    return respond(problem, request)


async def _invalid(request: Request, problem: Exception) -> JSONResponse:
    assert isinstance(problem, RequestValidationError)
    return respond(invalid_request(problem.errors()), request)


async def _http(request: Request, problem: Exception) -> JSONResponse:
    assert isinstance(problem, HTTPException)
    where = f"{request.method} {request.url.path}"
    if problem.status_code == 404:
        known: Problem = NotFound("route.not_found", f"there is no {where}", remedy="see /v1/openapi.json")
    elif problem.status_code == 405:
        known = Invalid(
            "route.method", f"{request.url.path} does not know {request.method}", remedy="see /v1/openapi.json"
        )
    else:
        known = Invalid("request.invalid", f"{where}: {problem.detail}", remedy="correct the request")
    body = {**known.as_dict(), "status": problem.status_code}
    return JSONResponse(body, status_code=problem.status_code, media_type=MEDIA_TYPE, headers=problem.headers)


async def _unexpected(request: Request, _defect: Exception) -> JSONResponse:
    """A defect of ours: the server logs the traceback, the caller learns no internals."""
    defect = Failed(
        "internal.unexpected",
        f"{request.method} {request.url.path} failed unexpectedly",
        cause="a defect in Innkeeper; the daemon's log has the details",
        remedy="see 'inn logs' and report it",
    )
    return respond(defect, request)


def install(app: FastAPI) -> None:
    """Register the translation with ``app``."""
    app.add_exception_handler(Problem, _problem)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(Exception, _unexpected)
