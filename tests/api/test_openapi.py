"""The OpenAPI document tells the truth: requests made from it, well-formed or not, get only what it declares."""

from __future__ import annotations

from typing import Any

import pytest
import schemathesis
from fake_house import FakeHouse
from hypothesis import HealthCheck, settings
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from innkeeper.api.app import create_app


def no_defect(_context: Any, response: Any, _case: Any) -> None:
    """503 is an answer like any other: a guest's agent, or a pool, may be away."""
    assert response.status_code != 500, response.text


CHECKS = [no_defect, status_code_conformance, content_type_conformance, response_schema_conformance]


# without the endless streams
document = schemathesis.openapi.from_asgi("/v1/openapi.json", create_app(FakeHouse())).exclude(path_regex="/events$")


@document.parametrize()
@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
def test_answers_are_as_declared(case: Any) -> None:
    case.call_and_validate(checks=CHECKS)


@pytest.mark.slow
@document.parametrize()
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_answers_are_as_declared_at_length(case: Any) -> None:
    case.call_and_validate(checks=CHECKS)
