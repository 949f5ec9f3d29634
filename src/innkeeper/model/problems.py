"""The one exception root, with stable problem codes.

    Problem                     code, detail, cause, remedy; translated once by the API into problem+json
    ├── Invalid                 the request can never succeed as written           (HTTP 422)
    ├── NotFound                what it names does not exist                       (HTTP 404)
    ├── Conflict                it contradicts what exists: a name taken, in use   (HTTP 409)
    ├── Refused                 policy forbids it: protection, hostile image, uid  (HTTP 403)
    ├── Unavailable             transient: a process is away, retrying helps       (HTTP 503)
    ├── NoSpace                 pool, disk or repository is full                   (HTTP 507)
    ├── Corrupt                 stored bytes fail their checksum                   (HTTP 500)
    └── Failed                  an action was tried and did not succeed            (HTTP 500)

A code is ``<noun>.<what>`` in lower case, for example ``vm.not_found``; codes never change once released.
"""

from __future__ import annotations

from typing import Any, ClassVar


class Problem(Exception):
    """An error with a stable code that a person can act on.

    ``detail`` says what happened in one sentence, ``cause`` why (when known), ``remedy`` what to do about it.
    """

    http_status: ClassVar[int] = 500

    def __init__(self, code: str, detail: str, *, cause: str | None = None, remedy: str | None = None) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail
        self.cause = cause
        self.remedy = remedy

    def as_dict(self) -> dict[str, Any]:
        """The problem as problem+json members (RFC 9457).

        ``kind`` names the class for faithful re-raising: of the eight, the one that this problem is or is derived from.
        """
        return {
            "type": f"urn:innkeeper:problem:{self.code}",
            "title": self.detail,
            "status": self.http_status,
            "code": self.code,
            "detail": self.detail,
            "cause": self.cause,
            "remedy": self.remedy,
            "kind": next((kind.__name__ for kind in type(self).__mro__ if kind.__name__ in _KINDS), Failed.__name__),
        }

    def __str__(self) -> str:
        text = f"{self.detail} [{self.code}]"
        if self.cause:
            text += f"; cause: {self.cause}"
        if self.remedy:
            text += f"; remedy: {self.remedy}"
        return text


class Invalid(Problem):
    """The request can never succeed as written."""

    http_status = 422


class NotFound(Problem):
    """What the request names does not exist."""

    http_status = 404


class Conflict(Problem):
    """The request contradicts what exists."""

    http_status = 409


class Refused(Problem):
    """Policy forbids the request."""

    http_status = 403


class Unavailable(Problem):
    """A part that is needed is away for now; trying again later can help."""

    http_status = 503


class NoSpace(Problem):
    """A pool, a disk or a repository is full."""

    http_status = 507


class Corrupt(Problem):
    """Stored bytes fail their checksum or do not follow their format."""


class Failed(Problem):
    """An action was tried and did not succeed."""


_KINDS: dict[str, type[Problem]] = {
    kind.__name__: kind for kind in (Invalid, NotFound, Conflict, Refused, Unavailable, NoSpace, Corrupt, Failed)
}


def from_dict(members: dict[str, Any]) -> Problem:
    """The problem that ``Problem.as_dict`` described; an unknown kind becomes ``Failed``."""
    kind = _KINDS.get(str(members.get("kind")), Failed)
    return kind(
        str(members.get("code", "unknown.failed")),
        str(members.get("detail", "an unnamed problem")),
        cause=members.get("cause"),
        remedy=members.get("remedy"),
    )
