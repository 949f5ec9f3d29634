"""A disk's snapshots as a tree, for people."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from innkeeper.cli.output import Column, text
from innkeeper.model.sizes import format_size
from innkeeper.model.views import DiskSnapshot


@dataclass(frozen=True, slots=True)
class Leaf:
    """One line: a snapshot, a clone that stands on it, or the disk as it is now."""

    name: str
    kind: str
    snapshot: DiskSnapshot | None = None


def _children(one: DiskSnapshot, found: Sequence[DiskSnapshot], disks: Mapping[str, str]) -> list[Leaf]:
    clones = [Leaf(disks.get(disk_id, disk_id), "clone") for disk_id in one.clone_ids]
    later = [Leaf(each.name, each.snapshot_kind, each) for each in found if each.parent_id == one.id]
    return [*clones, *later, *([Leaf("now", "disk")] if one.current else [])]


def _below(leaves: list[Leaf], indent: str, more: Callable[[DiskSnapshot], list[Leaf]]) -> Iterator[tuple[str, Leaf]]:
    for number, leaf in enumerate(leaves):
        last = number == len(leaves) - 1
        yield f"{indent}{'└─ ' if last else '├─ '}{leaf.name}", leaf
        if leaf.snapshot is not None:
            yield from _below(more(leaf.snapshot), f"{indent}{'   ' if last else '│  '}", more)


def tree(found: Sequence[DiskSnapshot], disks: Mapping[str, str]) -> list[tuple[str, Leaf]]:
    """(what is drawn, what it stands for), from the roots down; ``disks``: names of clones by id."""
    known = {one.id for one in found}
    lines: list[tuple[str, Leaf]] = []
    for root in found:
        if root.parent_id not in known:
            lines.append((root.name, Leaf(root.name, root.snapshot_kind, root)))
            lines += _below(_children(root, found, disks), "", lambda one: _children(one, found, disks))
    return lines


COLUMNS: list[Column[tuple[str, Leaf]]] = [
    Column("name", lambda row: row[0]),
    Column("kind", lambda row: row[1].kind),
    Column("taken", lambda row: text(row[1].snapshot.created_at) if row[1].snapshot else ""),
    Column("size", lambda row: format_size(row[1].snapshot.size_bytes) if row[1].snapshot else "", right=True),
    Column("changed", lambda row: format_size(row[1].snapshot.changed_bytes) if row[1].snapshot else "", right=True),
    Column("own", lambda row: format_size(row[1].snapshot.own_bytes) if row[1].snapshot else "", right=True),
]
