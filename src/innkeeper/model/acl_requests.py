"""Requests of named ACLs."""

from __future__ import annotations

from pydantic import Field

from innkeeper.model.acl import AclEntries, AclLists, AclRules
from innkeeper.model.request_types import Labels, Name
from innkeeper.model.resources import Part


class AclCreate(AclLists):
    """A named ACL, which cards can be given."""

    name: Name
    labels: Labels = Field(default_factory=dict)


class AclSet(Part):
    """Changes to it, for all cards that have it at once; ``entries`` and ``rules`` replace all."""

    name: Name | None = None
    labels: Labels | None = None
    entries: AclEntries | None = None
    rules: AclRules | None = None
