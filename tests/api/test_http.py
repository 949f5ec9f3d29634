"""What HTTP sees: statuses, headers, problems, pages, idempotency, events."""

from __future__ import annotations

import asyncio
import json
import threading
from typing import Any

import httpx2
import pytest
from running_api import RunningApi

from innkeeper.model import requests as ask
from innkeeper.model.capturing import CaptureStart
from innkeeper.model.problems import NoSpace, Problem, Unavailable


@pytest.fixture
def http(served: RunningApi) -> Any:
    with httpx2.Client(transport=httpx2.HTTPTransport(uds=str(served.socket)), base_url="http://inn") as client:
        yield client


def test_a_task_is_accepted_with_its_location(http: Any) -> None:
    answer = http.post("/v1/vms", json={"name": "web"})
    assert answer.status_code == 202
    assert answer.headers["location"] == f"/v1/tasks/{answer.json()['id']}"
    assert answer.json()["task_kind"] == "vm.create"


def test_a_dry_run_is_a_plan_and_changes_nothing(http: Any) -> None:
    answer = http.post("/v1/vms?dry_run=true", json={"name": "web"})
    assert (answer.status_code, answer.json()["summary"]) == (200, "would create web")
    assert http.get("/v1/vms").json() == {"items": [], "next": None}


def test_a_new_resource_is_201_with_location_and_etag(http: Any) -> None:
    answer = http.post("/v1/switches", json={"name": "lan"})
    assert answer.status_code == 201
    assert answer.headers["location"] == f"/v1/switches/{answer.json()['id']}"
    assert answer.headers["etag"] == f'"{answer.json()["revision"]}"'


def test_a_stale_etag_is_refused_with_412(http: Any) -> None:
    etag = http.post("/v1/disks", json={"name": "d", "size_bytes": 1 << 20}).headers["etag"]
    assert http.patch("/v1/disks/d", json={"labels": {"a": "b"}}, headers={"If-Match": etag}).status_code == 200
    late = http.patch("/v1/disks/d", json={"labels": {}}, headers={"If-Match": etag})
    assert (late.status_code, late.json()["code"]) == (412, "state.stale")
    assert late.headers["content-type"] == "application/problem+json"
    assert http.patch("/v1/disks/d", json={}, headers={"If-Match": "nonsense"}).json()["code"] == "request.if_match"


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({"name": "web", "cpus": 0}, "cpus"),
        ({"name": "1web"}, "name"),
        ({"name": "web", "nics": [{"switch": "lan", "mac": "x"}]}, "nics.0.mac"),
        ({"name": "web", "colour": "red"}, "colour"),
        ({"name": "web", "secure_boot": True}, "secure_boot"),
        ({"name": "web", "disk_bytes": 513}, "disk_bytes"),
        ({}, "name"),
    ],
)
def test_an_invalid_request_names_the_field(http: Any, body: dict[str, Any], named: str) -> None:
    answer = http.post("/v1/vms", json=body)
    assert answer.status_code == 422
    problem = answer.json()
    assert problem["code"] == "request.invalid"
    assert named in problem["detail"]
    assert problem["remedy"]


def test_broken_json_is_a_problem(http: Any) -> None:
    answer = http.post("/v1/vms", content=b'{"name": ', headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()["code"]) == (422, "request.invalid")


def test_unknown_things_are_404(http: Any) -> None:
    assert http.get("/v1/vms/web").json()["code"] == "vm.not_found"
    assert http.get("/v1/vms/web").status_code == 404
    assert http.get("/v1/tasks/none/events").status_code == 404
    assert http.get("/v1/nonsense").json()["code"] == "route.not_found"
    assert http.put("/v1/vms").status_code == 405


def test_a_name_that_is_taken_is_409(http: Any) -> None:
    http.post("/v1/switches", json={"name": "lan"})
    again = http.post("/v1/switches", json={"name": "lan"})
    assert (again.status_code, again.json()["kind"]) == (409, "Conflict")


@pytest.mark.parametrize(
    ("problem", "status"),
    [(NoSpace("pool.full", "the pool is full"), 507), (Unavailable("fabric.unreachable", "it is away"), 503)],
)
def test_each_kind_of_problem_has_its_status(served: RunningApi, http: Any, problem: Problem, status: int) -> None:
    served.house.broken["storages.create"] = problem
    answer = http.post("/v1/storages", json={"name": "fast"})
    assert (answer.status_code, answer.json()["code"]) == (status, problem.code)


def test_a_defect_is_a_500_that_tells_no_internals(served: RunningApi, http: Any) -> None:
    served.house.broken["storages.create"] = ZeroDivisionError("secret")
    answer = http.post("/v1/storages", json={"name": "fast"})
    assert (answer.status_code, answer.json()["code"]) == (500, "internal.unexpected")
    assert "secret" not in answer.text


