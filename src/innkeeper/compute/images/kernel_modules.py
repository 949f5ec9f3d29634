"""Which kernel modules a guest loads, and in which order.

Package trees carry no ``modules.dep`` (depmod makes it at installation), so dependencies are read from each module's
``.modinfo`` section: the NUL-terminated ``depends=a,b``.
"""

from __future__ import annotations

import lzma
import re
from collections.abc import Iterable
from pathlib import Path

from innkeeper.model.problems import Unavailable

_DEPENDS = re.compile(rb"\0depends=([^\0]*)\0")


def module_name(file_name: str) -> str:
    """``virtio-rng.ko.xz`` is the module ``virtio_rng``."""
    return file_name.split(".ko", 1)[0].replace("-", "_")


def read_module(path: Path) -> bytes:
    """The module's ELF bytes, uncompressed."""
    return lzma.decompress(path.read_bytes()) if path.suffix == ".xz" else path.read_bytes()


def dependencies(elf: bytes) -> list[str]:
    """Names of the modules that ``elf`` depends on directly."""
    found = _DEPENDS.search(elf)
    return [name.replace("-", "_") for name in found[1].decode().split(",") if name] if found else []


class ModuleTree:
    """The modules of one kernel: ``tree`` is its ``lib/modules/VERSION`` directory."""

    def __init__(self, tree: Path) -> None:
        self._files = {module_name(path.name): path for path in tree.rglob("*.ko*")}
        builtin = tree / "modules.builtin"
        names = builtin.read_text().split() if builtin.exists() else []
        self._builtin = {module_name(Path(name).name) for name in names}

    def load_order(self, wanted: Iterable[str]) -> dict[str, bytes]:
        """``wanted`` modules and their dependencies, each after what it needs, with their ELF bytes.

        What the kernel has built in is left out. Raises ``Unavailable`` (``kernel.module``).
        """
        ordered: dict[str, bytes] = {}
        for name in wanted:
            self._add(name, ordered, ())
        return ordered

    def _add(self, name: str, ordered: dict[str, bytes], above: tuple[str, ...]) -> None:
        if name in ordered or name in self._builtin or name in above:
            return
        path = self._files.get(name)
        if path is None:
            raise Unavailable("kernel.module", f"the kernel package has no module {name}")
        elf = read_module(path)
        for needed in dependencies(elf):
            self._add(needed, ordered, (*above, name))
        ordered[name] = elf
