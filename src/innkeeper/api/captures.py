"""Captures: a pcap file that grows until it ends or the caller hangs up.

Annotations are not postponed here: FastAPI must see what exists only inside ``add``.
"""

from typing import Annotated

from fastapi import FastAPI, Path, Query
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from innkeeper.api.routes import CAPTURES
from innkeeper.api.services import House, Pieces
from innkeeper.api.translation import PROBLEM_RESPONSES
from innkeeper.model.capturing import CaptureStart


class _Capture(StreamingResponse):
    """Frames as they come; the port is let go however the answer ends (a caller that hangs up cancels it)."""

    def __init__(self, pieces: Pieces) -> None:
        super().__init__(pieces, media_type="application/vnd.tcpdump.pcap")
        self._pieces = pieces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._pieces.close()


def add(app: FastAPI, house: House) -> None:
    """Register the captures with ``app``."""

    async def capture(
        ref: Annotated[str, Path(max_length=200)], wish: Annotated[CaptureStart, Query()]
    ) -> StreamingResponse:
        """What passes a card's port, as pcap."""
        return _Capture(await house.nics.capture(ref, wish))

    app.add_api_route(
        CAPTURES["nics.capture"],
        capture,
        name="nics.capture",
        operation_id="nics.capture",
        tags=["nics"],
        response_class=StreamingResponse,
        responses=PROBLEM_RESPONSES,
    )
