"""A lab with one nat switch."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from switch_lab import Lab, new_lab
from switch_world import SWITCH


@pytest.fixture
def lab() -> Iterator[Lab]:
    with new_lab(SWITCH) as made:
        yield made
