"""A session whose disk may go to another pool between two requests."""

from __future__ import annotations

from innkeeper.fabric.nbd.session import Session
from innkeeper.fabric.nbd.turn import Turn
from innkeeper.fabric.volume import Volume


class MovableSession(Session):
    """Frozen, it takes nothing from its client; what the client sends waits in the buffers."""

    def freeze(self) -> None:
        """Take no more requests; those that were taken are answered."""
        self.frozen = True
        self._pause()

    @property
    def idle(self) -> bool:
        """Whether all that was taken has been answered."""
        return not self.work.requests and not self._turn.owes(self)

    def thaw(self) -> None:
        self.frozen = False
        self._go_on()

    def move_to(self, volume: Volume, turn: Turn) -> None:
        """Go on with another volume, of the same content and size; while frozen and idle."""
        self.volume.close()
        self.volume = volume
        self._turn = turn
        self.awaits_log = False  # it was the other log's room
