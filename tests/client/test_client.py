"""The typed client against the API on a real socket."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from running_api import RunningApi

from innkeeper.client.inn import InnClient
from innkeeper.model import requests as ask
from innkeeper.model.problems import Conflict, Failed, Invalid, NoSpace, NotFound, Unavailable
from innkeeper.model.resources import Disk, Switch, Task, TaskState, VmState
from innkeeper.model.views import Plan


def made(client: InnClient, name: str = "web") -> None:
    task = client.vms.create(ask.VmCreate(name=name))
    assert isinstance(task, Task)
    client.wait(task)


def test_a_task_is_followed_to_its_end(served: RunningApi) -> None:
    seen: list[Task] = []
    task = served.client.vms.create(ask.VmCreate(name="web", memory_bytes=1 << 29))
    assert isinstance(task, Task)
    ended = served.client.wait(task, seen.append)
    assert ended.state == TaskState.SUCCEEDED
    assert seen[-1] == ended
    assert [state.progress for state in seen] == sorted(state.progress for state in seen)
    assert served.client.vms.show("web").status.state == VmState.RUNNING


def test_a_failed_task_raises_its_own_problem(served: RunningApi) -> None:
    served.house.failing["vm.create"] = NoSpace("pool.full", "the pool is full", cause="c", remedy="add space")
    task = served.client.vms.create(ask.VmCreate(name="web"))
    assert isinstance(task, Task)
    with pytest.raises(NoSpace) as problem:
        served.client.wait(task)
    assert (problem.value.code, problem.value.cause, problem.value.remedy) == ("pool.full", "c", "add space")


def test_a_cancelled_task_says_so(served: RunningApi) -> None:
    gate = served.house.held["vm.create"] = asyncio.Event()
    task = served.client.vms.create(ask.VmCreate(name="web"))
    assert isinstance(task, Task)
    served.client.tasks.cancel(task.name)
    with pytest.raises(Failed) as problem:
        served.client.wait(task)
    assert problem.value.code == "task.cancelled"
    assert not gate.is_set()


def test_problems_come_back_as_the_class_they_were(served: RunningApi) -> None:
    with pytest.raises(NotFound) as missing:
        served.client.vms.show("web")
    assert missing.value.code == "vm.not_found"
    served.client.switches.create(ask.SwitchCreate(name="lan"))
    with pytest.raises(Conflict):
        served.client.switches.create(ask.SwitchCreate(name="lan"))
    served.client.disks.create(ask.DiskCreate(name="d", size_bytes=1 << 20))
    with pytest.raises(Invalid) as shrunk:
        served.client.disks.resize("d", ask.DiskResize(size_bytes=4096))
    assert shrunk.value.remedy


def test_a_dry_run_gives_a_plan(served: RunningApi) -> None:
    assert isinstance(served.client.switches.create(ask.SwitchCreate(name="lan"), dry_run=True), Plan)
    assert served.client.switches.ls() == []
    lan = served.client.switches.create(ask.SwitchCreate(name="lan"))
    assert isinstance(lan, Switch)
    plan = served.client.switches.set("lan", ask.SwitchSet(dhcp=False), dry_run=True)
    assert isinstance(plan, Plan) and "+new" in plan.diff


def test_long_lists_are_read_page_by_page(served: RunningApi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("innkeeper.client.base._PAGE", 3)
    for number in range(8):
        served.client.disks.create(ask.DiskCreate(name=f"d{number}", size_bytes=4096, labels={"n": str(number)}))
    assert [disk.name for disk in served.client.disks.ls()] == [f"d{number}" for number in range(8)]
    assert [disk.name for disk in served.client.disks.ls("n=5")] == ["d5"]


def test_a_stale_revision_is_refused(served: RunningApi) -> None:
    disk = served.client.disks.create(ask.DiskCreate(name="d", size_bytes=4096))
    assert isinstance(disk, Disk)
    served.client.disks.set("d", ask.ResourceSet(labels={"a": "b"}), revision=disk.revision)
    with pytest.raises(Conflict) as stale:
        served.client.disks.set("d", ask.ResourceSet(labels={}), revision=disk.revision)
    assert stale.value.code == "state.stale"


def test_output_of_a_guest_is_bytes(served: RunningApi) -> None:
    made(served.client)
    result = served.client.vms.exec("web", ask.VmExec(argv=["cat"], stdin=b"\x00\xff"))
    assert (result.exit_code, result.stdout, result.stderr) == (0, b"cat\n\x00\xff", b"\xff\n")


def test_ejecting_is_not_leaving_alone(served: RunningApi) -> None:
    made(served.client)
    served.client.wait(served.client.images.import_(ask.ImageImport(name="iso", path="/x", image_kind="iso")))  # type: ignore[arg-type]
    assert served.client.vms.set("web", ask.VmSet(iso="iso")).spec.iso_image_id
    assert served.client.vms.set("web", ask.VmSet(cpus=2)).spec.iso_image_id
    assert served.client.vms.set("web", ask.VmSet(iso=None)).spec.iso_image_id is None


def test_every_change_is_an_event(served: RunningApi) -> None:
    heard: list[str] = []
    listener = InnClient(served.socket)

    def listen() -> None:
        for event in listener.events(since=0):
            heard.append(f"{event.action} {event.kind} {event.name}")
            if len(heard) == 3:
                return

    thread = threading.Thread(target=listen)
    thread.start()
    served.client.switches.create(ask.SwitchCreate(name="lan"))
    thread.join(timeout=10)
    listener.close()
    assert heard == ["created pool default", "created storage default", "created switch lan"]


def test_waiting_for_a_guest_that_is_never_ready_names_its_state(served: RunningApi) -> None:
    task = served.client.vms.create(ask.VmCreate(name="web", start=False))
    assert isinstance(task, Task)
    served.client.wait(task)
    with pytest.raises(Failed) as late:
        served.client.wait_ready("web", timeout_s=0.1)
    assert late.value.code == "vm.wait_timeout"
    assert "stopped" in str(late.value.cause)


def test_a_daemon_that_is_absent_or_refuses_is_named() -> None:
    with TemporaryDirectory(prefix="inn-client-") as folder:
        socket = Path(folder) / "api.sock"
        for present in (False, True):
            if present:
                socket.touch()
            with InnClient(socket) as client, pytest.raises(Unavailable) as absent:
                client.vms.ls()
            assert absent.value.code == "daemon.unreachable"
            assert "inn up" in str(absent.value.remedy)
