"""Small modules and functions; broad catches only where a supervisor has a reason."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODULES = sorted([*ROOT.glob("src/innkeeper/**/*.py"), *ROOT.glob("bench/**/*.py"), *ROOT.glob("scripts/**/*.py")])
TESTS = sorted(ROOT.glob("tests/**/*.py"))
LONGEST_MODULE_LINES = 500
LONGEST_FUNCTION_LINES = 60


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", [*MODULES, *TESTS], ids=_name)
def test_a_module_holds_one_idea(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= LONGEST_MODULE_LINES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            assert lines <= LONGEST_FUNCTION_LINES, f"{_name(path)}:{node.lineno} {node.name} has {lines} lines"


@pytest.mark.parametrize("path", [p for p in MODULES if p.name == "__init__.py"], ids=_name)
def test_a_package_says_what_it_is_for(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text()))


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_a_broad_catch_gives_its_reason(path: Path) -> None:
    lines = path.read_text().splitlines()
    for number, line in enumerate(lines):
        if "except Exception" in line or "except BaseException" in line or line.strip() == "except:":
            comments = "".join(near.partition("#")[2] for near in lines[max(0, number - 1) : number + 2])
            reason = comments.replace("noqa: BLE001", "").strip()
            assert reason or _reraises(path, number + 1), f"{_name(path)}:{number + 1}"


def _reraises(path: Path, line: int) -> bool:
    """Whether the handler at that line ends by raising what it caught."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ExceptHandler) and node.lineno == line:
            return isinstance(node.body[-1], ast.Raise)
    return False
