"""Every problem goes over the wire and back as what it was."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from innkeeper.model import problems
from innkeeper.model.problems import Problem, from_dict

SOURCE = Path(problems.__file__).parents[1]


def _load_everything() -> None:
    """Import each module of the product, so that every subclass is known."""
    for path in sorted(SOURCE.rglob("*.py")):
        if path.name != "__main__.py":
            dotted = ".".join(path.relative_to(SOURCE.parent).with_suffix("").parts)
            importlib.import_module(dotted.removesuffix(".__init__"))


def _derived(kind: type[Problem]) -> Iterator[type[Problem]]:
    for each in kind.__subclasses__():
        yield each
        yield from _derived(each)


def test_the_kinds_are_the_classes_right_below_the_root() -> None:
    _load_everything()
    assert set(Problem.__subclasses__()) == set(problems._KINDS.values())
    assert {name: kind.__name__ for name, kind in problems._KINDS.items()} == {name: name for name in problems._KINDS}


def test_every_problem_comes_back_as_its_kind() -> None:
    _load_everything()
    for kind in _derived(Problem):
        sent = kind("vm.example", "it happened", cause="because", remedy="do that")
        back = from_dict(json.loads(json.dumps(sent.as_dict())))
        assert type(back) in problems._KINDS.values()
        assert isinstance(sent, type(back))
        assert (back.code, back.detail, back.cause, back.remedy) == (sent.code, sent.detail, sent.cause, sent.remedy)
        assert back.http_status == sent.http_status == sent.as_dict()["status"]


@pytest.mark.parametrize("members", [{}, {"kind": "Strange", "code": "a.b", "detail": "c"}, {"kind": None}])
def test_what_is_not_known_is_a_failure(members: dict[str, object]) -> None:
    assert type(from_dict(members)) is problems.Failed


def test_the_root_itself_is_sent_as_a_failure() -> None:
    assert type(from_dict(Problem("a.b", "c").as_dict())) is problems.Failed


def test_it_reads_as_one_line_with_code_cause_and_remedy() -> None:
    said = str(problems.NoSpace("pool.full", "the pool is full", cause="0 bytes free", remedy="add space"))
    assert said == "the pool is full [pool.full]; cause: 0 bytes free; remedy: add space"
    assert str(problems.NoSpace("pool.full", "the pool is full")) == "the pool is full [pool.full]"
