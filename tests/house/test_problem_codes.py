"""Problem codes are stable: every code in the product is in ``problem-codes.txt``, and none of those is gone.

A line is a code and the kinds of problem it comes with; ``*`` stands for a noun that is filled in. Codes never change
once released, so a line is only ever added.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src/innkeeper"
MODULES = sorted(SOURCE.rglob("*.py"))
KNOWN = Path(__file__).with_name("problem-codes.txt")
KINDS = {"Invalid", "NotFound", "Conflict", "Refused", "Unavailable", "NoSpace", "Corrupt", "Failed"}


def _texts(expression: ast.expr) -> list[str] | None:
    """What an expression that gives a code can be; None when that cannot be read from it."""
    match expression:
        case ast.Constant(value=str(text)):
            return [text]
        case ast.IfExp(body=body, orelse=otherwise):
            either, other = _texts(body), _texts(otherwise)
            return either + other if either is not None and other is not None else None
        case ast.JoinedStr(values=parts):
            return ["".join(part.value if isinstance(part, ast.Constant) else "*" for part in parts)]
    return None


def _taking_a_code(tree: ast.Module) -> dict[str, int]:
    """Functions of a module that are given a code: name -> which argument."""
    functions = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    named = {function.name: [each.arg for each in function.args.args if each.arg != "self"] for function in functions}
    named.pop("__init__", None)  # a problem's own
    return {name: arguments.index("code") for name, arguments in named.items() if "code" in arguments}


def _codes(tree: ast.Module) -> Iterator[tuple[int, str, list[str] | None]]:
    """Line, kind and codes of each problem that a module makes."""
    kinds = KINDS | {node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and _is_problem(node)}
    helpers = _taking_a_code(tree)
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func).rpartition(".")[2]
        if called in helpers and len(node.args) > helpers[called]:
            yield node.lineno, "", _texts(node.args[helpers[called]])
        elif called in kinds and node.args:
            code = node.args[0]
            handed_on = isinstance(code, ast.Attribute | ast.Name) and ast.unparse(code).rpartition(".")[2] == "code"
            if not handed_on:
                yield node.lineno, called if called in KINDS else "", _texts(code)


def _is_problem(node: ast.ClassDef) -> bool:
    return any(isinstance(base, ast.Name) and base.id in KINDS for base in node.bases)


def _name(path: Path) -> str:
    return path.relative_to(SOURCE).as_posix()


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_a_code_is_a_noun_and_what_happened(path: Path) -> None:
    for line, _kind, codes in _codes(ast.parse(path.read_text())):
        assert codes is not None, f"{_name(path)}:{line}: write the code where the problem is made"
        for code in codes:
            assert re.fullmatch(r"([a-z]+|\*)\.([a-z][a-z0-9_]*|\*)", code), f"{_name(path)}:{line}: {code}"


def test_the_codes_are_those_that_are_known() -> None:
    found: dict[str, set[str]] = {}
    for path in MODULES:
        for _line, kind, codes in _codes(ast.parse(path.read_text())):
            for code in codes or ():
                found.setdefault(code, set()).update({kind} - {""})
    lines = [" ".join([code, *sorted(kinds)]) for code, kinds in sorted(found.items())]
    known = KNOWN.read_text().splitlines()
    assert sorted(set(known) - set(lines)) == [], "codes never change once released"
    assert sorted(set(lines) - set(known)) == [], f"add these lines to {KNOWN.name}"
    assert known == sorted(known)
