"""How stored things of a repository are named, keyed and sealed. Format: docs/repository-format.md.

Cipher suite 0 encrypts nothing: its key lies beside the data, so that seals and names detect damage and mix-ups, not an
attacker. A later suite keeps the key elsewhere and encrypts; names and layouts stay as they are.
"""

from __future__ import annotations

import hmac
import json
from enum import IntEnum
from typing import Any

from blake3 import blake3

from innkeeper.model.problems import Corrupt

FORMAT_VERSION = 1
CIPHER_SUITE = 0
KEY_BYTES = 32
NAME_BYTES = 32
SEAL_BYTES = 32
_KEY_ID_BYTES = 16


class Kind(IntEnum):
    """What an entry of a pack holds."""

    EXTENT = 1
    NODE = 2
    FILE = 3


def fabric_hash(plaintext: bytes) -> bytes:
    """The fabric's name of a block: BLAKE3, 32 bytes."""
    return blake3(plaintext).digest()


class Key:
    """A repository's key: makes names and seals."""

    def __init__(self, secret: bytes) -> None:
        if len(secret) != KEY_BYTES:
            raise ValueError("a repository key has 32 bytes")
        self.secret = secret
        self.id = blake3(b"innkeeper repository key id", key=secret).digest(_KEY_ID_BYTES)

    def name(self, kind: Kind, plaintext_hash: bytes) -> bytes:
        """The repository's name of what has that BLAKE3 hash; of an extent: keyed BLAKE3 of its fabric hash alone."""
        if kind == Kind.EXTENT:
            return blake3(plaintext_hash, key=self.secret).digest()
        return blake3(bytes((kind,)) + plaintext_hash, key=self.secret).digest()

    def seal(self, blob_name: str, *parts: bytes | memoryview) -> bytes:
        """Keyed BLAKE3 over the blob's name and its bytes: stored bytes that were changed or moved do not match."""
        encoded = blob_name.encode()
        state = blake3(len(encoded).to_bytes(8, "little") + encoded, key=self.secret)
        for part in parts:
            state.update(part)
        return state.digest()

    def matches(self, blob_name: str, seal: bytes, *parts: bytes | memoryview) -> bool:
        return hmac.compare_digest(self.seal(blob_name, *parts), seal)


def damaged(blob_name: str, offset: int, what: str) -> Corrupt:
    """The problem of stored bytes of a repository that are not what was written."""
    return Corrupt(
        "repository.corrupt",
        f"{blob_name} at byte {offset}: {what}",
        cause="the medium or something that writes to it has changed stored bytes",
        remedy="run 'inn repository verify' to see which restore points are hit; the others can be restored",
    )


def seal_document(key: Key, blob_name: str, document: dict[str, Any]) -> bytes:
    """The stored form of a small document: its seal in hexadecimal, a newline, JSON."""
    body = json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
    return key.seal(blob_name, body).hex().encode() + b"\n" + body


def open_document(key: Key, blob_name: str, data: bytes) -> dict[str, Any]:
    """The document that ``seal_document`` stored under that name.

    Raises ``Corrupt`` (``repository.corrupt``).
    """
    line, newline, body = data.partition(b"\n")
    try:
        seal = bytes.fromhex(line.decode("ascii"))
    except ValueError:
        seal = b""
    if not newline or line != seal.hex().encode() or not key.matches(blob_name, seal, body):
        raise damaged(blob_name, 0, "its seal does not match")
    document: dict[str, Any] = json.loads(body)
    return document
