"""A process that does nothing, to be looked for."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_WAIT = "print(flush=True); input()"


@contextmanager
def waiting_process(*words: str) -> Iterator[subprocess.Popen[bytes]]:
    """A child that has ``words`` on its command line; killed at the end.

    It has spoken before it is handed out: between its exec and its first line /proc may show an empty command line.
    """
    command = [sys.executable, "-c", _WAIT, *words]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        try:
            assert child.stdout is not None
            assert child.stdout.readline() == b"\n"
            yield child
        finally:
            child.kill()
