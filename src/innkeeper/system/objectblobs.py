"""Blobs as objects of an object store: S3 and what speaks like it, and a store in memory for tests (through obstore).

A call is repeated with growing pauses while the store does not answer, or answers that it is overloaded, until the
address's patience is at an end. No problem's text has a key in it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, PermissionDeniedError, UnauthenticatedError
from obstore.store import MemoryStore, ObjectStore, S3Store

from innkeeper.model.problems import Failed, Invalid, NotFound, Problem, Unavailable
from innkeeper.system.blobs import Address, BlobFacts, Buffer, absent, check_name, taken
from innkeeper.system.clock import Clock
from innkeeper.system.files import FileSystem

T = TypeVar("T")
FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 5.0
CONNECT_TIMEOUT_S = 5
CALL_TIMEOUT_S = 120
_CODE = re.compile(r"<Code>([^<]{1,80})</Code>")
_STATUS = re.compile(r"non-2xx status code: (\d{3}[ \w]*)")
_AGAIN = ("408", "429", "5")
"""How statuses begin after which the same may succeed."""
_DENIED = ("401", "403")
_BAD_RANGE = "Invalid range"


class ObjectBlobs:
    """Objects below a prefix. Objects are put whole, so that none is ever seen half-made."""

    def __init__(self, store: ObjectStore, address: Address, clock: Clock) -> None:
        self._store = store
        self._where = address.url
        self._patience_s = address.patience_s
        self._clock = clock

    def put(self, name: str, parts: Sequence[Buffer]) -> None:
        check_name(name)
        data = parts[0] if len(parts) == 1 else b"".join(parts)
        attempts = 0

        def attempt() -> None:
            nonlocal attempts
            attempts += 1
            obstore.put(self._store, name, data, mode="create", use_multipart=False)

        try:
            self._patiently(name, attempt)
        except AlreadyExistsError:
            # An attempt whose answer was lost may have been the one that made it.
            if attempts == 1 or self.get(name) != bytes(data):
                raise taken(name, self._where) from None

    def get(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        check_name(name)
        if length is not None and length <= 0:
            return b""
        wanted = {"offset": offset} if length is None else (offset, offset + length)

        def attempt() -> bytes:
            options = {"range": wanted} if offset or length is not None else None
            return bytes(obstore.get(self._store, name, options=options).bytes())  # type: ignore[arg-type]

        try:
            return self._patiently(name, attempt)
        except Failed as refused:
            if refused.code == "blob.io" and offset >= self.size(name):
                return b""  # a range that begins at the end or behind it is no error to us
            raise

    def size(self, name: str) -> int:
        check_name(name)
        return int(self._patiently(name, lambda: obstore.head(self._store, name))["size"])

    def ls(self, prefix: str) -> Iterator[BlobFacts]:
        folder = check_name(prefix.rstrip("/"))

        def attempt() -> list[Any]:
            return [found for chunk in obstore.list(self._store, folder) for found in chunk]

        for found in self._patiently(folder, attempt):
            yield BlobFacts(found["path"], int(found["size"]), found["last_modified"].timestamp())

    def delete(self, name: str) -> None:
        check_name(name)
        try:
            self._patiently(name, lambda: obstore.delete(self._store, name))
        except NotFound as missing:
            if missing.code != "blob.absent":
                raise

    def clean(self, older_than_s: float) -> int:
        """Nothing is ever half-made."""
        return 0

    def _patiently(self, name: str, attempt: Callable[[], T]) -> T:
        deadline = self._clock.monotonic() + self._patience_s
        pause_s = FIRST_PAUSE_S
        while True:
            try:
                return attempt()
            except AlreadyExistsError:
                raise
            except (BaseError, OSError, ValueError) as refused:
                problem = self._problem(name, refused)
                if not isinstance(problem, Unavailable) or self._clock.monotonic() + pause_s > deadline:
                    raise problem from None  # the original's text may have more in it than is good for a log
            self._clock.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    def _problem(self, name: str, refused: Exception) -> Problem:
        text = str(refused)
        code, status = _CODE.search(text), _STATUS.search(text)
        cause = ", ".join(found.group(1).strip() for found in (status, code) if found) or text.splitlines()[0][:200]
        if code and code.group(1) in ("NoSuchBucket", "InvalidBucketName"):
            remedy = "make the bucket, or check its name and the endpoint"
            return NotFound("blob.bucket", f"the store has no bucket for {self._where}", cause=cause, remedy=remedy)
        if isinstance(refused, FileNotFoundError):
            return absent(name, self._where)
        denied = isinstance(refused, PermissionDeniedError | UnauthenticatedError)
        if denied or (status and status.group(1).startswith(_DENIED)):
            remedy = "check the access key and what it may do: get, put, list and delete objects below the prefix"
            return Failed("blob.denied", f"{self._where} refuses the access key", cause=cause, remedy=remedy)
        if status.group(1).startswith(_AGAIN) if status else _BAD_RANGE not in text:
            remedy = "check the endpoint, the network and the store itself; what waits goes on by itself"
            return Unavailable("blob.unreachable", f"{self._where} does not answer", cause=cause, remedy=remedy)
        return Failed("blob.io", f"{self._where} refuses", cause=cause, remedy="look at the object store")


def open_s3(address: Address, files: FileSystem, clock: Clock) -> ObjectBlobs:
    """A bucket, or what is below a prefix in it. Raises ``Invalid`` (``blob.url``)."""
    bucket, prefix = address.place
    if not bucket:
        raise Invalid("blob.url", f"{address.url} names no bucket", remedy="write s3://BUCKET/PREFIX")
    given: dict[str, Any] = {}
    if address.endpoint:
        given["endpoint"] = address.endpoint
    if address.credentials.access_key_id:
        given["access_key_id"] = address.credentials.access_key_id
        given["secret_access_key"] = address.credentials.secret_access_key
    try:
        store = S3Store(
            bucket,
            prefix=prefix or None,
            region=address.region or "us-east-1",
            virtual_hosted_style_request=False,
            client_options={
                "allow_http": address.endpoint.startswith("http://"),
                "connect_timeout": timedelta(seconds=CONNECT_TIMEOUT_S),
                "timeout": timedelta(seconds=CALL_TIMEOUT_S),
            },
            retry_config={"max_retries": 0},
            **given,
        )
    except (BaseError, ValueError) as wrong:
        cause = str(wrong).splitlines()[0][:200]
        raise Invalid("blob.url", f"{address.url} cannot be used", cause=cause, remedy="check URL, endpoint") from None
    return ObjectBlobs(store, address, clock)


_MEMORY: dict[str, MemoryStore] = {}


def open_memory(address: Address, files: FileSystem, clock: Clock) -> ObjectBlobs:
    """A store in this process's memory, the same one for the same URL."""
    return ObjectBlobs(_MEMORY.setdefault(address.url, MemoryStore()), address, clock)
