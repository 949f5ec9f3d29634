"""An NBD server over a pool."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from nbd_lab import NbdLab


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[NbdLab]:
    lab = NbdLab(tmp_path)
    yield lab
    lab.close()
