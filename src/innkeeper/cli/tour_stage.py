"""What the steps of the tour share: the narration with its timing, and a guest as its user sees it."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import click

from innkeeper.cli.progress import follow
from innkeeper.cli.session import Session
from innkeeper.client.inn import InnClient
from innkeeper.model import requests as ask
from innkeeper.model.problems import Failed
from innkeeper.model.resources import Task
from innkeeper.model.views import NicDetail, Plan, VmDetail

LABEL = "innkeeper.tour"
IMAGE = "probe"
SWITCH = "tour-lan"
REPOSITORY = "tour"
GUESTS = ("tour-alice", "tour-bob", "tour-carol")
"""alice attacks, bob is her victim, carol is checkpointed, backed up, lost and restored."""
MEMORY_BYTES = 192 * 1024 * 1024


@dataclass
class Stage:
    """The inn on stage. ``say`` narrates; ``timed`` narrates with how long it took."""

    session: Session
    began: float = field(default_factory=time.monotonic)

    @property
    def client(self) -> InnClient:
        return self.session.client

    @staticmethod
    def say(line: str) -> None:
        """One line of narration, on stdout at once."""
        click.echo(f"      {line}")
        sys.stdout.flush()

    def title(self, number: int, total: int, line: str) -> None:
        """The heading of a step."""
        heading = f"[{number}/{total}] {line}"
        click.echo(click.style(heading, bold=True) if sys.stdout.isatty() else heading)

    @contextmanager
    def timed(self, line: str) -> Iterator[None]:
        """Narrate what the block does and how long it took; nothing when it fails (the problem tells)."""
        began = time.monotonic()
        yield
        self.say(f"{line} ({time.monotonic() - began:.2f} s)")

    def finish(self, started: Task | Plan) -> Task:
        """The task, succeeded; its progress is not shown."""
        assert isinstance(started, Task)
        return follow(Session(self.session.state_dir, quiet=True), started)

    def sh(self, guest: str, script: str, *, timeout_s: float = 60.0) -> str:
        """What ``script`` prints in the guest's shell.

        Raises ``Failed`` (``tour.command``) when it does not end with 0.
        """
        result = self.client.vms.exec(guest, ask.VmExec(argv=["sh", "-c", script], timeout_s=timeout_s))
        output = result.stdout.decode(errors="replace")
        if result.exit_code != 0:
            errors = result.stderr.decode(errors="replace")
            raise Failed("tour.command", f"{guest}: {script!r} ended with {result.exit_code}", cause=errors or output)
        return output.strip()

    def card(self, guest: str) -> NicDetail:
        """The guest's first card."""
        return self.client.nics.show(self.client.vms.show(guest).nics[0].id)

    def ready(self, guest: str) -> VmDetail:
        """The guest once its agent answers."""
        return self.client.wait_ready(guest, timeout_s=180.0)


def require(holds: bool, what: str, *, cause: str | None = None) -> None:
    """Raises ``Failed`` (``tour.failed``) unless ``holds``: the tour shows facts, and says so when they are not."""
    if not holds:
        raise Failed("tour.failed", what, cause=cause, remedy="see 'inn logs'; run 'inn tour' again")
