"""The fabric reaches files, time, chance and threads through ``system.files.Io`` alone; its edges are named here."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

FABRIC = Path(__file__).parents[2] / "src/innkeeper/fabric"
MODULES = sorted(FABRIC.rglob("*.py"))

# What goes around the layer: modules as a whole, or names of a module.
FORBIDDEN_MODULES = {
    *("os", "io", "pathlib", "shutil", "tempfile", "mmap", "fcntl", "glob", "select", "signal"),
    *("time", "datetime", "random", "secrets", "asyncio", "uvloop", "socket", "concurrent", "multiprocessing"),
}
FORBIDDEN_NAMES = {
    "threading": {"Thread", "Timer", "Event", "Condition"},  # a lock starts nothing and waits for no clock
    "uuid": {"uuid1", "uuid4"},
    "innkeeper.model.resources": {"new_id", "now"},
    "innkeeper.system.clock": {"RealClock", "RealRandomness", "RealScheduler", "Background"},
    "innkeeper.system.files": {"RealFile", "RealFiles", "RealLock"},
}
FORBIDDEN_CALLS = {"open", "__import__", "exec", "eval"}

# The edges: processes and sockets around the storage. None of them touches what a pool keeps.
SOCKETS = frozenset({"asyncio", "socket", "concurrent", "os"})
EXEMPT: dict[str, tuple[frozenset[str], str]] = {
    "keeper.py": (frozenset({"os", "pathlib", "fcntl", "signal", "socket", "time", "select"}), "starts the fabric"),
    "service.py": (frozenset({"os", "pathlib", "signal", "socket", "asyncio", "uvloop"}), "the fabric's process"),
    "command.py": (frozenset({"os", "pathlib", "socket", "uvloop", "new_id"}), "the command line of a pool by itself"),
    "client.py": (frozenset({"asyncio", "pathlib"}), "other rooms' end of the control socket"),
    "control_socket.py": (SOCKETS | {"pathlib"}, "serves the control socket"),
    "nbd/": (SOCKETS | {"pathlib"}, "serves NBD: sockets, and workers for reads that block"),
    "cache.py": (frozenset({"os"}), "asks how much memory the machine has, for the size of a cache"),
}


def _name(path: Path) -> str:
    return path.relative_to(FABRIC).as_posix()


def _allowed(name: str) -> frozenset[str]:
    return next((allowed for edge, (allowed, _why) in EXEMPT.items() if name.startswith(edge)), frozenset())


def _around_the_layer(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and name of everything that does not go through the layer."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] in FORBIDDEN_MODULES:
                    yield node.lineno, alias.name.split(".")[0]
        elif isinstance(node, ast.ImportFrom) and node.module:
            if node.module.split(".")[0] in FORBIDDEN_MODULES:
                yield node.lineno, node.module.split(".")[0]
            for alias in node.names:
                if alias.name in FORBIDDEN_NAMES.get(node.module, ()):
                    yield node.lineno, alias.name
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if node.attr in FORBIDDEN_NAMES.get(node.value.id, ()):
                yield node.lineno, node.attr
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in FORBIDDEN_CALLS:
            yield node.lineno, node.func.id


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_a_module_goes_through_the_layer(path: Path) -> None:
    allowed = _allowed(_name(path))
    found = _around_the_layer(ast.parse(path.read_text()))
    wrong = [f"line {line}: {name}" for line, name in found if name not in allowed]
    assert not wrong, f"fabric/{_name(path)}: use the pool's Io"


def test_no_exemption_is_wider_than_needed() -> None:
    used: dict[str, set[str]] = {edge: set() for edge in EXEMPT}
    for path in MODULES:
        for edge in EXEMPT:
            if _name(path).startswith(edge):
                used[edge] |= {name for _line, name in _around_the_layer(ast.parse(path.read_text()))}
    assert {edge: allowed - used[edge] for edge, (allowed, _why) in EXEMPT.items() if allowed - used[edge]} == {}


@pytest.mark.parametrize(
    "code",
    [
        "import os",
        "from pathlib import Path",
        "import time as clock",
        "from threading import Thread",
        "import threading\nthreading.Timer(1, print)",
        "from uuid import UUID, uuid4",
        "import uuid\nuuid.uuid4()",
        "open('x')",
        "from innkeeper.system.files import Io, RealFiles",
    ],
)
def test_what_goes_around_it_is_seen(code: str) -> None:
    assert list(_around_the_layer(ast.parse(code)))


def test_what_does_not_is_let_through() -> None:
    code = "import threading\nthreading.RLock()\nfrom uuid import UUID\nfrom innkeeper.system.files import Io\n"
    assert list(_around_the_layer(ast.parse(code))) == []
