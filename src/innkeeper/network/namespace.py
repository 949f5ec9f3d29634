"""One thread that does all that touches the kernel's network, in a network namespace if one is given.

A network namespace belongs to a thread: sockets that it opens, sysctls that it writes and processes that it starts are
in it. Work is done one piece at a time in the order given.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import ParamSpec, TypeVar

from innkeeper.model.problems import Failed

_CLONE_NEWNET = 0x40000000
NAMESPACES = Path("/run/netns")
"""Where named network namespaces are (``ip netns``)."""

P = ParamSpec("P")
T = TypeVar("T")


class NetworkThread:
    """``namespace``: a name under /run/netns (``ip netns``); None is the namespace of the process."""

    def __init__(self, namespace: str | None = None) -> None:
        self._namespace = namespace
        self._entered = False
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="network")
        self.around: Callable[[], AbstractContextManager[None]] = nullcontext
        """What every piece of work is done within."""

    async def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run ``function`` in the thread; a cancelled caller does not stop what has begun.

        Raises what it raises, and ``Failed`` (``network.namespace``) when the namespace cannot be entered.
        """

        def work() -> T:
            self._enter()
            with self.around():
                return function(*args, **kwargs)

        return await asyncio.shield(asyncio.get_running_loop().run_in_executor(self._executor, work))

    async def close(self) -> None:
        """Wait for what has begun and end the thread."""
        await asyncio.get_running_loop().run_in_executor(None, self._executor.shutdown)

    def _enter(self) -> None:
        if self._namespace is None or self._entered:
            return
        _set_namespace(NAMESPACES / self._namespace)
        self._entered = True


@contextmanager
def inside(namespace: str) -> Iterator[None]:
    """This thread is in the network namespace of that name for the time of the block.

    Raises ``Failed`` (``network.namespace``) when it cannot be entered.
    """
    own = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        _set_namespace(NAMESPACES / namespace)
        try:
            yield
        finally:
            _set_namespace(Path(f"/proc/self/fd/{own}"))
    finally:
        os.close(own)


def _set_namespace(path: Path) -> None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            if ctypes.CDLL(None, use_errno=True).setns(descriptor, _CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        finally:
            os.close(descriptor)
    except OSError as refused:
        what = f"network namespace {path} cannot be entered"
        raise Failed("network.namespace", what, cause=str(refused)) from refused
