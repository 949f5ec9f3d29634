from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from running_api import RunningApi, running_api


@pytest.fixture
def served() -> Iterator[RunningApi]:
    with TemporaryDirectory(prefix="inn-api-") as folder, running_api(Path(folder) / "api.sock") as running:
        yield running
