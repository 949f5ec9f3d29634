"""Blobs: write once, read a range, list, delete. What sealed groups and repositories stand on, wherever it is.

A driver is one class plus one line in ``DRIVERS`` of ``innkeeper.system.stores``; all drivers, those of repositories
too, pass ``tests/support/blobs_conformance.py``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from innkeeper.model.problems import Conflict, Invalid, NotFound

Buffer = bytes | bytearray | memoryview


class BlobFacts(NamedTuple):
    """What a listing says of a blob; ``modified_at`` in seconds since 1970, 0 where nobody knows."""

    name: str
    size_bytes: int
    modified_at: float = 0.0


class Blobs(Protocol):
    """Named immutable byte strings. Names are ``/``-separated lower-case words. Every call blocks; any thread may call.

    Every call may raise ``Unavailable`` (``*.unreachable``) and ``Failed`` (``*.io``), ``*`` being the kind.
    """

    def put(self, name: str, parts: Sequence[Buffer]) -> None:
        """Store the parts one behind the other; when it returns, the blob is whole and on the medium.

        Raises ``Conflict`` (``blob.exists``) when the name is taken, ``NoSpace`` (``*.full``). After any failure, a
        crash included, the name is either absent or holds all of the bytes.
        """

    def get(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        """The bytes there, fewer only at the blob's end. Raises ``NotFound`` (``blob.absent``)."""

    def size(self, name: str) -> int:
        """Length in bytes. Raises ``NotFound`` (``blob.absent``)."""

    def ls(self, prefix: str) -> Iterator[BlobFacts]:
        """All blobs whose name begins with ``prefix`` (a whole folder such as ``packs/``), in no particular order."""

    def delete(self, name: str) -> None:
        """Remove the blob; an absent one is no error."""

    def clean(self, older_than_s: float) -> int:
        """Remove what interrupted puts left behind, when older than that; returns how many things were removed."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """A key of an object store; the secret is in no ``repr``."""

    access_key_id: str = ""
    secret_access_key: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class Address:
    """Where a store of blobs is: ``s3://bucket/prefix``, ``file:///directory`` or ``memory://name``.

    ``endpoint``: the URL of a server other than Amazon's. ``patience_s``: how long calls are repeated while the store
    does not answer.
    """

    url: str
    endpoint: str = ""
    region: str = ""
    credentials: Credentials = Credentials()
    patience_s: float = 60.0

    @property
    def scheme(self) -> str:
        return self.url.partition("://")[0]

    @property
    def place(self) -> tuple[str, str]:
        """What is behind the scheme, up to the first slash and from there on: a bucket and a prefix."""
        first, _, rest = self.url.partition("://")[2].partition("/")
        return first, rest.strip("/")


def check_name(name: str) -> str:
    """The name. Raises ``Invalid`` (``blob.name``) where it leads astray."""
    if not name or any(part in ("", ".", "..", "tmp") for part in name.split("/")):
        raise Invalid("blob.name", f"{name!r} is no name of a blob")
    return name


def absent(name: str, where: str) -> NotFound:
    """The problem of a blob that is not there."""
    return NotFound("blob.absent", f"{where} has no {name}", remedy="look whether somebody has removed it there")


def taken(name: str, where: str) -> Conflict:
    """The problem of a name that is taken."""
    return Conflict("blob.exists", f"{where} has {name} already")
