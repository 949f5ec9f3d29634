"""The catalog: which storages, disks, snapshots, layers, attachments and holds exist, in memory as in meta.

Who stands on what: a disk's open layer stands on a sealed layer or on a root, a snapshot likewise. Meta knows a sealed
layer (gives it a row and an id) only when a snapshot or a clone stands on it; other sealed layers merge at recovery
with the layer above, since the log still has their records. ``standing`` computes what meta must say about anything.

Rule of locks: everything meta knows changes under ``admin`` (a worker thread's lock, held over a meta transaction);
what the data path reads (``Layer.view``) changes under the pool's short lock as well.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import TypeVar

from innkeeper.fabric.groups import LACKS_ORIGIN, Note
from innkeeper.fabric.layers import Layer
from innkeeper.fabric.layout import EMPTY_ROOT, HOLE, PAGE, Root
from innkeeper.fabric.meta import DiskRow, LayerRow, Meta, SnapshotRow, Transaction
from innkeeper.fabric.policy import DiskSettings, Policy
from innkeeper.fabric.qos import QosPolicy
from innkeeper.fabric.relief import Plight
from innkeeper.fabric.streams import Stream
from innkeeper.model.problems import Conflict, NotFound

T = TypeVar("T")
WRITER = "writer"
READER = "reader"


@dataclass(slots=True)
class Storage:
    """A policy that disks live under."""

    id: str
    policy: Policy


@dataclass(slots=True)
class Disk:
    """A disk and its open layer; ``lost`` is the epoch whose accepted writes are gone from the medium."""

    id: str
    number: int
    storage_id: str
    size_bytes: int
    open: Layer
    size_seq: int = 0
    epoch: int = 0
    lost: int = 0
    origin: str = ""
    settings: DiskSettings = field(default_factory=DiskSettings)
    parent: str = ""
    """The snapshot that its content was last taken to, or back to; "" for none."""
    credit_bytes: int = 0
    """What it may still write before it has to ask for more (``space``)."""
    plight: Plight = field(default_factory=Plight)
    stream: Stream = field(default_factory=Stream)

    @property
    def undrained_bytes(self) -> int:
        """What of its own writes is not drained, overwritten ones left out."""
        number = self.number
        return sum(layer.data_bytes for layer in self.open.view.layers if layer.number == number)

    @property
    def logged_bytes(self) -> int:
        """What of that is in the log itself."""
        number = self.number
        return PAGE * sum(len(layer.pages) for layer in self.open.view.layers if layer.number == number)


@dataclass(slots=True)
class Snapshot:
    """A disk's content at one instant: ``layer`` over its view, or ``root`` once all is drained."""

    id: str
    disk_id: str
    storage_id: str
    size_bytes: int
    layer: Layer | None
    root: Root
    sequence: int
    created_at: float
    parent: str = ""
    """The snapshot of the same disk that it was taken after; "" for none."""
    frozen: Layer = field(init=False)
    """An empty layer over what the snapshot stands on: its ``view`` is the snapshot's view."""

    def __post_init__(self) -> None:
        self.frozen = Layer(0, 0, self.layer, self.root)


@dataclass(slots=True)
class Attachment:
    """Who may use a disk or snapshot over NBD."""

    id: str
    disk_id: str | None
    snapshot_id: str | None
    role: str
    uid: int | None
    epoch: int


@dataclass(slots=True)
class Move:
    """A disk on its way from one pool to another, as each of the two knows it.

    ``role`` ``arriving``: the disk here is being filled from the one in ``pool``, and is nobody's yet; it holds what
    snapshot ``base`` holds, and some of what ``goal`` does. ``leaving``: ``pool`` decides whether the disk here is
    still the one (see ``moving``).
    """

    disk_id: str
    role: str
    pool: str
    base: str = ""
    goal: str = ""


ARRIVING = "arriving"
LEAVING = "leaving"


