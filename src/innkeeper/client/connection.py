"""One HTTP connection to the daemon's unix socket: JSON in, JSON out, problems raised as the class they were."""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx2
from pydantic import BaseModel

from innkeeper.model.problems import Failed, Unavailable, from_dict

CONNECT_TIMEOUT_S = 5.0
ANSWER_TIMEOUT_S = 120.0
"""Quick operations answer at once; a detach or an ``exec`` (which adds its own time) may wait for the guest."""


def segment(ref: str) -> str:
    """``ref`` as one segment of a path."""
    return quote(ref, safe="@:")


class Connection:
    """Speaks HTTP with the daemon at ``socket_path``; keeps the connection open between calls."""

    def __init__(self, socket_path: Path) -> None:
        self.socket_path = socket_path
        self._http = httpx2.Client(
            transport=httpx2.HTTPTransport(uds=str(socket_path)),
            base_url="http://inn",
            timeout=httpx2.Timeout(ANSWER_TIMEOUT_S, connect=CONNECT_TIMEOUT_S),
        )

    def close(self) -> None:
        self._http.close()

    def _unreachable(self, cause: Exception) -> Unavailable:
        return Unavailable(
            "daemon.unreachable",
            "the daemon does not answer",
            cause=f"{self.socket_path}: {cause}",
            remedy="run 'inn up'; or name the inn meant with --state-dir",
        )

    def send(
        self,
        method: str,
        path: str,
        *,
        body: BaseModel | None = None,
        query: dict[str, Any] | None = None,
        headers: dict[str, str] | None = None,
        timeout_s: float = ANSWER_TIMEOUT_S,
    ) -> Any:
        """The JSON that the daemon answers.

        Raises the ``Problem`` that it answers, or ``Unavailable`` (``daemon.unreachable``, ``daemon.lost``).
        """
        return self._read(*self._exchange(method, path, body, query, headers, timeout_s))

    def text(self, path: str) -> str:
        """The text that the daemon answers. Raises as ``send``."""
        status, content = self._exchange("GET", path, None, None, None, ANSWER_TIMEOUT_S)
        if status >= 400:
            self._read(status, content)
        return content.decode()

    def _exchange(
        self,
        method: str,
        path: str,
        body: BaseModel | None,
        query: dict[str, Any] | None,
        headers: dict[str, str] | None,
        timeout_s: float,
    ) -> tuple[int, bytes]:
        """(status, content) of an answer."""
        content = body.model_dump_json(exclude_unset=True) if body is not None else None
        sent = {**({"Content-Type": "application/json"} if content is not None else {}), **(headers or {})}
        wanted = {name: _text(value) for name, value in (query or {}).items() if value not in (None, False)}
        try:
            answer = self._http.request(
                method,
                path,
                content=content,
                params=wanted,
                headers=sent,
                timeout=httpx2.Timeout(timeout_s, connect=CONNECT_TIMEOUT_S),
            )
        except (httpx2.ConnectError, httpx2.ConnectTimeout) as absent:
            raise self._unreachable(absent) from absent
        except httpx2.TimeoutException as late:
            raise Unavailable(
                "daemon.lost", f"no answer within {timeout_s:.0f} s", remedy="see 'inn task ls'"
            ) from late
        except httpx2.TransportError as lost:
            raise Unavailable(
                "daemon.lost",
                "the daemon ended before it answered",
                cause=str(lost) or type(lost).__name__,
                remedy="run 'inn up', then look whether the work was done",
            ) from lost
        return answer.status_code, answer.content

    @staticmethod
    def _read(status: int, content: bytes) -> Any:
        try:
            members = json.loads(content) if content else None
        except ValueError as garbled:
            raise Failed(
                "daemon.garbled", f"the daemon answered {status} without JSON", cause=str(garbled)
            ) from garbled
        if status >= 400:
            raise from_dict(members if isinstance(members, dict) else {})
        return members

    def pieces(self, path: str, query: dict[str, Any]) -> Generator[bytes, None, None]:
        """The bytes that the daemon answers as they come. Raises as ``send`` does."""
        try:
            with self._http.stream("GET", path, params=query, timeout=httpx2.Timeout(None)) as answer:
                if answer.status_code >= 400:
                    self._read(answer.status_code, answer.read())
                yield from answer.iter_bytes()
        except (httpx2.ConnectError, httpx2.ConnectTimeout) as absent:
            raise self._unreachable(absent) from absent
        except httpx2.TransportError as lost:
            raise Unavailable("daemon.lost", "the daemon ended", cause=str(lost), remedy="run 'inn up'") from lost

    def events(self, path: str, query: dict[str, Any] | None = None) -> Iterator[str]:
        """The data of each server-sent event at ``path``, until the daemon ends the stream.

        Raises as ``send`` does.
        """
        try:
            with self._http.stream("GET", path, params=query or {}, timeout=httpx2.Timeout(60.0)) as answer:
                if answer.status_code >= 400:
                    self._read(answer.status_code, answer.read())
                yield from _data_of(answer.iter_lines())
        except (httpx2.ConnectError, httpx2.ConnectTimeout) as absent:
            raise self._unreachable(absent) from absent
        except httpx2.TransportError as lost:
            raise Unavailable("daemon.lost", "the daemon ended", cause=str(lost), remedy="run 'inn up'") from lost


def _text(value: Any) -> str | list[str]:
    if isinstance(value, list):
        return [str(item) for item in value]
    return "true" if value is True else str(value)


def _data_of(lines: Iterator[str]) -> Iterator[str]:
    """The ``data`` of each event in an event stream."""
    data: list[str] = []
    for line in lines:
        if line.startswith("data:"):
            data.append(line[5:].removeprefix(" "))
        elif not line and data:
            yield "\n".join(data)
            data = []
