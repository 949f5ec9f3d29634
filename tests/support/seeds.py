"""The seed of a run: another one each time, or that of a run to repeat as far as its choices decide it."""

from __future__ import annotations

import os
import random


def chosen_seed() -> int:
    """``$INNKEEPER_SEED``, else a new one; below 2^31, which every tool takes."""
    return int(os.environ.get("INNKEEPER_SEED") or random.SystemRandom().randrange(1 << 31))
