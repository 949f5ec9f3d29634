"""What a clone holds: locks without indexes, no path of somebody's machine, no binaries, scripts that parse."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LOCKS = sorted(ROOT.glob("requirements/*.txt"))
LARGEST_FILE_BYTES = 1_000_000
BASH = b"#!/usr/bin/env bash"

# Written in two parts, so that this file does not contain what it looks for.
REGISTRY_HOSTS = tuple(
    first + second
    for first, second in [
        ("pypi", ".org"),
        ("python", "hosted.org"),
        ("deb.", "debian.org"),
        ("snapshot.", "debian.org"),
        ("registry.npm", "js.org"),
    ]
)
MACHINE_PATHS = ("/wo" + "rk/", "/ro" + "ot/.pyenv", "/opt/" + "pypi")


def _tracked() -> list[Path]:
    listed = subprocess.run(["git", "-C", ROOT, "ls-files", "-z"], capture_output=True, check=True).stdout
    return [path for name in listed.split(b"\0") if name and (path := ROOT / name.decode()).is_file()]


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.name)
def test_a_lock_names_no_index(lock: Path) -> None:
    text = lock.read_text()
    assert "://" not in text
    assert not re.search(r"^\s*(-i|-f|--index-url|--extra-index-url|--find-links|--trusted-host)\b", text, re.MULTILINE)
    assert " @ " not in text


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.name)
def test_a_lock_pins_every_requirement_with_hashes(lock: Path) -> None:
    logical_lines = re.sub(r"\\\n", " ", lock.read_text()).splitlines()
    requirements = [line for line in logical_lines if line.strip() and not line.lstrip().startswith("#")]
    assert requirements
    for line in requirements:
        assert re.match(r"[a-z0-9][a-z0-9.-]*==\S+ ", line), line[:80]
        assert "--hash=sha256:" in line, line[:80]


def test_dev_holds_all_of_runtime() -> None:
    texts = [(ROOT / f"requirements/{name}.txt").read_text() for name in ("runtime", "dev")]
    runtime, dev = ({match[0] for match in re.finditer(r"^[a-z0-9.-]+==\S+", text, re.MULTILINE)} for text in texts)
    assert runtime <= dev


def test_no_file_names_a_registry_or_a_machine() -> None:
    wrong = []
    for path in _tracked():
        content = path.read_bytes()
        assert len(content) <= LARGEST_FILE_BYTES, path
        assert b"\0" not in content, f"{path} is binary"
        text = content.decode()
        wrong += [f"{path.relative_to(ROOT)}: {found}" for found in (*REGISTRY_HOSTS, *MACHINE_PATHS) if found in text]
    assert not wrong


def test_the_shell_scripts_parse() -> None:
    scripts = [path for path in _tracked() if path.suffix == ".sh" or path.read_bytes().startswith(BASH)]
    assert scripts
    for script in scripts:
        subprocess.run(["bash", "-n", script], check=True)


def test_package_lists_are_whole() -> None:
    """Every line of a package list is a name and a reason; no package is in two lists."""
    seen: set[str] = set()
    for path in sorted(ROOT.glob("scripts/packages/*.txt")):
        for line in path.read_text().splitlines():
            if line.startswith("#"):
                continue
            name, separator, reason = line.partition("#")
            assert re.fullmatch(r"[a-z0-9][a-z0-9+.-]+ +", name), line
            assert separator, line
            assert reason.strip(), line
            assert name.strip() not in seen, line
            seen.add(name.strip())
