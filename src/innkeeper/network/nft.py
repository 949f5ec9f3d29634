"""nftables through libnftables, held open: text in, JSON out, one atomic transaction per call.

A handle belongs to the network namespace of the thread that made it and must be used by one thread at a time. Calls
leave Python's lock, so the event loop goes on meanwhile.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
from collections.abc import Callable
from typing import Any

from innkeeper.model.problems import Failed, Unavailable

_LIBRARY = "libnftables.so.1"
_OUTPUT_JSON = 1 << 4 | 1 << 7  # numeric protocols: their names depend on a file that may be absent
_OUTPUT_TERSE = 1 << 11
_PLACE = re.compile(r":(\d+):(\d+)(?:-\d+)?: Error: (.*)")

Object = dict[str, Any]


class Nft:
    """One libnftables context. Raises ``Unavailable`` (``nft.missing``) when the library is not installed."""

    def __init__(self) -> None:
        try:
            self._library = _load()
        except OSError as missing:
            raise Unavailable(
                "nft.missing", "libnftables is not installed", cause=str(missing), remedy="run 'make setup'"
            ) from missing
        self._context = self._library.nft_ctx_new(0)
        if not self._context:
            raise Unavailable("nft.missing", "libnftables cannot start", remedy="run as root; see 'inn doctor'")
        self._library.nft_ctx_buffer_output(self._context)
        self._library.nft_ctx_buffer_error(self._context)

    def apply(self, text: str) -> None:
        """Make the change ``text`` in one transaction; when refused, nothing has changed.

        Raises ``Failed`` (``nft.refused``) naming the line that the kernel refused.
        """
        if not text:
            return
        # A file, because libnftables tells the line of an error only for files.
        descriptor = os.memfd_create("nft-transaction", os.MFD_CLOEXEC)
        try:
            with open(descriptor, "wb", closefd=False) as file:
                file.write(text.encode())
            self._library.nft_ctx_output_set_flags(self._context, 0)
            path = f"/proc/self/fd/{descriptor}".encode()
            status = self._library.nft_run_cmd_from_filename(self._context, path)
            errors = self._take_errors()
        finally:
            os.close(descriptor)
        if status != 0:
            raise refusal(text, errors)

    def read(self, command: str) -> list[Object]:
        """What a list command answers, as the objects of libnftables-json(5) without its header."""
        answer = json.loads(self._listed(command, _OUTPUT_JSON) or '{"nftables": []}')
        return [item for item in answer["nftables"] if "metainfo" not in item]

    def read_table(self, family: str, table: str, skip: Callable[[Object], bool]) -> list[Object]:
        """What a table holds, without the elements of the sets for which ``skip`` is true: they may be very many."""
        listed = json.loads(self._listed(f"list table {family} {table}", _OUTPUT_JSON | _OUTPUT_TERSE))
        found: list[Object] = []
        for item in listed["nftables"]:
            kind = "set" if "set" in item else "map" if "map" in item else None
            if kind is not None and not skip(item[kind]):
                found += self.read(f"list {kind} {family} {table} {item[kind]['name']}")
            elif "metainfo" not in item:
                found.append(item)
        return found

    def read_text(self, command: str) -> str:
        """What a command answers as text, for those that nft 1.0.6 does not answer in JSON."""
        return self._listed(command, 0)

    def _listed(self, command: str, flags: int) -> str:
        self._library.nft_ctx_output_set_flags(self._context, flags)
        status = self._library.nft_run_cmd_from_buffer(self._context, command.encode())
        output = self._library.nft_ctx_get_output_buffer(self._context) or b""
        errors = self._take_errors()
        if status != 0:
            raise refusal(command, errors)
        return bytes(output).decode()

    def table_exists(self, family: str, table: str) -> bool:
        wanted = {"family": family, "name": table}
        return any(wanted.items() <= item.get("table", {}).items() for item in self.read(f"list tables {family}"))

    def close(self) -> None:
        if self._context:
            self._library.nft_ctx_free(self._context)
            self._context = None

    def _take_errors(self) -> str:
        errors = self._library.nft_ctx_get_error_buffer(self._context) or b""
        return bytes(errors).decode(errors="replace")


def refusal(text: str, errors: str) -> Failed:
    """The problem for libnftables' complaint about ``text``: its first error, with the line of ``text`` it is about."""
    place = _PLACE.search(errors)
    if place is None:
        return Failed("nft.refused", "nftables refused the change", cause=errors.strip()[:2000] or None)
    lines = text.splitlines()
    number = int(place[1])
    line = lines[number - 1].strip() if 0 < number <= len(lines) else ""
    return Failed(
        "nft.refused",
        f"nftables refused the change: {place[3]}",
        cause=line[:500] or errors.strip()[:2000],
        remedy="the old rules stay in force; 'inn doctor' checks what this kernel can do",
    )


def _load() -> ctypes.CDLL:
    library = ctypes.CDLL(_LIBRARY)
    context = ctypes.c_void_p
    signatures: dict[str, tuple[Any, list[Any]]] = {
        "nft_ctx_new": (context, [ctypes.c_uint32]),
        "nft_ctx_free": (None, [context]),
        "nft_ctx_buffer_output": (ctypes.c_int, [context]),
        "nft_ctx_buffer_error": (ctypes.c_int, [context]),
        "nft_ctx_output_set_flags": (None, [context, ctypes.c_uint]),
        "nft_run_cmd_from_buffer": (ctypes.c_int, [context, ctypes.c_char_p]),
        "nft_run_cmd_from_filename": (ctypes.c_int, [context, ctypes.c_char_p]),
        "nft_ctx_get_output_buffer": (ctypes.c_char_p, [context]),
        "nft_ctx_get_error_buffer": (ctypes.c_char_p, [context]),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library
