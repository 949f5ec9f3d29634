"""Names that people give, and ids that the house gives."""

from __future__ import annotations

import re

from innkeeper.model.problems import Invalid

_NAME = re.compile(r"^[A-Za-z][A-Za-z0-9_.-]{0,62}$")
_IMAGE = re.compile(r"^[A-Za-z][A-Za-z0-9_.-]{0,62}(/[A-Za-z0-9][A-Za-z0-9_.-]{0,62})?$")
_LABEL = re.compile(r"^[A-Za-z0-9][A-Za-z0-9_./-]{0,62}$")


def check_name(name: str, *, field: str = "name") -> str:
    """``name`` when it begins with a letter and holds letters, digits, ``_ . -`` only, at most 63.

    Raises ``Invalid`` (``name.invalid``) naming ``field``.
    """
    if not _NAME.match(name):
        raise Invalid(
            "name.invalid",
            f"{field}: {name!r} is not a valid name",
            cause="a name begins with a letter and holds letters, digits, '_', '.' and '-', at most 63 of them",
            remedy="choose another name",
        )
    return name


def check_image_name(name: str) -> str:
    """Like ``check_name`` with at most one slash, as in ``debian/12``."""
    if not _IMAGE.match(name):
        raise Invalid("name.invalid", f"image: {name!r} is not a valid name", remedy="write for example debian/12")
    return name


def check_labels(labels: dict[str, str]) -> dict[str, str]:
    """``labels`` when every key is a label name and every value is at most 256 characters."""
    for key, value in labels.items():
        if not _LABEL.match(key) or len(value) > 256:
            raise Invalid("label.invalid", f"label {key!r}={value[:40]!r} is not valid", remedy="use short plain words")
    return labels
