"""Stores that several tests of the fabric use; the simulated worlds are modules beside them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from s3_server import S3Server, new_prefix

from innkeeper.system.blobs import Address

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    server = S3Server(tmp_path_factory.mktemp("weed") / "data")
    server.start()
    yield server
    server.stop()


@pytest.fixture(params=["file", "memory", "s3"])
def address(request: pytest.FixtureRequest, tmp_path: Path, s3: S3Server) -> Address:
    if request.param == "s3":
        return s3.address(new_prefix(s3))
    return Address(f"{request.param}://{tmp_path}/store")


@pytest.fixture
def local(tmp_path: Path) -> Address:
    return Address(f"file://{tmp_path}/store")