class Catalog:
    """See the module's docstring."""

    def __init__(self, meta: Meta) -> None:
        self.meta = meta
        self.admin = threading.RLock()
        self.storages: dict[str, Storage] = {}
        self.disks: dict[str, Disk] = {}
        self.by_number: dict[int, Disk] = {}
        self.snapshots: dict[str, Snapshot] = {}
        self.layers: dict[Layer, None] = {}
        """All layers that are not drained, the oldest first: sealed ones and every disk's open one."""
        self.attachments: dict[str, Attachment] = {}
        self.holds: dict[str, str] = {}
        self.qos: dict[str, QosPolicy] = {}
        self.moves: dict[str, Move] = {}
        """By disk."""
        self.counts: dict[int, int] = {HOLE: 0}
        """Data bytes below roots, by their entries."""
        self._sealed: dict[int, list[Layer]] | None = None
        """Sealed layers by disk number, as loaded; for recovery."""
        self.next_layer = 1
        self.next_disk = 1

    # -- loading ---------------------------------------------------------------------------------------------------

    def load(self) -> None:
        """Fill from meta. Layers come empty; replay fills them."""
        meta = self.meta
        for row in meta.rows("SELECT id, policy FROM storages"):
            self.storages[row[0]] = Storage(row[0], Policy.from_json(row[1]))
        by_id: dict[int, Layer] = {}
        rows = meta.layers()
        for layer_row in rows:
            layer = Layer(layer_row.number, layer_row.from_seq, None, Root(layer_row.root, layer_row.levels))
            layer.id = layer_row.id
            layer.seal_seq = layer_row.seal_seq
            by_id[layer.id] = layer
            self.layers[layer] = None
        for layer_row in rows:
            by_id[layer_row.id].base = by_id.get(layer_row.base)
        for disk_row in meta.disks():
            opened = Layer(
                disk_row.number, disk_row.from_seq, by_id.get(disk_row.layer), Root(disk_row.root, disk_row.levels)
            )
            disk = Disk(
                disk_row.id,
                disk_row.number,
                disk_row.storage_id,
                disk_row.size_bytes,
                opened,
                disk_row.size_seq,
                disk_row.epoch,
                disk_row.lost,
                disk_row.origin,
                DiskSettings.from_json(disk_row.settings),
                disk_row.parent,
            )
            self.add_disk(disk)
        for snap in meta.snapshots():
            self.snapshots[snap.id] = Snapshot(
                snap.id,
                snap.disk_id,
                snap.storage_id,
                snap.size_bytes,
                by_id.get(snap.layer),
                Root(snap.root, snap.levels),
                snap.sequence,
                snap.created_at,
                snap.parent,
            )
        for row in meta.rows("SELECT id, disk_id, snapshot_id, role, uid, epoch FROM attachments"):
            self.attachments[row[0]] = Attachment(*row)
        self.holds = dict(meta.rows("SELECT id, snapshot_id FROM holds"))
        self.qos = {row[0]: QosPolicy.from_json(row[1]) for row in meta.rows("SELECT id, policy FROM qos")}
        self.moves = {row[0]: Move(*row) for row in meta.rows("SELECT disk_id, role, pool, base, goal FROM moves")}
        self.counts |= meta.counts()
        # a snapshot that meta refused has named its layer all the same, and a later commit has written that down
        self.next_layer = max(int(meta.get("next_layer", 1)), *(number + 1 for number in by_id), 1)
        self.next_disk = int(meta.get("next_disk", 1))

    def layer_of(self, number: int, sequence: int) -> Layer | None:
        """The layer that a record of disk ``number`` in batch ``sequence`` of the log belongs to, before any is sealed
        anew; None when nobody needs it."""
        if self._sealed is None:
            self._sealed = {}
            for layer in self.layers:
                if layer.seal_seq is not None:
                    self._sealed.setdefault(layer.number, []).append(layer)
        for layer in self._sealed.get(number, ()):
            if layer.from_seq < sequence <= (layer.seal_seq or 0):
                return layer
        disk = self.by_number.get(number)
        return disk.open if disk is not None and sequence > disk.open.from_seq else None

    def relink(self) -> None:
        """Compute every view anew; under the pool's lock."""
        for layer in self.layers:
            layer.relink()
        for snapshot in self.snapshots.values():
            snapshot.frozen.base, snapshot.frozen.root = snapshot.layer, snapshot.root
            snapshot.frozen.relink()

    # -- looking up ------------------------------------------------------------------------------------------------

    def storage(self, storage_id: str) -> Storage:
        return _found(self.storages, storage_id, "storage")

    def disk(self, disk_id: str) -> Disk:
        return _found(self.disks, disk_id, "disk")

    def snapshot(self, snapshot_id: str) -> Snapshot:
        return _found(self.snapshots, snapshot_id, "snapshot")

    def attachment(self, attachment_id: str) -> Attachment:
        return _found(self.attachments, attachment_id, "attachment")

    def arrives(self, disk_id: str | None) -> bool:
        """Whether the disk here is being filled from another pool, and nobody's yet."""
        move = self.moves.get(disk_id or "")
        return move is not None and move.role == ARRIVING

    def add_disk(self, disk: Disk) -> None:
        self.disks[disk.id] = disk
        self.by_number[disk.number] = disk
        self.layers[disk.open] = None

    def policy_of(self, layer: Layer) -> Policy:
        """The policy that a layer is drained under; the default one where its disk is gone."""
        disk = self.by_number.get(layer.number)
        return self.storages[disk.storage_id].policy if disk else Policy()

    def tier_of(self, disk: Disk) -> str:
        """Where the disk's data is to stay; "" for wherever heat puts it."""
        return disk.settings.tier or self.storages[disk.storage_id].policy.tier

    def tier_of_layer(self, layer: Layer) -> str:
        """The tier that a layer is drained to."""
        disk = self.by_number.get(layer.number)
        return self.tier_of(disk) if disk else ""

    def qos_of(self, disk: Disk) -> str:
        """The id of the QoS policy that the disk is under; "" for none."""
        return disk.settings.qos_id or self.storages[disk.storage_id].policy.qos_id

    def data_bytes(self, disk: Disk) -> int:
        """What of the disk is no hole, as far as it is drained."""
        return self.counts.get(disk.open.view.root.entry, 0)

    def refuse_in_use(self, what: str, *, disk_id: str | None = None, snapshot_id: str | None = None) -> None:
        """Raises ``Conflict`` (``<what>.attached``, ``snapshot.held``) while something uses it."""
        for attachment in self.attachments.values():
            if (disk_id and attachment.disk_id == disk_id) or (snapshot_id and attachment.snapshot_id == snapshot_id):
                raise Conflict(
                    f"{what}.attached",
                    f"{what} {disk_id or snapshot_id} is attached as {attachment.id}",
                    remedy="detach it first",
                )
        for hold, held in self.holds.items():
            if snapshot_id and held == snapshot_id:
                raise Conflict(
                    "snapshot.held",
                    f"snapshot {snapshot_id} is held by {hold}",
                    remedy="end what uses it, or release it",
                )

    # -- what stands on what ---------------------------------------------------------------------------------------

    def seal(self, disk: Disk, sequence: int) -> Layer | None:
        """Seal the disk's open layer at ``sequence`` and open a new one; under the pool's lock.

        Returns the sealed layer that holds the disk's newest writes, or ``None`` when all is drained.
        """
        top = disk.open
        if top.empty:
            return top.base
        top.seal_seq = sequence
        disk.open = Layer(disk.number, sequence, top)
        self.layers[disk.open] = None
        return top

    def collect(self) -> list[Layer]:
        """Drop sealed layers that nothing stands on; returns those. Under the pool's lock."""
        used = {disk.open for disk in self.disks.values()}
        used.update(snapshot.layer for snapshot in self.snapshots.values() if snapshot.layer is not None)
        for layer in list(used):
            while (base := layer.base) is not None and base not in used:
                used.add(base)
                layer = base
        gone = [layer for layer in self.layers if layer not in used]
        for layer in gone:
            layer.gone = True
            self.layers.pop(layer, None)
        return gone

    def oldest_needed(self, sequence: int) -> int:
        """The lowest sequence that some layer still needs from the log; ``sequence + 1`` when none."""
        return min((layer.first_seq for layer in self.layers if layer.first_seq is not None), default=sequence + 1)

    def name_layer(self, layer: Layer) -> None:
        """Give a sealed layer, and those under it, an id for meta."""
        if not layer.id:
            layer.id = self.next_layer
            self.next_layer += 1

    # -- rows ------------------------------------------------------------------------------------------------------

    def disk_row(self, disk: Disk) -> DiskRow:
        base, root, from_seq = standing(disk.open)
        return DiskRow(
            disk.id,
            disk.number,
            disk.storage_id,
            disk.size_bytes,
            disk.size_seq,
            root.entry,
            root.levels,
            base,
            from_seq,
            disk.epoch,
            disk.lost,
            disk.origin,
            disk.settings.to_json(),
            disk.parent,
        )

    def snapshot_row(self, snapshot: Snapshot) -> SnapshotRow:
        layer = snapshot.layer
        root = bottom(layer) if layer is not None else snapshot.root
        return SnapshotRow(
            snapshot.id,
            snapshot.disk_id,
            snapshot.storage_id,
            snapshot.size_bytes,
            root.entry,
            root.levels,
            layer.id if layer is not None else 0,
            snapshot.sequence,
            snapshot.created_at,
            snapshot.parent,
        )

    def layer_row(self, layer: Layer) -> LayerRow:
        assert layer.seal_seq is not None
        base, root, from_seq = standing(layer)
        return LayerRow(layer.id, layer.number, base, root.entry, root.levels, from_seq, layer.seal_seq)

    def rebase(self, old: Layer, root: Root) -> tuple[list[Layer], list[Snapshot]]:
        """All that stood on ``old`` stands on ``root``, not yet visible to readers; returns what changed."""
        layers = [layer for layer in self.layers if layer.base is old]
        snapshots = [snapshot for snapshot in self.snapshots.values() if snapshot.layer is old]
        for layer in layers:
            layer.base, layer.root = None, root
        for snapshot in snapshots:
            snapshot.layer, snapshot.root = None, root
        return layers, snapshots

    def unrebase(self, old: Layer, layers: list[Layer], snapshots: list[Snapshot]) -> None:
        """Take ``rebase`` back: meta refused."""
        for layer in layers:
            layer.base = old
        for snapshot in snapshots:
            snapshot.layer = old

    def write_all(self, change: Transaction) -> None:
        """Write every disk, snapshot and named layer as it stands now: few rows, and simple to be sure of."""
        for disk in self.disks.values():
            change.put_disk(self.disk_row(disk))
        for snapshot in self.snapshots.values():
            change.put_snapshot(self.snapshot_row(snapshot))
        change.run("DELETE FROM layers")
        for layer in self.layers:
            if layer.id and layer.seal_seq is not None:
                change.put_layer(self.layer_row(layer))
        entries = {root.entry for root in self.roots()}
        self.counts = {entry: count for entry, count in self.counts.items() if entry in entries or entry == HOLE}
        change.put_counts(self.counts)

    def notes(self, sequence: int) -> list[Note]:
        """The roots of all disks and snapshots, for the groups' index frames; ``sequence`` is the log's. Under the
        pool's lock."""
        notes = []
        for disk in self.disks.values():
            if self.arrives(disk.id):
                continue
            lowest = _lowest_of(disk.open, disk.number)
            root, belongs = bottom(disk.open), disk.id
            if lowest.base is not None and disk.origin:
                root, belongs = Root(root.entry, root.levels | LACKS_ORIGIN), disk.origin
            drained = lowest is disk.open and lowest.base is None and lowest.first_seq is None
            upto = sequence if drained else lowest.from_seq
            notes.append(Note.of(disk.id, belongs, disk.number, disk.size_bytes, root, upto))
        for snapshot in self.snapshots.values():
            if self.arrives(snapshot.disk_id):
                continue
            layer = snapshot.layer
            if layer is None:
                root, number, upto = snapshot.root, 0, snapshot.sequence
            else:
                root, number, upto = bottom(layer), layer.number, _lowest_of(layer, layer.number).from_seq
            notes.append(Note.of(snapshot.id, snapshot.disk_id, number, snapshot.size_bytes, root, upto))
        return notes

    def roots(self) -> list[Root]:
        """Every root that something stands on: what the sweep marks from."""
        roots = [layer.root for layer in self.layers if layer.base is None]
        roots += [snapshot.root for snapshot in self.snapshots.values() if snapshot.layer is None]
        return roots


def _lowest_of(layer: Layer, number: int) -> Layer:
    """The lowest layer of that disk in the chain."""
    while layer.base is not None and layer.base.number == number:
        layer = layer.base
    return layer


def bottom(layer: Layer) -> Root:
    """The root at the bottom of a layer's chain."""
    while layer.base is not None:
        layer = layer.base
    return layer.root


def standing(layer: Layer) -> tuple[int, Root, int]:
    """(id of the nearest named layer below or 0, root, sequence its records begin after), merging unnamed layers."""
    from_seq = layer.from_seq
    base = layer.base
    while base is not None and not base.id:
        from_seq = base.from_seq
        layer, base = base, base.base
    if base is None:
        return 0, layer.root, from_seq
    return base.id, EMPTY_ROOT, from_seq


def _found(things: dict[str, T], key: str, what: str) -> T:
    thing = things.get(key)
    if thing is None:
        raise NotFound(f"{what}.not_found", f"there is no {what} {key} in the pool")
    return thing
