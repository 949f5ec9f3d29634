"""Tests in this folder run inside a guest with Debian's full kernel: ``tests/support/kernel_lane.py`` says how."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import kernel_lane
import pytest

INSIDE = os.environ.get(kernel_lane.INSIDE)
"""The file that reports are written to, inside the guest; None on the host."""
HERE = Path(__file__).parent


if INSIDE is not None:

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logreport(report: pytest.TestReport) -> None:
        data = _config.hook.pytest_report_to_serializable(config=_config, report=report)
        with Path(INSIDE or "").open("a") as file:
            file.write(json.dumps(data) + "\n")

    def pytest_configure(config: pytest.Config) -> None:
        global _config
        _config = config

    _config: pytest.Config

else:
    _RESULTS = pytest.StashKey[dict[str, list[dict[str, Any]]]]()

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
        for item in items:
            if HERE in item.path.parents:
                item.add_marker("guest")
                item.add_marker("root")

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
        """Report what the guest said of ``item``; the first such item boots it for all that were chosen."""
        if HERE not in item.path.parents:
            return None
        session = item.session
        item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        if _RESULTS not in session.stash:
            session.stash[_RESULTS] = kernel_lane.run([one.nodeid for one in session.items if HERE in one.path.parents])
        for data in session.stash[_RESULTS][item.nodeid]:
            report = item.config.hook.pytest_report_from_serializable(config=item.config, data=data)
            item.ihook.pytest_runtest_logreport(report=report)
        item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        return True
