"""With ``CI`` set, no test is skipped unseen. tests/conftest.py puts this in force."""

from __future__ import annotations

from pathlib import Path

import pytest

ALLOWED_SKIPS = Path(__file__).parents[1] / "allowed-skips.txt"


def _allowed_skips() -> list[str]:
    lines = ALLOWED_SKIPS.read_text().splitlines() if ALLOWED_SKIPS.exists() else []
    return [line for line in lines if line.strip() and not line.startswith("#")]


class SkipsInCI:
    """With ``CI`` set, a skip whose reason is not in ``allowed-skips.txt`` fails the run."""

    def __init__(self) -> None:
        self.unexpected: list[str] = []
        self._allowed = _allowed_skips()

    def _note(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        expected_failure = hasattr(report, "wasxfail")
        if not report.skipped or expected_failure:
            return
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        if not any(allowed in reason for allowed in self._allowed):
            self.unexpected.append(f"{report.nodeid}: {reason}")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._note(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self._note(report)

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self.unexpected and session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self.unexpected:
            terminalreporter.section("unexpected skips: in CI these fail the run", red=True)
            for line in self.unexpected:
                terminalreporter.line(line)
