"""The route table: every operation of ``services``, its method and its path below ``/v1``.

What a route takes and answers is read from the Protocol's signature (see ``endpoints``), so this table is all there is
to say. ``tests/api/test_routes.py`` checks that no operation is missing. Paths of images end in ``:path`` because an
image's name may hold a slash.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from innkeeper.api import services

Method = Literal["GET", "POST", "PATCH", "DELETE"]


@dataclass(frozen=True, slots=True)
class Noun:
    """A collection: its Protocol, its attribute of ``House`` and its path."""

    protocol: type
    attribute: str
    path: str


@dataclass(frozen=True, slots=True)
class Route:
    """``operation`` is the method of the noun's Protocol; ``created``: a resource answered is a new one (201)."""

    noun: Noun
    operation: str
    method: Method
    path: str
    created: bool = False

    @property
    def name(self) -> str:
        """The operation id, such as ``vms.create``."""
        return f"{self.noun.attribute}.{self.operation}"


VMS = Noun(services.Vms, "vms", "/v1/vms")
CHECKPOINTS = Noun(services.Checkpoints, "checkpoints", "/v1/checkpoints")
IMAGES = Noun(services.Images, "images", "/v1/images")
DISKS = Noun(services.Disks, "disks", "/v1/disks")
STORAGES = Noun(services.Storages, "storages", "/v1/storages")
QOS = Noun(services.QosPolicies, "qos", "/v1/qos")
POOLS = Noun(services.Pools, "pools", "/v1/pools")
SWITCHES = Noun(services.Switches, "switches", "/v1/switches")
NICS = Noun(services.Nics, "nics", "/v1/nics")
ACLS = Noun(services.Acls, "acls", "/v1/acls")
REPOSITORIES = Noun(services.Repositories, "repositories", "/v1/repositories")
BACKUPS = Noun(services.Backups, "backups", "/v1/backups")
TASKS = Noun(services.Tasks, "tasks", "/v1/tasks")
JOURNAL = Noun(services.Journal, "journal", "/v1/journal")
HOST = Noun(services.Host, "host", "/v1/host")
FIREWALL = Noun(services.Firewall, "firewall", "/v1/host/firewall")
NOUNS = (
    VMS,
    CHECKPOINTS,
    IMAGES,
    DISKS,
    STORAGES,
    QOS,
    POOLS,
    SWITCHES,
    NICS,
    ACLS,
    REPOSITORIES,
    BACKUPS,
    TASKS,
    JOURNAL,
    HOST,
    FIREWALL,
)


def _common(noun: Noun, *operations: str, ref: str = "{ref}") -> list[Route]:
    """The verbs that nouns share, each at its usual place."""
    known = {
        "create": Route(noun, "create", "POST", noun.path, created=True),
        "ls": Route(noun, "ls", "GET", noun.path),
        "show": Route(noun, "show", "GET", f"{noun.path}/{ref}"),
        "set": Route(noun, "set", "PATCH", f"{noun.path}/{ref}"),
        "rm": Route(noun, "rm", "DELETE", f"{noun.path}/{ref}"),
    }
    return [known[operation] for operation in operations]


def _act(noun: Noun, operation: str, *, created: bool = False) -> Route:
    """An act on one resource: ``POST <noun>/{ref}/<operation>``."""
    return Route(noun, operation, "POST", f"{noun.path}/{{ref}}/{operation}", created)


_CRUD = ("create", "ls", "show", "set", "rm")
_OF_VM = f"{VMS.path}/{{vm_ref}}/checkpoints"

