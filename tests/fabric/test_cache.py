"""The content cache: bounded, shared, and not swept clean by a scan."""

from __future__ import annotations

from hypothesis import given, strategies as st

from innkeeper.fabric.cache import ITEM_OVERHEAD_BYTES, MULTI_SHARE, ContentCache

SIZE = 1000
ITEM = SIZE + ITEM_OVERHEAD_BYTES


def extent(entry: int) -> bytes:
    return entry.to_bytes(4, "big") * (SIZE // 4)


def read(cache: ContentCache, entry: int) -> bool:
    """Read as the store does; whether it was a hit."""
    data = cache.get(entry)
    if data is None:
        cache.put(entry, extent(entry))
        return False
    assert data == extent(entry)
    return True


def test_what_is_read_twice_outlives_a_scan_of_any_length() -> None:
    cache = ContentCache(100 * ITEM)
    for _ in range(2):
        for entry in range(50):
            read(cache, entry)
    for entry in range(1000, 3000):
        assert not read(cache, entry)
    assert all(read(cache, entry) for entry in range(50))


def test_what_is_read_once_makes_room_for_what_is_read_now() -> None:
    cache = ContentCache(10 * ITEM)
    for entry in range(30):
        read(cache, entry)
    assert [entry for entry in range(30) if cache.get(entry)] == list(range(20, 30))


def test_what_comes_back_soon_is_multi_touch_though_it_had_left() -> None:
    cache = ContentCache(10 * ITEM)
    for entry in range(15):
        read(cache, entry)
    assert not read(cache, 4)
    assert cache.facts().multi_touch_bytes == ITEM
    for entry in range(100, 140):
        read(cache, entry)
    assert read(cache, 4)


def test_a_new_hot_set_takes_over_from_an_old_one() -> None:
    cache = ContentCache(20 * ITEM)
    for _ in range(5):
        for entry in range(16):
            read(cache, entry)
    for _ in range(5):
        for entry in range(100, 116):
            read(cache, entry)
    assert all(read(cache, entry) for entry in range(100, 116))


def test_it_is_resized_while_in_use() -> None:
    cache = ContentCache(100 * ITEM)
    for _ in range(2):
        for entry in range(80):
            read(cache, entry)
    cache.resize(10 * ITEM)
    facts = cache.facts()
    assert facts.used_bytes <= facts.limit_bytes == 10 * ITEM
    assert facts.evictions == 70
    assert [entry for entry in range(80) if cache.get(entry)] == list(range(70, 80)), "the youngest stay"
    cache.resize(100 * ITEM)
    for entry in range(50):
        read(cache, entry)
    assert cache.facts().used_bytes == 60 * ITEM


def test_what_follows_an_extent_takes_its_place() -> None:
    """The drain wrote a block anew: whoever read the old extent finds the new one, and the old one goes first."""
    cache = ContentCache(10 * ITEM)
    for entry in (1, 1, 2):
        read(cache, entry)
    cache.succeed(1, 11, extent(11))
    cache.succeed(2, 12, extent(12))
    cache.succeed(3, 13, extent(13))
    assert (cache.get(11), cache.get(12), cache.get(13)) == (extent(11), extent(12), None)
    assert (cache.get(1), cache.get(2)) == (extent(1), extent(2)), "a snapshot may still want them"
    cache = ContentCache(3 * ITEM)
    for entry in (1, 2, 3):
        read(cache, entry)
    cache.succeed(3, 13, extent(13))
    assert [cache.get(entry) for entry in (1, 2, 3, 13)] == [extent(1), extent(2), None, extent(13)]


def test_hits_and_misses_are_counted() -> None:
    cache = ContentCache(10 * ITEM)
    read(cache, 1)
    read(cache, 1)
    read(cache, 2)
    assert (cache.facts().hits, cache.facts().misses) == (1, 2)


@given(
    st.integers(1, 30),
    st.lists(st.one_of(st.integers(0, 40), st.integers(-30, -1), st.tuples(*[st.integers(0, 40)] * 2)), max_size=300),
)
def test_its_bounds_hold_and_it_gives_what_was_put(items: int, steps: list[int | tuple[int, int]]) -> None:
    cache = ContentCache(items * ITEM)
    for step in steps:
        if isinstance(step, tuple):
            cache.succeed(*step, extent(step[1]))
        elif step < 0:
            cache.resize(-step * ITEM)
        else:
            read(cache, step)
        facts = cache.facts()
        assert facts.used_bytes == facts.single_touch_bytes + facts.multi_touch_bytes <= facts.limit_bytes
        assert facts.multi_touch_bytes <= max(facts.limit_bytes * MULTI_SHARE, ITEM)
