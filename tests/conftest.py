"""What holds for every test: it leaves nothing behind, and in CI none is skipped unseen."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings
from leaks import (
    IN_CI,
    nothing_leaked as nothing_leaked,
    nothing_leaked_by_wider_fixtures as nothing_leaked_by_wider_fixtures,
)
from probe import probe_image as probe_image
from skips import SkipsInCI

# How busy the machine is decides nothing: no example is too slow.
settings.register_profile("innkeeper", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True)
settings.load_profile("innkeeper")


def pytest_configure(config: pytest.Config) -> None:
    is_xdist_worker = hasattr(config, "workerinput")
    if IN_CI and not is_xdist_worker:
        config.pluginmanager.register(SkipsInCI(), "skips-in-ci")