def test_an_image_name_may_hold_a_slash(http: Any, served: RunningApi) -> None:
    task = http.post("/v1/images/build", json={"name": "debian/12"}).json()
    for _ in served.client.tasks.watch(task["id"]):
        pass
    assert http.get("/v1/images/debian/12").json()["name"] == "debian/12"
    assert http.get("/v1/images/debian%2F12").json()["name"] == "debian/12"
    assert http.delete("/v1/images/debian/12").status_code == 200


def test_pages_follow_each_other(http: Any) -> None:
    for number in range(5):
        http.post("/v1/disks", json={"name": f"d{number}", "size_bytes": 4096, "labels": {"odd": str(number % 2)}})
    names, cursor = [], ""
    while cursor is not None:
        page = http.get("/v1/disks", params={"limit": 2, **({"cursor": cursor} if cursor else {})}).json()
        names += [item["name"] for item in page["items"]]
        cursor = page["next"]
    assert names == ["d0", "d1", "d2", "d3", "d4"]
    odd = http.get("/v1/disks", params={"label": "odd=1"}).json()["items"]
    assert [item["name"] for item in odd] == ["d1", "d3"]
    assert http.get("/v1/disks", params={"cursor": "!"}).json()["code"] == "request.cursor"


def test_a_repeated_post_with_one_key_is_done_once(http: Any) -> None:
    headers = {"Idempotency-Key": "k1"}
    first = http.post("/v1/disks", json={"name": "d", "size_bytes": 4096}, headers=headers)
    second = http.post("/v1/disks", json={"name": "d", "size_bytes": 4096}, headers=headers)
    assert first.status_code == second.status_code == 201
    assert first.json() == second.json()
    other = http.post("/v1/disks", json={"name": "e", "size_bytes": 4096}, headers=headers)
    assert other.json()["code"] == "request.key_reused"


def test_a_failed_request_does_not_use_its_key_up(http: Any) -> None:
    headers = {"Idempotency-Key": "k2"}
    body = {"vm": "web"}
    http.post("/v1/disks", json={"name": "d", "size_bytes": 4096})
    assert http.post("/v1/disks/d/attach", json=body, headers=headers).status_code == 404
    assert http.post("/v1/disks/d/attach", json=body, headers=headers).status_code == 404


def test_an_export_is_for_the_uid_that_asks(http: Any, served: RunningApi) -> None:
    http.post("/v1/disks", json={"name": "d", "size_bytes": 4096})
    opened = http.post("/v1/disks/d/exports").json()
    (request,) = served.house.disks.exports.values()
    assert request.uid is not None
    assert http.delete(f"/v1/disks/d/exports/{opened['attachment_id']}").status_code == 200


def test_a_capture_is_closed_when_it_ends_and_when_its_caller_goes(served: RunningApi) -> None:
    served.client.switches.create(ask.SwitchCreate(name="lan"))
    task = served.client.vms.create(ask.VmCreate(name="web", nics=[ask.VmNic(switch="lan")]))
    assert list(served.client.tasks.watch(task.id))
    assert len(b"".join(served.client.nics.capture("web-0", CaptureStart()))) == 24 + 16 + 17
    ended = served.house.nics.captured.closed
    endless = served.client.nics.capture("web-0", CaptureStart(filter="endless"))
    assert next(endless)
    going = served.house.nics.captured.closed
    assert (ended.is_set(), going.is_set()) == (True, False)
    endless.close()
    asyncio.run_coroutine_threadsafe(going.wait(), served.loop).result(timeout=20)


def test_the_socket_is_for_root_and_its_group(served: RunningApi) -> None:
    assert served.socket.stat().st_mode & 0o777 == 0o660


def test_events_follow_the_changes(http: Any, served: RunningApi) -> None:
    seen: list[Any] = []

    def listen() -> None:
        with http.stream("GET", "/v1/events", params={"since": 0}) as answer:
            assert answer.headers["content-type"].startswith("text/event-stream")
            for line in answer.iter_lines():
                if line.startswith("data:"):
                    seen.append(json.loads(line[5:]))
                if len(seen) >= 3:
                    return

    listener = threading.Thread(target=listen)
    listener.start()
    with httpx2.Client(transport=httpx2.HTTPTransport(uds=str(served.socket)), base_url="http://inn") as other:
        other.post("/v1/disks", json={"name": "d", "size_bytes": 4096})
    listener.join(timeout=10)
    assert [(event["action"], event["kind"], event["name"]) for event in seen] == [
        ("created", "pool", "default"),
        ("created", "storage", "default"),
        ("created", "disk", "d"),
    ]


def test_a_task_is_watched_to_its_end(http: Any) -> None:
    task = http.post("/v1/vms", json={"name": "web"}).json()
    with http.stream("GET", f"/v1/tasks/{task['id']}/events") as answer:
        states = [json.loads(line[5:])["state"] for line in answer.iter_lines() if line.startswith("data:")]
    assert states[-1] == "succeeded"
