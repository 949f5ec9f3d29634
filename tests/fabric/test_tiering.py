"""Which group belongs where: the plan is pure."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given, strategies as st

from innkeeper.fabric.tiering import FULL_PERCENT, DeviceFacts, GroupFacts, Heat, Move, due, plan

GIB = 1 << 30
FAST = DeviceFacts("f", "fast", "online", 100 * GIB, 60 * GIB)
SLOW = DeviceFacts("s", "slow", "online", 1000 * GIB, 900 * GIB)


def groups(count: int, device: str = "f", size: int = GIB, first: int = 1) -> list[GroupFacts]:
    return [GroupFacts(number, device, size, touched_at=float(number)) for number in range(first, first + count)]


def test_nothing_moves_while_there_is_room() -> None:
    assert plan([FAST, SLOW], groups(40)) == []


def test_above_three_quarters_the_coldest_go_down() -> None:
    full = replace(FAST, free_bytes=20 * GIB)
    assert plan([full, SLOW], groups(80)) == [Move(number, "s") for number in range(1, 16)], "15 % at least"
    fuller = replace(FAST, free_bytes=2 * GIB)
    assert plan([fuller, SLOW], groups(98)) == [Move(number, "s") for number in range(1, 24)], "down to 75 %"


def test_what_is_hot_stays_and_without_a_slow_device_all_does() -> None:
    full = replace(FAST, free_bytes=20 * GIB)
    some = [replace(group, hot=group.number < 10) for group in groups(80)]
    assert plan([full, SLOW], some) == [Move(number, "s") for number in range(10, 25)]
    assert plan([full], groups(80)) == []
    assert plan([full, replace(SLOW, free_bytes=51 * GIB)], groups(80)) == [Move(1, "s")], "not to the brim"


def test_nothing_moves_between_devices_of_one_file_system_but_from_one_that_is_drained() -> None:
    full, slow = replace(FAST, free_bytes=20 * GIB, volume=7), replace(SLOW, volume=7)
    assert plan([full, slow], groups(80)) == []
    assert plan([FAST, slow], [replace(groups(1, "s")[0], hot=True)]) == [Move(1, "f")]
    assert plan([replace(FAST, volume=7), slow], [replace(groups(1, "s")[0], hot=True)]) == []
    assert plan([replace(full, state="draining"), slow], groups(1)) == [Move(1, "s")]


def test_what_is_hot_goes_up_while_the_fast_tier_has_room() -> None:
    here = [replace(group, hot=group.number in (3, 5)) for group in groups(10, "s")]
    assert plan([FAST, SLOW], here) == [Move(5, "f"), Move(3, "f")]
    assert plan([replace(FAST, free_bytes=26 * GIB), SLOW], here) == [Move(5, "f")]
    assert plan([replace(FAST, free_bytes=25 * GIB), SLOW], here) == []


def test_a_device_that_is_drained_gives_all_to_its_own_tier_first() -> None:
    leaving = replace(FAST, id="old", state="draining")
    assert plan([leaving, FAST, SLOW], groups(3, "old")) == [Move(number, "f") for number in (1, 2, 3)]
    assert plan([leaving, SLOW], groups(3, "old")) == [Move(number, "s") for number in (1, 2, 3)]
    assert plan([leaving, replace(FAST, free_bytes=6 * GIB), SLOW], groups(3, "old")) == [
        Move(1, "f"), Move(2, "s"), Move(3, "s"),
    ]  # fmt: skip


def test_a_touch_is_a_span_in_which_it_was_read_however_often() -> None:
    heat = Heat()
    heat.sample(100, [1, 2], [3])
    heat.sample(110, [1, 2], [3])
    assert not heat.hot(1, 110)
    heat.sample(650, [1], [3])
    assert heat.hot(1, 650)
    assert heat.warm(650) == {1}
    assert not heat.hot(2, 650)
    assert not heat.hot(3, 650), "long reads need ten"
    for step in range(7):
        heat.sample(660 + step, [], [3])
    assert heat.hot(3, 670)
    assert not heat.hot(1, 701), "the first touch is too long ago"
    heat.sample(2000, [], [])
    assert (heat.random, heat.bulk) == ({}, {})
    assert heat.last == {1: 650, 2: 110, 3: 666}
    heat.forget([3])
    assert heat.last == {3: 666}


DEVICES = st.lists(
    st.builds(
        lambda total, share, tier, state: DeviceFacts("", tier, state, total, int(total * share)),
        st.integers(1, 100).map(lambda gib: gib * GIB),
        st.floats(0, 1),
        st.sampled_from(["fast", "slow"]),
        st.sampled_from(["online", "online", "draining"]),
    ),
    min_size=1,
    max_size=5,
).map(lambda made: [replace(device, id=str(index)) for index, device in enumerate(made)])


@given(DEVICES, st.data())
def test_a_plan_fills_no_device_and_moves_each_group_once(devices: list[DeviceFacts], data: st.DataObject) -> None:
    found = data.draw(
        st.lists(
            st.builds(
                GroupFacts,
                st.integers(1, 1000),
                st.sampled_from([device.id for device in devices]),
                st.integers(1, 4 * GIB),
                st.floats(0, 100),
                st.booleans(),
            ),
            max_size=60,
            unique_by=lambda group: group.number,
        )
    )
    by_number = {group.number: group for group in found}
    by_id = {device.id: device for device in devices}
    free = {device.id: device.free_bytes for device in devices}
    moves = plan(devices, found)
    assert not moves or due(devices, any(group.hot for group in found))
    assert len({move.number for move in moves}) == len(moves)
    for move in moves:
        group, to = by_number[move.number], by_id[move.device]
        assert to.state == "online"
        assert group.device != to.id
        free[to.id] -= group.size_bytes
        assert free[to.id] * 100 >= (100 - FULL_PERCENT) * to.total_bytes
        free[group.device] += group.size_bytes
