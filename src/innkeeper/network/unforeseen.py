"""What nobody foresaw, as a problem: one switch that cannot be put right must not keep the others from it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from innkeeper.model.problems import Failed, Problem

log = logging.getLogger(__name__)


@contextmanager
def as_problem(what: str) -> Iterator[None]:
    """An exception that is no ``Problem`` becomes ``Failed`` (``switch.broken``) with its trace in the log.

    ``what`` failed then, in words.
    """
    try:
        yield
    except Problem:
        raise
    except Exception as unforeseen:  # such as a device or a process that vanishes between two looks at it
        log.exception("%s", what)
        raise Failed(
            "switch.broken",
            what,
            cause=f"{type(unforeseen).__name__}: {unforeseen}",
            remedy="it is tried again every half minute; the daemon's log has more",
        ) from unforeseen
