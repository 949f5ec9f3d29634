"""Pools whose files are damaged at random: they give right data or say what is wrong and where, and are repaired as far
as what is left of them allows.

Allowed is the right data, or a problem that names a file. Never: other bytes than were written, another exception, a
hang, a disk that is gone without a word. A check changes nothing; a repair does what the check said it would, and what
it cannot give back it names.
"""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID

import pytest
from hypothesis import given, strategies as st
from pool_mutants import BLOCK, LIMITS, PAGE, POOL, Base, kind_of, machine, make, mutate, read_all

from innkeeper.fabric.examine import Report, examine
from innkeeper.fabric.groups import read_frame
from innkeeper.fabric.layout import crc32c, extend_crc32c
from innkeeper.fabric.logformat import BATCH_MAGIC, HEADER_BYTES, decode_batch, decode_segment_header, seed_for
from innkeeper.fabric.pool import Pool
from innkeeper.model.problems import Corrupt, Problem
from innkeeper.system.files import Io
from innkeeper.system.simulation import SimulatedFiles, simulated_io

PATIENCE_S = 60
SEED = 20_000
DAMAGED = ("pool.", "meta.", "log.", "device.", "fabric.", "group.", "disk.")
"""Beginnings of the codes that damage may have."""


@pytest.fixture(scope="module")
def bases() -> tuple[Base, Base]:
    """A pool that was closed, and one whose process was killed."""
    return make(1, closed=True), make(2, closed=False)


@contextmanager
def in_time(story: str) -> Iterator[None]:
    """What goes on for ever is stopped."""

    def too_long(_number: int, _frame: object) -> None:
        raise AssertionError(f"it hangs: {story}")

    before = signal.signal(signal.SIGALRM, too_long)
    signal.alarm(PATIENCE_S)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


Blocks = dict[str, dict[int, bytes | Problem]]


def wrong_in(base: Base, found: Blocks) -> set[str]:
    """Disks and snapshots that have other bytes than they should."""
    return {
        subject
        for subject, content in base.content.items()
        for block, data in found[subject].items()
        if isinstance(data, bytes) and not _fits(base, subject, block, data, content)
    }


