"""Stores of blobs: every driver passes the shared suite; what a store may say wrong is told with cause and remedy."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from blobs_conformance import BlobsConformance
from s3_server import KEYS, S3Server, new_prefix

from innkeeper.model.problems import Failed, Invalid, NoSpace, NotFound, Problem, Unavailable
from innkeeper.system.blobs import Address, Blobs, Credentials
from innkeeper.system.clock import SimulatedClock
from innkeeper.system.fileblobs import FileBlobs
from innkeeper.system.files import Io, RealFiles
from innkeeper.system.simulation import CRASH, EIO, ENOSPC, SimulatedCrash, simulated_io
from innkeeper.system.stores import DRIVERS, open_store


@pytest.fixture(scope="module", autouse=True)
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    server = S3Server(tmp_path_factory.mktemp("weed") / "data")
    server.start()
    yield server
    server.stop()


@pytest.fixture(params=[*sorted(DRIVERS), "simulated"])
def blobs(request: pytest.FixtureRequest, tmp_path: Path) -> Blobs:
    match request.param:
        case "file":
            return open_store(Io(), Address(f"file://{tmp_path}/store"))
        case "memory":
            return open_store(Io(), Address(f"memory://{tmp_path}"))
        case "s3":
            server: S3Server = request.getfixturevalue("s3")
            return open_store(Io(), server.address(new_prefix(server)))
        case _:
            return open_store(simulated_io(1)[0], Address("file:///store"))


class TestEveryDriver(BlobsConformance):
    """The shared suite."""


def test_listings_tell_when_a_blob_was_written(blobs: Blobs, request: pytest.FixtureRequest) -> None:
    blobs.put("a/b", [b"x"])
    (found,) = blobs.ls("a/")
    simulated = "simulated" in request.node.name
    assert found.modified_at == 0 if simulated else abs(found.modified_at - Io().clock.now()) < 600


@pytest.mark.parametrize("url", ["", "/directory", "ftp://host/x", "s3://", "s3:///prefix"])
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(Invalid, match="blob.url") as refused:
        open_store(Io(), Address(url))
    assert refused.value.remedy


def test_secrets_are_in_no_text() -> None:
    assert KEYS.secret_access_key not in repr(Address("s3://b", credentials=KEYS))


def said_by(server: S3Server, address: Address) -> list[Problem]:
    """What a store answers to each call."""
    store = open_store(Io(), address)
    said = []
    for ask in (
        lambda: store.get("a/b"),
        lambda: store.put("a/b", [b"x"]),
        lambda: store.size("a/b"),
        lambda: list(store.ls("a/")),
        lambda: store.delete("a/b"),
    ):
        try:
            ask()
        except Problem as problem:
            said.append(problem)
    return said


@pytest.mark.parametrize("keys", [Credentials("inn-test-key", "wrong-secret"), Credentials("nobody", "wrong-secret")])
def test_wrong_keys_are_told(s3: S3Server, keys: Credentials) -> None:
    said = said_by(s3, s3.address(new_prefix(s3), keys))
    assert {each.code for each in said} == {"blob.denied"}
    for each in said:
        assert each.remedy and "wrong-secret" not in str(each.as_dict())


def test_a_bucket_that_is_not_there_is_told(s3: S3Server) -> None:
    said = said_by(s3, s3.address("s3://no-such-bucket/p"))
    assert "blob.bucket" in {each.code for each in said}
    assert all(each.remedy for each in said)


def test_an_endpoint_that_does_not_answer_is_asked_again_until_patience_ends(s3: S3Server) -> None:
    clock = SimulatedClock()
    address = replace(s3.address("s3://bucket/p", patience_s=60), endpoint="http://127.0.0.1:1")
    store = open_store(Io(clock=clock), address)
    before = clock.monotonic()
    with pytest.raises(Unavailable, match="blob.unreachable") as away:
        store.get("a/b")
    assert 50 < clock.monotonic() - before <= 60
    assert away.value.remedy


def test_a_store_that_comes_back_in_time_is_no_failure(tmp_path: Path) -> None:
    server = S3Server(tmp_path / "data")
    server.start()
    try:
        address = server.address(new_prefix(server), patience_s=120)
        store = open_store(Io(), address)
        store.put("a/b", [b"kept"])

        class Restarts(SimulatedClock):
            def sleep(self, seconds: float) -> None:
                super().sleep(seconds)
                if server._process is None:
                    server.start()

        server.stop()
        assert open_store(Io(clock=Restarts()), address).get("a/b") == b"kept"
    finally:
        server.stop()


@pytest.mark.parametrize(("fault", "problem"), [(EIO, Failed), (ENOSPC, NoSpace)])
@pytest.mark.parametrize("call", range(1, 8))
def test_a_put_that_fails_leaves_nothing(fault: str, problem: type[Problem], call: int) -> None:
    io, files = simulated_io(call)
    store = open_store(io, Address("file:///store"))
    store.put("a/before", [b"x"])
    files.faults[files.calls + call] = fault
    try:
        store.put("a/new", [b"data"])
    except problem:
        # What was renamed and could not be synced is there and whole; all that fails earlier leaves nothing.
        assert call < 7 or store.get("a/new") == b"data"
    names = [found.name for found in store.ls("a/")]
    assert names in (["a/before"], ["a/before", "a/new"])
    assert all(store.get(name) in (b"x", b"data") for name in names)


@pytest.mark.parametrize("call", range(1, 8))
@pytest.mark.parametrize("seed", range(4))
def test_a_put_cut_short_by_a_power_cut_is_whole_or_absent(seed: int, call: int) -> None:
    io, files = simulated_io(seed)
    store = open_store(io, Address("file:///store"))
    store.put("a/before", [b"x"])
    files.faults[files.calls + call] = CRASH
    done = False
    try:
        store.put("a/new", [b"data" * 1000])
        done = True
    except SimulatedCrash:
        pass
    files.cut_power()
    store = FileBlobs(files.process(), "/store", io.clock)
    found = {each.name: store.get(each.name) for each in store.ls("a/")}
    assert found.pop("a/before") == b"x"
    assert found in ({}, {"a/new": b"data" * 1000})
    assert not done or found
    store.clean(0)
    assert not [path for path in files.paths() if path.endswith(".new")]


@pytest.mark.parametrize(("number", "problem"), [(errno.ESTALE, Unavailable), (errno.EACCES, Failed)])
def test_a_directory_that_refuses_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, problem: type[Problem]
) -> None:
    store = open_store(Io(), Address(f"file://{tmp_path}/store"))
    store.put("a/b", [b"x"])

    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, "refused")

    monkeypatch.setattr(RealFiles, "open", refuse)
    with pytest.raises(problem) as told:
        store.get("a/b")
    assert told.value.remedy


def test_absent_is_no_missing_bucket(s3: S3Server) -> None:
    store = open_store(Io(), s3.address(new_prefix(s3)))
    with pytest.raises(NotFound, match="blob.absent"):
        store.get("a/b")
