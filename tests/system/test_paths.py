"""Names that an inn has in the kernel: short enough, its own, and never another inn's; its identity on disk."""

from __future__ import annotations

import json
import re
import string
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from innkeeper.model.problems import Corrupt, Problem, Unavailable
from innkeeper.system.paths import VM_UIDS, Paths

LONGEST_DEVICE_NAME = 15
LARGEST_NUMBER = 36**6 - 1
"""Six characters in base 36 are what remains of a device's name; an inn gives numbers of at most five."""

INN_IDS = st.text(string.digits + string.ascii_lowercase, min_size=4, max_size=4)
NUMBERS = st.integers(min_value=0, max_value=LARGEST_NUMBER)


def inn(inn_id: str, uuid: str = "b7e1", state: str = "/srv/inn") -> Paths:
    return Paths(Path(state), inn_id, uuid)


@given(INN_IDS, NUMBERS)
def test_devices_carry_the_inns_id_within_15_characters(inn_id: str, number: int) -> None:
    for name, prefix in ((inn(inn_id).bridge(number), "inbr-"), (inn(inn_id).tap(number), "intp-")):
        assert len(name.encode()) <= LONGEST_DEVICE_NAME
        assert name.startswith(prefix + inn_id)
        assert int(name.removeprefix(prefix + inn_id), 36) == number


def test_the_largest_number_fills_the_name() -> None:
    for name in (inn("k3f9").bridge(LARGEST_NUMBER), inn("k3f9").tap(LARGEST_NUMBER)):
        assert len(name) == LONGEST_DEVICE_NAME
        assert name.endswith("k3f9zzzzzz")
    assert inn("k3f9").bridge(0) == "inbr-k3f90"
    assert inn("k3f9").tap(36) == "intp-k3f910"


@given(INN_IDS, INN_IDS, NUMBERS, NUMBERS)
def test_no_two_devices_share_a_name(one: str, other: str, first: int, second: int) -> None:
    same = (one, first) == (other, second)
    assert (inn(one).bridge(first) == inn(other).bridge(second)) is same
    assert (inn(one).tap(first) == inn(other).tap(second)) is same
    assert inn(one).bridge(first) != inn(other).tap(second)


@given(INN_IDS)
def test_table_and_cgroup_and_sockets_carry_the_id(inn_id: str) -> None:
    paths = inn(inn_id)
    assert paths.nft_table == f"inn_{inn_id}"
    assert paths.cgroup == f"innkeeper-{inn_id}"
    assert paths.run.name == inn_id
    for socket in (paths.api_socket, paths.fabric_socket, paths.nbd_socket, paths.vm_run("a" * 36) / "serial.sock"):
        assert paths.run in socket.parents
        assert len(bytes(socket)) <= 107, "what an address of a unix socket holds"


@given(st.uuids(version=4))
def test_macs_are_local_unicast_and_uids_a_block_of_their_own(uuid: object) -> None:
    paths = inn("k3f9", str(uuid))
    assert re.fullmatch(r"52:54:[0-9a-f]{2}:[0-9a-f]{2}", paths.mac_prefix)
    assert int(paths.mac_prefix[:2], 16) & 0b11 == 0b10, "locally administered, not multicast"
    assert paths.first_uid % VM_UIDS == 0
    assert paths.first_uid >= 200_000
    assert paths.first_uid + VM_UIDS <= 200_000 + 500 * VM_UIDS
    assert (paths.mac_prefix, paths.first_uid) == (inn("zzzz", str(uuid)).mac_prefix, inn("zzzz", str(uuid)).first_uid)


def test_macs_and_uids_are_spread_over_inns() -> None:
    inns = [inn("k3f9", f"inn {number}") for number in range(2000)]
    assert len({paths.first_uid for paths in inns}) > 400
    assert len({paths.mac_prefix for paths in inns}) > 1900


# --- the identity on disk ---


def test_an_inn_is_founded_once(tmp_path: Path) -> None:
    with pytest.raises(Unavailable) as absent:
        Paths.open(tmp_path / "state")
    assert absent.value.code == "inn.absent"
    founded = Paths.open(tmp_path / "state", create=True)
    assert re.fullmatch("[0-9a-z]{4}", founded.inn_id)
    assert json.loads((tmp_path / "state/inn.json").read_text())["format"] == 1
    assert Paths.open(tmp_path / "state", create=True) == Paths.open(tmp_path / "state") == founded
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["inn.json"]


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        (json.dumps({"format": 2, "id": "k3f9", "uuid": "b7e1", "more": True}), "install the version"),
        (json.dumps({"format": 2}), "install the version"),
        (json.dumps({"id": "k3f9", "uuid": "b7e1"}), "backup"),
        (json.dumps({"format": 1, "id": "k3f9"}), "backup"),
        ("[]", "backup"),
        ("", "backup"),
        ("\0" * 100, "backup"),
    ],
    ids=["newer", "newer and bare", "no version", "no uuid", "a list", "empty", "zeros"],
)
def test_a_newer_or_damaged_identity_is_refused_and_left_alone(tmp_path: Path, text: str, remedy: str) -> None:
    (tmp_path / "inn.json").write_text(text)
    for create in (False, True):
        with pytest.raises(Problem) as refused:
            Paths.open(tmp_path, create=create)
        assert isinstance(refused.value, Corrupt)
        assert refused.value.code == "inn.format"
        assert remedy in (refused.value.remedy or "")
    assert [path.name for path in tmp_path.iterdir()] == ["inn.json"]
    assert (tmp_path / "inn.json").read_text() == text
