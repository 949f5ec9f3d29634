"""Nobody is kept out of a fair lock by a thread that wants it all the time."""

from __future__ import annotations

import threading
import time

from innkeeper.system.fairness import FairLock


def test_who_waits_comes_before_the_thread_that_takes_it_again() -> None:
    lock = FairLock()
    order = list[str]()

    def patient() -> None:
        with lock:
            order.append("waited")

    for _ in range(200):
        order.clear()
        with lock:
            waiting = threading.Thread(target=patient)
            waiting.start()
            while not lock.awaited:
                time.sleep(0)
        with lock:
            order.append("again")
        waiting.join(10)
        assert order == ["waited", "again"]


def test_its_owner_may_take_it_again() -> None:
    lock = FairLock()
    got = threading.Event()

    def other() -> None:
        with lock:
            got.set()

    with lock:
        waiting = threading.Thread(target=other)
        waiting.start()
        with lock:
            assert not got.is_set()
        assert not got.wait(0.05)
    waiting.join(10)
    assert got.is_set()


def test_it_is_let_go_when_its_block_fails() -> None:
    lock = FairLock()
    try:
        with lock:
            raise ValueError
    except ValueError:
        pass
    got = threading.Event()

    def other() -> None:
        with lock:
            got.set()

    waiting = threading.Thread(target=other)
    waiting.start()
    waiting.join(10)
    assert got.is_set()
