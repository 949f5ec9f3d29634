"""One inn with the probe image for all tests of the daemon on real guests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from live_inn import LiveInn, live_inn


@pytest.fixture(scope="session")
def inn(tmp_path_factory: pytest.TempPathFactory, probe_image: Path) -> Iterator[LiveInn]:
    """An inn with the image ``probe`` and the NAT switch ``lan``."""
    with live_inn(tmp_path_factory.mktemp("inn") / "state") as running:
        running("image", "import", "probe", str(probe_image), "--format", "raw")
        running("switch", "create", "lan")
        yield running
