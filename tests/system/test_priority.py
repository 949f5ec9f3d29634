"""Which threads go first."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from innkeeper.system import priority


def _nice() -> int:
    return os.getpriority(os.PRIO_PROCESS, 0)


@pytest.mark.root
def test_one_thread_goes_ahead_and_what_it_starts_does_not() -> None:
    began = _nice()

    def of_a_worker() -> tuple[int, int]:
        priority.ahead()
        with ThreadPoolExecutor(1) as plain, ThreadPoolExecutor(1, initializer=priority.level) as beside:
            assert plain.submit(_nice).result() == _nice(), "that is what level is for"
            return _nice(), beside.submit(_nice).result()

    with ThreadPoolExecutor(1) as workers:
        assert workers.submit(of_a_worker).result() == (max(-20, began + priority.AHEAD), began)
    assert _nice() == began
