"""The suite that every driver of blobs passes: of repositories, of pools' stores, real and simulated.

A test module makes a subclass and a fixture ``blobs`` for it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from innkeeper.model.problems import Conflict, Invalid, NotFound
from innkeeper.system.blobs import Blobs


def names_and_sizes(blobs: Blobs, prefix: str) -> list[tuple[str, int]]:
    return sorted((found.name, found.size_bytes) for found in blobs.ls(prefix))


class BlobsConformance:
    """Write once, read a range, list, delete."""

    def test_put_get_size(self, blobs: Blobs) -> None:
        blobs.put("packs/ab/one", [b"hello ", bytearray(b"blob"), memoryview(b"!")])
        assert blobs.get("packs/ab/one") == b"hello blob!"
        assert blobs.get("packs/ab/one", 6) == b"blob!"
        assert blobs.get("packs/ab/one", 6, 4) == b"blob"
        assert blobs.get("packs/ab/one", 6, 100) == b"blob!"
        assert blobs.get("packs/ab/one", 11, 1) == b""
        assert blobs.get("packs/ab/one", 11) == b""
        assert blobs.get("packs/ab/one", 100, 5) == b""
        assert blobs.get("packs/ab/one", 3, 0) == b""
        assert blobs.size("packs/ab/one") == 11

    def test_empty_and_many_parts(self, blobs: Blobs) -> None:
        blobs.put("a/empty", [])
        assert blobs.get("a/empty") == b""
        assert blobs.get("a/empty", 0, 10) == b""
        assert blobs.size("a/empty") == 0
        parts = [bytes((number % 256,)) * (number % 7) for number in range(5000)]
        blobs.put("a/many", parts)
        assert blobs.get("a/many") == b"".join(parts)

    def test_a_large_one_is_read_in_ranges(self, blobs: Blobs) -> None:
        data = bytes(range(256)) * (9 << 12)
        blobs.put("a/large", [memoryview(data)])
        assert blobs.size("a/large") == len(data)
        for offset, length in ((0, 1), (1 << 20, 1 << 20), (len(data) - 5, 5), (len(data) - 5, 50), (4095, 8193)):
            assert blobs.get("a/large", offset, length) == data[offset : offset + length]

    def test_put_if_absent(self, blobs: Blobs) -> None:
        blobs.put("points/x", [b"first"])
        for content in (b"second", b"first"):
            with pytest.raises(Conflict, match="blob.exists"):
                blobs.put("points/x", [content])
        assert blobs.get("points/x") == b"first"

    def test_one_of_many_racing_puts_wins(self, blobs: Blobs) -> None:
        outcomes: list[str] = []

        def put(number: int) -> None:
            try:
                blobs.put("points/race", [b"%d" % number])
                outcomes.append(str(number))
            except Conflict:
                pass

        threads = [threading.Thread(target=put, args=(number,)) for number in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(outcomes) == 1
        assert blobs.get("points/race") == outcomes[0].encode()

    def test_ls_by_folder(self, blobs: Blobs) -> None:
        assert list(blobs.ls("packs/")) == []
        blobs.put("packs/ab/one", [b"1"])
        blobs.put("packs/cd/two", [b"22"])
        blobs.put("packsother", [b"3"])
        assert names_and_sizes(blobs, "packs/") == [("packs/ab/one", 1), ("packs/cd/two", 2)]
        assert names_and_sizes(blobs, "packs/cd/") == [("packs/cd/two", 2)]

    def test_delete_and_absent(self, blobs: Blobs) -> None:
        blobs.put("a/b", [b"x"])
        blobs.delete("a/b")
        blobs.delete("a/b")
        asks: tuple[Callable[[str], object], ...] = (blobs.get, blobs.size, lambda name: blobs.get(name, 5, 5))
        for ask in asks:
            with pytest.raises(NotFound, match="blob.absent"):
                ask("a/b")
        assert list(blobs.ls("a/")) == []
        blobs.put("a/b", [b"again"])
        assert blobs.get("a/b") == b"again"

    @pytest.mark.parametrize("name", ["", "/etc/passwd", "../x", "a/../../x", "a//b", "a/./b"])
    def test_names_that_lead_astray_are_refused(self, blobs: Blobs, name: str) -> None:
        for ask in (lambda: blobs.put(name, [b""]), lambda: blobs.get(name), lambda: blobs.delete(name)):
            with pytest.raises(Invalid, match="blob.name"):
                ask()

    def test_clean_leaves_what_is_whole(self, blobs: Blobs) -> None:
        blobs.put("a/b", [b"x"])
        assert blobs.clean(0) == 0
        assert blobs.get("a/b") == b"x"
