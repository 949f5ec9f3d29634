"""Block devices for tests: files behind loop devices."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


class Loops:
    """``make`` gives a device of some size; ``detach`` and ``attach`` pull it out and put it back."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._files: dict[str, Path] = {}

    def make(self, size_bytes: int = 512 << 20) -> str:
        path = self._directory / f"disk-{len(list(self._directory.iterdir()))}"
        with path.open("wb") as file:
            file.truncate(size_bytes)
        return self._attach(path)

    def _attach(self, path: Path) -> str:
        command = ["losetup", "--find", "--show", "--partscan", str(path)]
        made = subprocess.run(command, capture_output=True, text=True, check=False)
        if made.returncode != 0:
            pytest.skip("the kernel has no loop devices")
        self._files[made.stdout.strip()] = path
        return made.stdout.strip()

    def detach(self, device: str) -> Path:
        subprocess.run(["losetup", "--detach", device], check=True)
        return self._files.pop(device)

    def attach(self, path: Path) -> str:
        return self._attach(path)

    def close(self) -> None:
        for device in list(self._files):
            self.detach(device)


@pytest.fixture
def loops(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loops]:
    made = Loops(tmp_path_factory.mktemp("loops"))
    yield made
    made.close()
