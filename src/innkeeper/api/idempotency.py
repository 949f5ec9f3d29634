"""``Idempotency-Key``: a POST that a client repeats, because it never saw the answer, is done once.

Answers are remembered in memory while the daemon lives, the last ``REMEMBERED`` of them.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from fastapi.responses import Response

from innkeeper.model.problems import Conflict

REMEMBERED = 1000


@dataclass(slots=True)
class _Known:
    """A request and the answer it has or will have."""

    fingerprint: str
    answer: asyncio.Future[Response]


class Idempotency:
    """The answers to keys seen. A request that failed is forgotten, so that it can be tried again."""

    def __init__(self) -> None:
        self._known: OrderedDict[str, _Known] = OrderedDict()

    async def once(self, key: str, fingerprint: str, act: Callable[[], Awaitable[Response]]) -> Response:
        """The answer of ``act``, called only for the first request with ``key``; a second waits for the first.

        Raises ``Conflict`` (``request.key_reused``) when ``key`` came with another request before.
        """
        known = self._known.get(key)
        if known is None:
            return await self._first(key, fingerprint, act)
        if known.fingerprint != fingerprint:
            raise Conflict(
                "request.key_reused", f"idempotency key {key!r} belongs to another request", remedy="use a fresh key"
            )
        return await asyncio.shield(known.answer)

    async def _first(self, key: str, fingerprint: str, act: Callable[[], Awaitable[Response]]) -> Response:
        known = _Known(fingerprint, asyncio.get_running_loop().create_future())
        self._known[key] = known
        try:
            answer = await act()
        except BaseException as failure:
            del self._known[key]
            if not known.answer.done():
                known.answer.set_exception(
                    failure
                    if isinstance(failure, Exception)
                    else Conflict(
                        "request.interrupted", "the first request with this key was interrupted", remedy="try again"
                    )
                )
                known.answer.exception()  # marks it as seen: there may be nobody who waits
            raise
        known.answer.set_result(answer)
        while len(self._known) > REMEMBERED:
            self._known.popitem(last=False)
        return answer
