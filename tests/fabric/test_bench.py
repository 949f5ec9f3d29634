"""The bench gives the same with a helper process, without one, and with one that goes in the middle."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from innkeeper.fabric import packing
from innkeeper.fabric.bench import FEW_PAGES, Bench, Benches, Want
from innkeeper.fabric.codecs import decode
from innkeeper.fabric.layout import BLOCK, PAGE, PAGES_PER_BLOCK, crc32c
from innkeeper.fabric.packing import AREA_BYTES, BAD, BLOCKS, GOOD, SHARED_BYTES, ZERO, Packed
from innkeeper.fabric.policy import Policy
from innkeeper.system.files import File, RealFiles
from innkeeper.system.helpers import Helper, Helpers
from innkeeper.system.process import has_ended
from innkeeper.system.simulation import simulated_io

POLICIES = [Policy(), Policy(compression="zstd", level=3), Policy(compression="off")]
FILE_PAGES = 64


def ready(helpers: Helpers) -> Helper:
    """A helper, as soon as one can work."""
    until = time.monotonic() + 30
    while time.monotonic() < until:
        if (helper := helpers.take()) is not None:
            return helper
        time.sleep(0.01)
    raise AssertionError("no helper came")


@pytest.fixture(scope="module")
def helpers() -> Iterator[Helpers]:
    helpers = Helpers(packing.__name__, SHARED_BYTES, most=2)
    helpers.give_back(ready(helpers))
    yield helpers
    pids = helpers.pids()
    helpers.close()
    assert pids and all(has_ended(pid) for pid in pids)


def content(seed: int) -> bytes:
    """Pages of several kinds: zeros, text, noise."""
    random = Random(seed)
    kinds = [bytes(PAGE), (b"what compresses " * PAGE)[:PAGE]]
    return b"".join(random.choice([*kinds, random.randbytes(PAGE)]) for _ in range(FILE_PAGES))


def real_file(path: Path, data: bytes) -> File:
    path.write_bytes(data)
    return RealFiles().open(str(path))


def wanted(file: File, data: bytes, pages: list[tuple[int, int]], bad: set[int]) -> list[Want]:
    """(at, page) pairs as wants; those at the places ``bad`` with a wrong checksum."""
    return [
        (at, file, page, crc32c(data[page * PAGE : (page + 1) * PAGE]) ^ (at in bad)) for at, page in pages
    ]  # fmt: skip


def outcome(bench: Bench, wants: list[Want], policy: Policy) -> tuple[bytes, list[bytes], list[Packed]]:
    bench.area[:] = bytes(AREA_BYTES)
    verdicts = bench.load(wants)
    digests = bench.digests(BLOCKS)
    packed = bench.pack([(at, digest) for at, digest in enumerate(digests) if digest], policy, hurried=True)
    return verdicts, digests, [each._replace(stored=bytes(each.stored)) for each in packed]


places = st.dictionaries(st.integers(0, BLOCKS * PAGES_PER_BLOCK - 1), st.integers(0, FILE_PAGES - 1), max_size=200)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(pages=places, bad=st.sets(st.integers(0, 511), max_size=5), policy=st.sampled_from(POLICIES), runs=st.booleans())
def test_a_helper_gives_what_is_given_without(
    helpers: Helpers, tmp_path: Path, pages: dict[int, int], bad: set[int], policy: Policy, runs: bool
) -> None:
    data = content(len(pages))
    file = real_file(tmp_path / "log", data)
    chosen = [(at, at % FILE_PAGES) for at in pages] if runs else list(pages.items())
    wants = wanted(file, data, sorted(chosen), bad)
    helper = ready(helpers)
    try:
        bench = Bench(helper)
        found = outcome(bench, wants, policy)
        assert not bench.lost
    finally:
        helpers.give_back(helper)
    assert found == outcome(Bench(None), wants, policy)
    for (at, _, page, _), verdict in zip(wants, found[0], strict=True):
        zeros = not any(data[page * PAGE : (page + 1) * PAGE])
        assert verdict == (BAD if at in bad else ZERO if zeros else GOOD)


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.code)
def test_what_is_packed_reads_back(helpers: Helpers, policy: Policy) -> None:
    blocks = [bytes(BLOCK), Random(1).randbytes(BLOCK), (b"text " * BLOCK)[:BLOCK], Random(2).randbytes(BLOCK)]
    helper = ready(helpers)
    try:
        bench = Bench(helper)
        digests = bench.digests(bench.fill(b"".join(blocks)))
        assert digests[0] == b""
        wanted = list(enumerate(digests))[1:]
        packed = bench.pack(wanted, policy)
        assert [decode(bytes(each.stored), each.codec, BLOCK) for each in packed] == blocks[1:]
        assert [each.crc for each in packed] == [crc32c(bytes(each.stored)) for each in packed]
    finally:
        helpers.give_back(helper)


def test_a_helper_that_is_killed_is_done_without(tmp_path: Path) -> None:
    helpers = Helpers(packing.__name__, SHARED_BYTES, most=2)
    data = content(3)
    file = real_file(tmp_path / "log", data)
    wants = wanted(file, data, [(at, at) for at in range(2 * FEW_PAGES)], set())
    benches = Benches(helpers)
    try:
        helpers.give_back(ready(helpers))
        (pid,) = helpers.pids()
        with benches.bench() as bench:
            bench.load(wants)
            os.kill(pid, signal.SIGKILL)
            assert outcome(bench, wants, Policy()) == outcome(Bench(None), wants, Policy())
            assert bench.lost
        assert has_ended(pid)
        assert pid not in helpers.pids()
        helpers.give_back(ready(helpers))  # another one comes
        assert helpers.pids() != [pid]
    finally:
        helpers.close()


def test_a_helper_ends_with_whom_it_helps_and_when_nobody_needs_it() -> None:
    helpers = Helpers(packing.__name__, SHARED_BYTES, most=1, idle_s=0.0)
    helper = ready(helpers)
    assert helpers.take() is None, "there is but one"
    helpers.tidy()
    assert helpers.pids() == [helper.pid], "it is taken"
    helpers.give_back(helper)
    time.sleep(0.01)
    helpers.tidy()
    assert not helpers.pids()
    assert has_ended(helper.pid)
    left = ready(helpers)
    left._socket.close()  # as the kernel does for a process that was killed
    until = time.monotonic() + 30
    while left._process.poll() is None and time.monotonic() < until:
        time.sleep(0.01)
    assert left._process.returncode == 0
    helpers.give_back(left, lost=True)
    helpers.close()
    assert helpers.take() is None


def test_one_that_cannot_start_is_not_tried_all_the_time() -> None:
    helpers = Helpers("innkeeper.fabric.no_such_program", SHARED_BYTES, most=1)
    assert helpers.take() is None
    (pid,) = helpers.pids()
    until = time.monotonic() + 30
    while helpers.pids() and time.monotonic() < until:
        helpers.tidy()
        time.sleep(0.01)
    assert has_ended(pid)
    assert helpers.take() is None
    assert not helpers.pids(), "it rests"
    helpers.close()


def test_files_of_no_operating_system_are_read_here(helpers: Helpers) -> None:
    io, _ = simulated_io(1)
    file = io.files.open("/log", create=True)
    data = content(5)
    file.pwritev([data], 0)
    helper = ready(helpers)
    try:
        wants = wanted(file, data, [(at, at) for at in range(FILE_PAGES)], {7})
        verdicts = Bench(helper).load(wants)
    finally:
        helpers.give_back(helper)
    assert verdicts[7] == BAD
    assert set(verdicts[:7] + verdicts[8:]) <= {GOOD, ZERO}
