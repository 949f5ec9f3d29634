"""The route table, the Protocols and the client say the same."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
from fake_house import FakeHouse

from innkeeper.api import services
from innkeeper.api.app import create_app
from innkeeper.api.routes import CAPTURES, METRICS, NOUNS, ROUTES, STREAMS
from innkeeper.client import nouns


def operations(protocol: type) -> set[str]:
    return {name for name, value in vars(protocol).items() if inspect.isfunction(value) and not name.startswith("_")}


def test_every_operation_has_a_route() -> None:
    declared = {f"{noun.attribute}.{name}" for noun in NOUNS for name in operations(noun.protocol)}
    assert declared | {"house.events"} == {route.name for route in ROUTES} | set(STREAMS) | set(METRICS) | set(CAPTURES)


def test_no_two_routes_collide() -> None:
    assert len({(route.method, route.path) for route in ROUTES}) == len(ROUTES)


def test_every_noun_of_the_house_is_served() -> None:
    properties = {name for name, value in vars(services.House).items() if isinstance(value, property)}
    assert properties == {noun.attribute for noun in NOUNS}


CLIENTS: dict[str, Any] = {
    "vms": nouns.Vms,
    "checkpoints": nouns.Checkpoints,
    "images": nouns.Images,
    "disks": nouns.Disks,
    "storages": nouns.Storages,
    "qos": nouns.QosPolicies,
    "pools": nouns.Pools,
    "switches": nouns.Switches,
    "nics": nouns.Nics,
    "acls": nouns.Acls,
    "repositories": nouns.Repositories,
    "backups": nouns.Backups,
    "tasks": nouns.Tasks,
    "journal": nouns.Journal,
    "host": nouns.Host,
    "firewall": nouns.Firewall,
}


@pytest.mark.parametrize("noun", NOUNS, ids=lambda noun: noun.attribute)
def test_the_client_has_every_operation(noun: Any) -> None:
    missing = {name for name in operations(noun.protocol) if not hasattr(CLIENTS[noun.attribute], name)}
    assert not missing


def test_openapi_names_every_operation_and_its_problems() -> None:
    document = create_app(FakeHouse()).openapi()
    named = {operation["operationId"] for path in document["paths"].values() for operation in path.values()}
    assert named == {route.name for route in ROUTES} | set(STREAMS) | set(METRICS) | set(CAPTURES)
    assert "ProblemBody" in document["components"]["schemas"]
    for path in document["paths"].values():
        for operation in path.values():
            assert "application/problem+json" in operation["responses"]["default"]["content"]


def test_long_work_is_answered_with_202() -> None:
    document = create_app(FakeHouse()).openapi()
    create = document["paths"]["/v1/vms"]["post"]["responses"]
    assert create["202"]["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/Task"}
    assert create["200"]["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/Plan"}


def test_a_change_is_answered_with_what_it_made_or_would_make() -> None:
    change = create_app(FakeHouse()).openapi()["paths"]["/v1/switches/{ref}"]["patch"]["responses"]
    kinds = change["200"]["content"]["application/json"]["schema"]["anyOf"]
    assert [kind["$ref"].rpartition("/")[2] for kind in kinds] == ["Switch", "Plan"]
