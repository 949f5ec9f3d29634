"""The probe guest's disk for tests: built once, kept by its content's key.

``INNKEEPER_TEST_CACHE`` names the directory (default: one per user under the temporary directory). A test never boots
the cached file itself: ``copy_probe`` makes a sparse copy. A folder whose tests want the fixture says in its
``conftest.py``: ``from probe import probe_image as probe_image``.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import tempfile
from pathlib import Path

import pytest

from innkeeper.compute.images.probe import build_probe, probe_key


def cache_directory() -> Path:
    """Where tests keep what is expensive to make."""
    default = Path(tempfile.gettempdir()) / f"innkeeper-test-cache-{os.getuid()}"
    cache = Path(os.environ.get("INNKEEPER_TEST_CACHE") or default)
    cache.mkdir(mode=0o755, parents=True, exist_ok=True)
    return cache


def cached_probe() -> Path:
    """The raw disk of the probe guest, read-only; built when the cache lacks it. Several processes may ask at once."""
    cache = cache_directory()
    with (cache / "probe.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        image = cache / f"probe-{probe_key(cache)[:16]}.raw"
        if not image.exists():
            build_probe(image, cache_dir=cache)
            image.chmod(0o444)
            for old in set(cache.glob("probe-*.raw")) - {image}:
                old.unlink()
    return image


def copy_probe(image: Path, target: Path) -> Path:
    """A sparse, writable copy of ``image`` at ``target``."""
    subprocess.run(["cp", "--sparse=always", "--no-preserve=mode", image, target], check=True)
    return target


@pytest.fixture(scope="session")
def probe_image() -> Path:
    """The cached probe guest: copy it before booting it."""
    return cached_probe()
