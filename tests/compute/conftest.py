from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from guest_lab import BackgroundLoop, Golden, GuestLab, guest_lab, make_golden
from probe import probe_image as probe_image


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if os.geteuid() != 0 and item.get_closest_marker("root"):
            item.add_marker(pytest.mark.skip(reason="needs root"))


@pytest.fixture(scope="session")
def run() -> Iterator[BackgroundLoop]:
    loop = BackgroundLoop()
    yield loop
    loop.close()


@pytest.fixture(scope="session")
def golden(run: BackgroundLoop, probe_image: Path, tmp_path_factory: pytest.TempPathFactory) -> Golden:
    with guest_lab(run) as lab:
        return make_golden(lab, probe_image, tmp_path_factory.mktemp("golden"))


@pytest.fixture
def lab(run: BackgroundLoop) -> Iterator[GuestLab]:
    with guest_lab(run) as made:
        yield made
