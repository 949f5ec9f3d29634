"""The OpenAPI document tells the truth: requests made from it, well-formed and not, get only answers that it declares."""

from __future__ import annotations

from schemathesis.checks import CHECKS

print(CHECKS)
