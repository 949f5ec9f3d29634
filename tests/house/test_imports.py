"""The rules of the house that can be read from the code: floors, one subprocess gate, imports at the top."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src"
MODULES = sorted(SOURCE.glob("innkeeper/**/*.py"))

# Ground floor first: a package imports only from those before it.
FLOORS = [
    *("model", "system", "state", "fabric", "formats", "compute", "network", "protect", "convert", "observe"),
    *("cluster", "harden", "tasks", "daemon", "api", "console", "client", "cli"),
]
# A floor that may see less than all below it.
MAY_IMPORT_ONLY = {"client": {"model"}}

SUBPROCESS_GATE = "innkeeper/system/process.py"
EXEMPT_FROM_THE_GATE = {
    "innkeeper/fabric/keeper.py": "never replaced under running guests, so it forks with the standard library alone",
}
STARTING_CALLS = {
    "os": {"system", "popen", "fork", "forkpty", "posix_spawn", "posix_spawnp"},
    "asyncio": {"create_subprocess_exec", "create_subprocess_shell"},
    "pty": {"spawn", "fork"},
}
STARTING_PREFIXES = {"os": ("exec", "spawn")}


def _name(path: Path) -> str:
    return path.relative_to(SOURCE).as_posix()


def _floor(path: Path) -> str | None:
    """The package a module belongs to; ``None`` for ``innkeeper/__init__.py`` and the like."""
    parts = path.relative_to(SOURCE / "innkeeper").parts
    if len(parts) > 1:
        return parts[0]
    return path.stem if path.stem in FLOORS else None


def _package(path: Path) -> list[str]:
    return list(path.relative_to(SOURCE).parent.parts)


def _imported(node: ast.AST, path: Path) -> Iterator[str]:
    """Absolute dotted names that an import statement brings in."""
    if isinstance(node, ast.Import):
        for alias in node.names:
            yield alias.name
    elif isinstance(node, ast.ImportFrom):
        module = node.module or ""
        if node.level:
            package = _package(path)
            base = package[: len(package) - node.level + 1]
            module = ".".join([*base, module] if module else base)
        # `from innkeeper import fabric` names the package in the alias
        yield from (f"{module}.{alias.name}" for alias in node.names) if module == "innkeeper" else (module,)


def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), filename=str(path))


def test_every_package_has_a_floor() -> None:
    packages = {path.parent.name for path in SOURCE.glob("innkeeper/*/__init__.py")}
    assert packages <= set(FLOORS)


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_imports_go_down_the_floors(path: Path) -> None:
    here = _floor(path)
    if path.name == "__main__.py":
        forbidden: set[str] = set()  # it starts the topmost floor
    elif here is None:
        forbidden = set(FLOORS)
    elif here in MAY_IMPORT_ONLY:
        forbidden = set(FLOORS) - MAY_IMPORT_ONLY[here] - {here}
    else:
        forbidden = set(FLOORS[FLOORS.index(here) + 1 :])
    wrong = [
        f"{_name(path)}:{getattr(node, 'lineno', 0)} imports {name}"
        for node in ast.walk(_tree(path))
        for name in _imported(node, path)
        if name.startswith("innkeeper.") and name.split(".")[1] in forbidden
    ]
    assert not wrong


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_no_imports_inside_functions(path: Path) -> None:
    functions = (n for n in ast.walk(_tree(path)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef))
    wrong = [
        f"{_name(path)}:{node.lineno} in {function.name}"
        for function in functions
        for node in ast.walk(function)
        if isinstance(node, ast.Import | ast.ImportFrom)
    ]
    assert not wrong


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_processes_are_started_through_the_gate(path: Path) -> None:
    if _name(path) == SUBPROCESS_GATE or _name(path) in EXEMPT_FROM_THE_GATE:
        return
    wrong = []
    for node in ast.walk(_tree(path)):
        # `subprocess.Popen` may be named as a type; only the gate calls it.
        if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("subprocess."):
            wrong.append(f"{ast.unparse(node.func)} at line {node.lineno}")
        if isinstance(node, ast.ImportFrom):
            wrong += [f"imports {alias.name}" for alias in node.names if _starts(node.module or "", alias.name)]
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and _starts(node.value.id, node.attr):
            wrong.append(f"{node.value.id}.{node.attr} at line {node.lineno}")
        if isinstance(node, ast.Attribute) and node.attr in {"subprocess_exec", "subprocess_shell"}:
            wrong.append(f"{node.attr} at line {node.lineno}")
    assert not wrong, f"{_name(path)}: use innkeeper.system.process"


def _starts(module: str, name: str) -> bool:
    if module == "subprocess":
        return name in {"run", "call", "check_call", "check_output", "getoutput", "getstatusoutput"}
    return name in STARTING_CALLS.get(module, ()) or name.startswith(STARTING_PREFIXES.get(module, ("\0",)))


def test_the_exempt_modules_import_next_to_nothing_of_the_house() -> None:
    for exempt in EXEMPT_FROM_THE_GATE:
        path = SOURCE / exempt
        if not path.exists():
            continue
        names = {name for node in ast.walk(_tree(path)) for name in _imported(node, path)}
        assert {name for name in names if name.startswith("innkeeper")} <= {"innkeeper.system.paths"}
