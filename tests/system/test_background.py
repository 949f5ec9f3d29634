"""Background activities go on whatever one of their steps meets."""

from __future__ import annotations

import threading

import pytest

from innkeeper.system import clock


def test_a_step_that_fails_unexpectedly_is_followed_by_others(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(clock, "AFTER_FAILURE_S", 0.001)
    done, taken = threading.Event(), list[int]()

    def step() -> float:
        taken.append(len(taken))
        if len(taken) == 1:
            raise KeyError("what nobody thought of")
        done.set()
        return 60.0

    activity = clock.Background("test-step", step)
    assert done.wait(10)
    activity.stop()
    assert "a step of test-step failed" in caplog.text