ROUTES: tuple[Route, ...] = (
    *_common(VMS, *_CRUD),
    *(_act(VMS, verb) for verb in ("start", "shutdown", "poweroff", "pause", "resume", "reset", "save")),
    _act(VMS, "clone", created=True),
    _act(VMS, "rename"),
    _act(VMS, "exec"),
    Route(CHECKPOINTS, "create", "POST", _OF_VM, created=True),
    Route(CHECKPOINTS, "ls", "GET", CHECKPOINTS.path),
    Route(CHECKPOINTS, "show", "GET", f"{_OF_VM}/{{ref}}"),
    Route(CHECKPOINTS, "set", "PATCH", f"{_OF_VM}/{{ref}}"),
    Route(CHECKPOINTS, "apply", "POST", f"{_OF_VM}/{{ref}}/apply"),
    Route(CHECKPOINTS, "rm", "DELETE", f"{_OF_VM}/{{ref}}"),
    Route(IMAGES, "build", "POST", f"{IMAGES.path}/build"),
    Route(IMAGES, "import_", "POST", f"{IMAGES.path}/import"),
    *_common(IMAGES, "ls", "show", "set", "rm", ref="{ref:path}"),
    *_common(DISKS, *_CRUD),
    _act(DISKS, "resize"),
    _act(DISKS, "move"),
    Route(DISKS, "snapshot", "POST", f"{DISKS.path}/{{ref}}/snapshots", created=True),
    Route(DISKS, "snapshots", "GET", f"{DISKS.path}/{{ref}}/snapshots"),
    Route(DISKS, "snapshot_rm", "DELETE", f"{DISKS.path}/{{ref}}/snapshots/{{snapshot}}"),
    _act(DISKS, "revert"),
    _act(DISKS, "clone", created=True),
    Route(DISKS, "diff", "GET", f"{DISKS.path}/{{ref}}/diff"),
    _act(DISKS, "attach"),
    _act(DISKS, "detach"),
    Route(DISKS, "export_open", "POST", f"{DISKS.path}/{{ref}}/exports", created=True),
    Route(DISKS, "export_close", "DELETE", f"{DISKS.path}/{{ref}}/exports/{{attachment_id}}"),
    *_common(STORAGES, *_CRUD),
    *_common(QOS, *_CRUD),
    *_common(POOLS, *_CRUD),
    *(_act(POOLS, verb) for verb in ("open", "scrub", "curate", "pause", "resume")),
    Route(POOLS, "hot", "GET", f"{POOLS.path}/{{ref}}/hot"),
    Route(POOLS, "device_add", "POST", f"{POOLS.path}/{{ref}}/devices", created=True),
    Route(POOLS, "device_drain", "POST", f"{POOLS.path}/{{ref}}/devices/{{device}}/drain"),
    *_common(SWITCHES, *_CRUD),
    _act(SWITCHES, "confirm"),
    _act(SWITCHES, "simulate"),
    *_common(NICS, *_CRUD),
    _act(NICS, "trace"),
    Route(NICS, "meters", "GET", f"{NICS.path}/{{ref}}/meters"),
    Route(NICS, "reset_meters", "POST", f"{NICS.path}/{{ref}}/meters/reset"),
    *_common(ACLS, *_CRUD),
    *_common(REPOSITORIES, *_CRUD),
    _act(REPOSITORIES, "verify"),
    _act(REPOSITORIES, "prune"),
    *_common(BACKUPS, *_CRUD),
    _act(BACKUPS, "verify"),
    _act(BACKUPS, "restore"),
    *_common(TASKS, "ls", "show"),
    _act(TASKS, "cancel"),
    Route(JOURNAL, "ls", "GET", JOURNAL.path),
    Route(HOST, "show", "GET", HOST.path),
    Route(HOST, "set", "PATCH", HOST.path),
    Route(HOST, "health", "GET", f"{HOST.path}/health"),
    Route(HOST, "doctor", "GET", f"{HOST.path}/doctor"),
    Route(HOST, "stop", "POST", f"{HOST.path}/stop"),
    Route(FIREWALL, "show", "GET", FIREWALL.path),
    Route(FIREWALL, "set", "PATCH", FIREWALL.path),
    Route(FIREWALL, "confirm", "POST", f"{FIREWALL.path}/confirm"),
)

STREAMS = {
    "tasks.watch": f"{TASKS.path}/{{ref}}/events",
    "journal.watch": f"{JOURNAL.path}/events",
    "house.events": "/v1/events",
}
"""The operations answered as server-sent events (``streams``)."""
CAPTURES = {"nics.capture": f"{NICS.path}/{{ref}}/capture"}
"""The operation answered as a pcap file that grows (``captures``)."""
METRICS = {"host.metrics": "/metrics"}
"""The operation answered as text, where Prometheus looks for it."""
