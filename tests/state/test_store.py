"""The store: unique names, compare-and-swap, ordered watch, survival of a crash."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from innkeeper.model.problems import Conflict, Corrupt, NoSpace, NotFound
from innkeeper.model.resources import Disk, Storage, Vm, new_id
from innkeeper.state.store import Store


@pytest.fixture
def store(tmp_path: Path):
    opened = Store(tmp_path / "state.db")
    yield opened
    opened.close()


def test_a_document_is_found_by_id_and_by_name(store: Store) -> None:
    web = store.create(Vm(name="web"))
    assert store.get(Vm, "web") == store.get(Vm, web.id) == web
    assert web.revision == 1


def test_a_full_medium_refuses_and_changes_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path / "state.db")
    web = store.create(Vm(name="web"))
    store._db.execute("PRAGMA max_page_count=1")

    def create_many() -> None:
        for number in range(1000):
            store.create(Vm(name=f"vm{number}", labels={"long": "x" * 4000}))

    with pytest.raises(NoSpace) as refused:
        create_many()
    made = len(store.ls(Vm)) - 1
    assert refused.value.code == "state.no_space"
    assert str(tmp_path) in (refused.value.remedy or "")
    assert store.revision == 1 + made
    web.labels = {"long": "y" * 9000}
    with pytest.raises(NoSpace):
        store.update(web)
    assert store.get(Vm, "web").labels == {}
    store._db.execute("PRAGMA max_page_count=100000")
    assert store.update(web).revision == 2 + made, "with room again it goes on"
    store.close()


def test_a_document_of_a_later_version_is_told(store: Store) -> None:
    made = store.create(Vm(name="web"))
    store._db.execute("UPDATE documents SET body=json_insert(body, '$.wings', 2)")
    for read in (lambda: store.get(Vm, "web"), lambda: store.ls(Vm), lambda: store.delete("vm", made.id)):
        with pytest.raises(Corrupt, match="wings") as refused:
            read()
        assert refused.value.code == "state.document"


def test_names_are_unique_in_their_kind_only(store: Store) -> None:
    store.create(Vm(name="web"))
    store.create(Storage(name="web"))
    with pytest.raises(Conflict) as refused:
        store.create(Vm(name="web"))
    assert refused.value.code == "vm.name_taken"
    other = store.create(Vm(name="db"))
    other.name = "web"
    with pytest.raises(Conflict) as refused:
        store.update(other)
    assert refused.value.code == "vm.name_taken"
    assert store.get(Vm, other.id).name == "db"


def test_an_id_is_created_once(store: Store) -> None:
    web = store.create(Vm(name="web"))
    with pytest.raises(Conflict) as refused:
        store.create(web.model_copy(update={"name": "web2"}))
    assert refused.value.code == "vm.exists"


def test_update_needs_the_latest_revision(store: Store) -> None:
    first = store.create(Vm(name="web"))
    mine, theirs = store.get(Vm, "web"), store.get(Vm, "web")
    mine.spec.cpus = 2
    store.update(mine)
    theirs.spec.cpus = 3
    with pytest.raises(Conflict) as refused:
        store.update(theirs)
    assert refused.value.code == "state.stale"
    assert store.get(Vm, first.id).spec.cpus == 2


def test_update_of_a_deleted_document_says_so(store: Store) -> None:
    web = store.create(Vm(name="web"))
    store.delete("vm", web.id)
    store.delete("vm", web.id)
    with pytest.raises(NotFound) as refused:
        store.update(web)
    assert refused.value.code == "vm.not_found"


def test_find_by_field(store: Store) -> None:
    vm_id, storage_id = new_id(), new_id()
    store.create(Disk(name="a", size_bytes=512, storage_id=storage_id, vm_id=vm_id))
    store.create(Disk(name="b", size_bytes=512, storage_id=storage_id))
    assert [disk.name for disk in store.find(Disk, vm_id=vm_id)] == ["a"]


def test_documents_outlive_the_process(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    store = Store(path)
    store.create(Vm(name="web", labels={"tier": "front"}))
    # No close: what a crash leaves.
    again = Store(path)
    assert again.get(Vm, "web").labels == {"tier": "front"}
    assert again.revision == 1
    again.close()
    store.close()


def test_a_foreign_or_newer_file_is_refused(tmp_path: Path) -> None:
    foreign = tmp_path / "foreign.db"
    foreign.write_bytes(b"not a database at all" * 500)
    with pytest.raises(Corrupt) as refused:
        Store(foreign)
    assert refused.value.code == "state.corrupt"
    newer = tmp_path / "newer.db"
    store = Store(newer)
    store._db.execute("UPDATE meta SET value=99 WHERE key='format'")
    store.close()
    with pytest.raises(Corrupt) as refused:
        Store(newer)
    assert refused.value.code == "state.format"


def test_a_watcher_sees_every_change_in_order(store: Store) -> None:
    async def scenario() -> list[tuple[int, str, str]]:
        seen: list[tuple[int, str, str]] = []

        async def watcher() -> None:
            async for revision, action, resource in store.watch(0, ["vm"]):
                seen.append((revision, action, resource.name))
                if action == "deleted":
                    return

        following = asyncio.create_task(watcher())
        web = store.create(Vm(name="web"))
        store.create(Storage(name="other"))
        await asyncio.sleep(0)
        web.labels["a"] = "b"
        web = store.update(web)
        await asyncio.sleep(0)
        store.delete("vm", web.id)
        await asyncio.wait_for(following, 5)
        return seen

    assert asyncio.run(scenario()) == [(1, "created", "web"), (3, "updated", "web"), (4, "deleted", "web")]


def test_a_watcher_from_before_the_memory_must_list_anew(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    first = Store(path)
    first.create(Vm(name="web"))
    first.close()
    again = Store(path)

    async def scenario() -> None:
        async for _change in again.watch(0):
            raise AssertionError("a change was delivered that is not kept")

    with pytest.raises(Conflict) as refused:
        asyncio.run(scenario())
    assert refused.value.code == "state.compacted"
    again.close()


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(["create", "rename", "delete", "touch"]), st.integers(0, 4), st.integers(0, 4)))
)
def test_the_store_agrees_with_a_dictionary(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int, int]]
) -> None:
    store = Store(tmp_path_factory.mktemp("store") / "state.db")
    model: dict[str, str] = {}
    ids = [new_id() for _ in range(5)]
    for action, which, other in steps:
        identity, name = ids[which], f"n{other}"
        name_taken = name in model.values() and model.get(identity) != name
        try:
            if action == "create":
                store.create(Vm(id=identity, name=name))
                assert identity not in model and name not in model.values()
                model[identity] = name
            elif action == "delete":
                store.delete("vm", identity)
                model.pop(identity, None)
            else:
                found = store.get(Vm, identity)
                found.name = name if action == "rename" else found.name
                store.update(found)
                assert action == "touch" or not name_taken
                model[identity] = found.name
        except Conflict:
            assert name in model.values() or identity in model
        except NotFound:
            assert identity not in model
    assert {vm.id: vm.name for vm in store.ls(Vm)} == model
    store.close()