def _fits(base: Base, subject: str, block: int, data: bytes, content: bytes) -> bool:
    expected = content[block * BLOCK : (block + 1) * BLOCK]
    if data == expected:
        return True
    older = base.older.get(subject, {})
    return len(data) == len(expected) and all(
        data[at : at + PAGE] == expected[at : at + PAGE]
        or data[at : at + PAGE] in older.get((block * BLOCK + at) // PAGE, ())
        for at in range(0, len(data), PAGE)
    )


def missing_in(found: Blocks) -> set[str]:
    return {subject for subject, blocks in found.items() if not blocks}


def refused_in(found: Blocks) -> list[Problem]:
    return [each for blocks in found.values() for each in blocks.values() if isinstance(each, Problem)]


def told_well(problem: Problem, story: str) -> None:
    """A problem of damage names a file of the pool."""
    assert problem.code.startswith(DAMAGED), f"{problem}\n{story}"
    assert POOL in str(problem) or "/slow" in str(problem) or "disk" in problem.code, f"{problem}\n{story}"


def open_and_read(io: Io, base: Base, story: str, *, endless: bool) -> str:
    """What becomes of it: ``refused``, ``read-only``, ``errors``, ``right``, or ``cut`` where the log's end is gone
    (``endless``) and nothing could tell."""
    try:
        pool = Pool.open(io, POOL, limits=LIMITS, background=False)
    except Problem as problem:
        told_well(problem, story)
        return "refused"
    try:
        found = read_all(pool, base.content)
        for problem in refused_in(found):
            told_well(problem, story)
        if endless and wrong_in(base, found):
            return "cut"
        assert not wrong_in(base, found), f"wrong bytes in {wrong_in(base, found)}\n{story}"
        if pool.read_only:
            return "read-only"
        assert not missing_in(found), f"gone without a word: {missing_in(found)}\n{story}"
        damaged = bool(refused_in(found))
        if damaged:
            assert pool.check()["problems"] or any(layer.damaged for layer in pool.catalog.layers), story
        return "errors" if damaged else "right"
    finally:
        pool.close()


def opened_mutants(bases: tuple[Base, Base], first: int, count: int) -> None:
    outcomes: Counter[str] = Counter()
    for seed in range(first, first + count):
        base = bases[seed % 2]
        files, story = mutate(base, seed)
        story = f"seed {seed}: {story}"
        with in_time(story):
            endless = base.has_lost_its_end(files)
            outcomes[open_and_read(machine(files, seed)[0], base, story, endless=endless)] += 1
    said = ", ".join(f"{count} {what}" for what, count in sorted(outcomes.items()))
    print(f"\nfuzzed pools: seeds {first} to {first + count - 1}, {count} mutants opened and read: {said};")
    print(f"0 with wrong bytes or a silent loss: below {3 / count:.4%} of such damage at 95 %")
    assert outcomes["right"] and outcomes["refused"] and outcomes["errors"]


# -- check and repair --------------------------------------------------------------------------------------------------


def contents(files: SimulatedFiles) -> dict[str, bytes]:
    return {path: files.peek(path) for path in files.paths() if not path.endswith("lock")}


def examined(io: Io, *, repair: bool) -> Report | Problem:
    try:
        return examine(io, POOL, repair=repair, limits=LIMITS)
    except Problem as problem:
        return problem


def check_and_repair(base: Base, seed: int, story: str) -> str:
    """What becomes of it: ``no repair``, ``right``, or ``told``."""
    mutant, _ = mutate(base, seed)
    io, files = machine(mutant, seed)
    before = contents(files)
    report = examined(io, repair=False)
    assert contents(files) == before, f"a check has changed files\n{story}"
    repaired = examined(io, repair=True)
    if isinstance(report, Problem) or isinstance(repaired, Problem):
        assert isinstance(report, Problem) and isinstance(repaired, Problem), f"{report}\n{repaired}\n{story}"
        assert report.code == repaired.code, story
        told_well(report, story)
        return "no repair"
    assert [step.what for step in report.steps] == [step.what for step in repaired.steps], story
    kept = {name for step in repaired.steps for name in step.aside}
    assert kept <= set(files.paths()), story
    found = read_again(io, base, story)
    told = " ".join(step.what for step in repaired.steps)
    lost = wrong_in(base, found) | missing_in(found)
    if lost and not base.has_lost_its_end(mutant):
        assert "is rebuilt" in told or "the log ends" in told or "earlier instant" in told, f"{lost}\n{told}\n{story}"
    damaged = {each.id for each in repaired.after if each.state != "whole"}
    for subject, blocks in found.items():
        refused = [each for each in blocks.values() if isinstance(each, Problem)]
        assert not refused or subject in damaged, f"{subject}: {refused[:2]}, damaged: {damaged}\n{story}"
    if report.sound and not base.has_lost_its_end(mutant):
        assert not lost and not damaged, story
    return "told" if lost or damaged else "right"


def read_again(io: Io, base: Base, story: str) -> Blocks:
    """All that a repaired pool has; it can be used."""
    pool = Pool.open(io, POOL, limits=LIMITS, background=False)
    try:
        assert pool.read_only is None, f"{pool.read_only}\n{story}"
        found = read_all(pool, base.content)
        pool.storage_create("00000000-0000-4000-8000-0000000000ff")
    finally:
        pool.close()
    return found


def repaired_mutants(bases: tuple[Base, Base], first: int, count: int) -> None:
    outcomes: Counter[str] = Counter()
    for seed in range(first, first + count):
        base = bases[seed % 2]
        story = f"seed {seed}: {mutate(base, seed)[1]}"
        with in_time(story):
            outcomes[check_and_repair(base, seed, story)] += 1
    said = ", ".join(f"{count} {what}" for what, count in sorted(outcomes.items()))
    print(f"\nfuzzed pools: seeds {first} to {first + count - 1}, {count} mutants checked and repaired: {said};")
    print(f"0 losses untold: below {3 / count:.3%} of such damage at 95 %")
    assert outcomes["right"] and outcomes["told"]


def test_mutants_are_read_rightly_or_refused(bases: tuple[Base, Base]) -> None:
    opened_mutants(bases, 0, 1200)


def test_mutants_are_repaired_as_the_check_says(bases: tuple[Base, Base]) -> None:
    repaired_mutants(bases, 0, 120)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(4))
