from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from innkeeper.compute.inputs import MachineInputs
from innkeeper.compute.memory import Layout, MemoryImage
from innkeeper.model.problems import Conflict, Corrupt, NotFound

MACHINE = MachineInputs(
    vm_id="11111111-2222-4333-8444-555555555555",
    name="web",
    machine="pc-q35-10.0",
    cpus=1,
    memory_bytes=64 * 1024 * 1024,
    generation_id="11111111-2222-4333-8444-555555555556",
)


def written(directory: Path) -> MemoryImage:
    image = MemoryImage(directory)
    descriptor = image.begin()
    os.write(descriptor, b"memory")
    os.close(descriptor)
    assert not image.exists()
    image.finish_blocking(Layout.of(MACHINE))
    return image


def test_it_exists_only_when_finished(tmp_path: Path) -> None:
    image = written(tmp_path / "image")
    assert image.exists() and image.size_bytes == 6
    assert image.layout() == Layout.of(MACHINE)
    image.check(replace(MACHINE, name="renamed", generation_id=MACHINE.vm_id, restoring=True))
    os.close(image.begin())
    assert not image.exists()
    image.discard()
    image.discard()
    assert list(image.directory.iterdir()) == []


def test_another_machine_is_refused_with_the_difference(tmp_path: Path) -> None:
    image = written(tmp_path)
    with pytest.raises(Conflict) as refused:
        image.check(replace(MACHINE, cpus=2))
    assert refused.value.code == "memory.mismatch" and "cpus was 1, is 2" in (refused.value.cause or "")


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"format": 2, "layout": {}}', '{"format": 1, "layout": {"x": 1}}'])
def test_a_damaged_image_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "machine.json").write_text(text)
    with pytest.raises(Corrupt):
        MemoryImage(tmp_path).layout()


def test_an_absent_image_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        MemoryImage(tmp_path / "nowhere").layout()


def test_the_format_is_versioned(tmp_path: Path) -> None:
    written(tmp_path)
    facts = json.loads((tmp_path / "machine.json").read_text())
    assert facts["format"] == 1 and facts["layout"]["memory_bytes"] == MACHINE.memory_bytes
