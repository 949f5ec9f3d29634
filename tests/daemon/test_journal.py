"""The journal: repetitions are counted, it is bounded, survives restarts, and a damaged file is set aside."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import apsw
import pytest

from innkeeper.daemon import journal as room
from innkeeper.daemon.journal import HOST, Journal, Note
from innkeeper.model.journal import JournalEntry, JournalFilter, Subject
from innkeeper.model.resources import Nic, new_id

ALL = JournalFilter()
VM, OTHER = new_id(), new_id()
CARD = Subject(kind="nic", id=new_id(), name="web-0", vm_id=VM)
STRANGER = Subject(kind="nic", id=new_id(), name="db-0", vm_id=OTHER)


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    opened = Journal(tmp_path / "journal.db")
    yield opened
    opened.close()


def told(journal: Journal, wanted: JournalFilter = ALL) -> list[tuple[str, int]]:
    return [(entry.message, entry.count) for entry in journal.ls(wanted)]


def at(monkeypatch: pytest.MonkeyPatch, moment: datetime) -> None:
    monkeypatch.setattr(room, "now", lambda: moment)


def test_repetitions_are_added_up(journal: Journal) -> None:
    journal.note("GuardDropped", CARD, "arp", "warning", count=3)
    journal.note("GuardDropped", CARD, "mac", "warning")
    journal.note("GuardDropped", CARD, "arp", "warning", count=2)
    journal.note("GuardDropped", STRANGER, "arp", "warning")
    assert told(journal) == [("mac", 1), ("arp", 5), ("arp", 1)]
    arp = journal.ls(JournalFilter(subject="web-0"))[1]
    assert arp.first_at <= arp.last_at
    assert [entry.revision for entry in journal.ls(ALL)] == [2, 3, 4]


def test_after_a_while_it_is_told_anew(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    began = datetime(2026, 1, 1, tzinfo=UTC)
    for seconds in (0, 500, 1_000, 1_700):
        at(monkeypatch, began + timedelta(seconds=seconds))
        journal.note("Told", HOST, "again")
    first, second = journal.ls(ALL)
    assert (first.count, first.first_at, first.last_at) == (3, began, began + timedelta(seconds=1_000))
    assert (second.count, second.first_at) == (1, began + timedelta(seconds=1_700))


def test_a_clock_that_was_set_back_does_not_hide_entries(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    for year in (2030, 2026):
        at(monkeypatch, datetime(year, 1, 1, tzinfo=UTC))
        journal.note("Told", HOST, "again")
    assert told(journal) == [("again", 1), ("again", 1)]


def test_entries_are_chosen(journal: Journal) -> None:
    nic = Nic(name="web-1", vm_id=VM, switch_id=new_id(), number=1, mac="52:54:00:00:00:01")
    journal.note("A", CARD, "info")
    journal.note("B", nic, "warning", "warning")
    journal.note("C", STRANGER, "error", "error")
    assert told(journal, JournalFilter(vm_id=VM)) == [("info", 1), ("warning", 1)]
    assert told(journal, JournalFilter(severity="warning")) == [("warning", 1), ("error", 1)]
    assert told(journal, JournalFilter(subject=nic.id)) == told(journal, JournalFilter(subject="web-1"))
    assert told(journal, JournalFilter(since=datetime.now(UTC) + timedelta(seconds=9))) == []
    assert [entry.message for entry in journal.ls(ALL, last=1)] == ["error"]


def test_it_is_bounded_and_a_loud_subject_keeps_the_others(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "MOST", 8)
    monkeypatch.setattr(room, "MOST_OF_A_SUBJECT", 3)
    journal.note("Quiet", STRANGER, "once")
    for number in range(20):
        journal.note("Loud", CARD, f"message {number}")
    assert told(journal) == [("once", 1), *((f"message {number}", 1) for number in (17, 18, 19))]
    for number in range(20):
        journal.note("Many", Subject(kind="vm", id=str(number), name=str(number)), "up")
    assert len(journal.ls(ALL)) == 8


def test_several_are_one_transaction_and_the_same_as_one_by_one(
    tmp_path: Path, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes = [Note("Told", subject, f"{n % 5}", "warning", n) for n in range(1, 9) for subject in (CARD, STRANGER)]
    commits: list[int] = []
    journal._db.set_commit_hook(lambda: bool(commits.append(1)))  # type: ignore[func-returns-value]
    journal.note_all(notes)
    assert len(commits) == 1
    with closing(Journal(tmp_path / "other.db")) as other:
        other.note_all([])
        for each in notes:
            other.note(each.reason, each.subject, each.message, each.severity, each.count)
        assert told(other) == told(journal) and len(told(journal)) == 10
    monkeypatch.setattr(room, "MOST_OF_A_SUBJECT", 3)
    journal.note_all([Note("Told", subject, "new") for subject in (CARD, STRANGER)])
    assert [text for text, _ in told(journal)] == ["2", "2", "3", "3", "new", "new"], "each subject is bounded"


def test_it_survives_a_restart(tmp_path: Path) -> None:
    for _ in range(2):
        journal = Journal(tmp_path / "journal.db")
        journal.note("Told", HOST, "again")
        journal.close()
    journal = Journal(tmp_path / "journal.db")
    assert told(journal) == [("again", 2)]
    assert journal.revision == 2
    journal.close()


@pytest.mark.parametrize("damage", ["text", "cut", "middle", "later", "schema"])
def test_a_damaged_file_is_set_aside(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "journal.db"
    journal = Journal(path)
    for number in range(300):
        journal.note("Told", HOST, f"{number} " + "x" * 100)
    journal.close()
    spoil(path, damage)
    journal = Journal(path)
    (entry,) = journal.ls(ALL)
    assert (entry.reason, entry.severity, entry.subject) == ("JournalSetAside", "warning", HOST)
    assert str(journal.damaged) in entry.message
    assert journal.damaged.stat().st_size > 0
    journal.note("Told", HOST, "and on")
    assert len(journal.ls(ALL)) == 2
    journal.close()


def spoil(path: Path, damage: str) -> None:
    content = bytearray(path.read_bytes())
    match damage:
        case "text":
            content = bytearray(b"no database at all")
        case "cut":
            del content[len(content) // 2 :]
        case "middle":
            content[4096 * 4 : 4096 * 5] = b"\xff" * 4096
        case "later":  # another format version
            content[60:64] = (99).to_bytes(4)
        case "schema":
            content = content.replace(b"subject_id", b"subject_xx")
    path.write_bytes(content)


def test_a_file_that_breaks_while_in_use_is_set_aside(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    journal = Journal(path)
    journal.note("Told", HOST, "before")
    journal.close()
    journal = Journal(path)
    for use in (lambda: journal.note("Told", HOST, "after"), lambda: journal.ls(ALL)):
        with closing(apsw.Connection(str(path))) as other:  # so that nothing is read from memory
            other.execute("UPDATE entries SET count=7")
            other.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        path.write_bytes(b"x" * path.stat().st_size)
        use()
    assert [entry.reason for entry in journal.ls(ALL)] == ["JournalSetAside"]
    journal.close()


def test_a_follower_sees_what_comes_and_what_is_repeated(journal: Journal) -> None:
    seen = asyncio.run(followed(journal))
    assert [(entry.message, entry.count) for entry in seen] == [("one", 1), ("one", 5), ("two", 1)]


async def followed(journal: Journal) -> list[JournalEntry]:
    seen: list[JournalEntry] = []

    async def follow() -> None:
        async for entry in journal.watch(JournalFilter(vm_id=VM), journal.revision):
            seen.append(entry)
            if len(seen) == 3:
                return

    journal.note("Before", CARD, "not seen")
    following = asyncio.create_task(follow())
    await asyncio.sleep(0)
    journal.note("A", CARD, "one")
    await asyncio.sleep(0)
    journal.note("A", STRANGER, "of another")
    journal.note("A", CARD, "one", count=4)
    await asyncio.sleep(0)
    journal.note("B", CARD, "two")
    await asyncio.wait_for(following, 5)
    return seen


def test_a_slow_follower_misses_nothing(journal: Journal) -> None:
    async def follow() -> list[str]:
        following = journal.watch(JournalFilter(), 0)
        seen = [(await anext(following)).message]
        journal.note("C", CARD, "while it was busy")
        return [*seen, (await anext(following)).message]

    journal.note("A", CARD, "one")
    assert asyncio.run(asyncio.wait_for(follow(), 5)) == ["one", "while it was busy"]


def test_without_its_directory_it_is_kept_in_memory(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "absent" / "journal.db")
    journal.note("Told", HOST, "anyway")
    assert told(journal) == [("anyway", 1)]
    journal.close()