def test_many_mutants_are_read_rightly_or_refused(bases: tuple[Base, Base], part: int) -> None:
    opened_mutants(bases, SEED + part * 5_000, 5_000)


@pytest.mark.slow
def test_many_mutants_are_repaired_as_the_check_says(bases: tuple[Base, Base]) -> None:
    repaired_mutants(bases, SEED, 2_000)


def test_a_sound_pool_is_sound(bases: tuple[Base, Base]) -> None:
    for base in bases:
        io, files = machine(base.files)
        before = contents(files)
        report = examine(io, POOL, limits=LIMITS)
        assert report.sound
        assert {each.id for each in report.before} == set(base.content)
        assert {each.state for each in report.before} == {"whole"}
        assert contents(files) == before
    assert {kind_of(path) for path in bases[1].files} >= {"meta.db", "meta.db-wal", "seg", "grp", "device.json"}


# -- decoders ----------------------------------------------------------------------------------------------------------

SEEDLING = seed_for(UUID(int=1), 7)


@given(st.binary(max_size=PAGE - HEADER_BYTES), st.integers(0, 65535), st.integers(0, 2000), st.integers(0, 4200))
def test_a_batch_with_any_body_is_decoded_or_not(body: bytes, records: int, pages: int, used: int) -> None:
    """Also one whose checksum is right."""
    head = BATCH_MAGIC + b"".join(
        part.to_bytes(size, "little")
        for part, size in ((1, 2), (records, 2), (pages, 4), (used, 4), (1, 16), (7, 8), (9, 8), (8, 8))
    )
    counted = body.ljust(PAGE, b"\0")[: max(0, used - HEADER_BYTES)]
    crc = extend_crc32c(extend_crc32c(SEEDLING, head), counted)
    page = (head + crc.to_bytes(4, "little") + body).ljust(PAGE, b"\0")[:PAGE]
    decode_batch(page, SEEDLING, 7)
    decode_batch(page[:100] + body, SEEDLING, 7)


@given(st.binary(max_size=PAGE))
def test_any_page_is_a_header_or_none(page: bytes) -> None:
    for start in (b"", b"INNLOGSG", BATCH_MAGIC):
        whole = (start + page).ljust(PAGE, b"\0")[:PAGE]
        pool_id = UUID(int=1)
        assert decode_segment_header(whole, pool_id, "x") is None
        assert decode_batch(whole, SEEDLING, 7) is None


@given(st.binary(min_size=60, max_size=PAGE), st.booleans())
def test_any_frame_is_read_or_refused(data: bytes, summed: bool) -> None:
    """Also one whose checksum is right."""
    page = (b"INNFRAME" + data).ljust(PAGE, b"\0")[:PAGE]
    if summed:
        length = min(PAGE, 68 + int.from_bytes(page[36:40], "little") * 16)
        body = page[:64] + page[68:length]
        page = page[:64] + crc32c(body).to_bytes(4, "little") + page[68:]
    io, files = simulated_io()
    io.files.open("/x", create=True)
    files.damage("/x", 0, page)
    try:
        read_frame(io.files.open("/x"), 0, 1, 0)
    except Corrupt as refused:
        assert "/x" in refused.detail
