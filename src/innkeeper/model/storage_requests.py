"""Request bodies of storages, QoS policies, pools and disks; see ``requests``."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, StringConstraints, model_validator

from innkeeper.model.request_types import (
    CacheBytes,
    DevicePlace,
    DiskBytes,
    HostPath,
    Labels,
    Name,
    Ref,
    ResourceSet,
    ZstdLevel,
)
from innkeeper.model.resources import Compression, Part, Tier

PoolBytes = Annotated[int, Field(ge=1, le=2**60)]
Iops = Annotated[int, Field(ge=1, le=10**9)]


class StorageCreate(Part):
    """A policy that disks live under."""

    name: Name
    labels: Labels = Field(default_factory=dict)
    compression: Compression = "lz4"
    level: ZstdLevel | None = None
    """Of zstd: 1 is fast, 19 is small; 3 when absent."""
    dedup: bool = True
    cold_level: ZstdLevel | None = None
    """Data that was not read for ``cold_after_s`` is packed again with zstd at this level."""
    cold_after_s: float = Field(default=259_200.0, ge=0)
    quota_bytes: PoolBytes | None = None
    reservation_bytes: PoolBytes | None = None
    tier: Tier | None = None
    """Where the data of its disks stays; absent: wherever heat puts it."""
    qos: Ref | None = None
    """The QoS policy of disks that have none of their own."""
    pool: Ref | None = None
    """Where its disks are kept; the default pool when absent."""


class StorageSet(ResourceSet):
    """Changes to a storage: what is written from then on follows them at once, what is stored by the curator.

    ``cold_level``, ``quota_bytes``, ``reservation_bytes``, ``tier``, ``qos``: ``null`` takes them away.
    """

    compression: Compression | None = None
    level: ZstdLevel | None = None
    dedup: bool | None = None
    cold_level: ZstdLevel | None = None
    cold_after_s: float | None = Field(default=None, ge=0)
    quota_bytes: PoolBytes | None = None
    reservation_bytes: PoolBytes | None = None
    tier: Tier | None = None
    qos: Ref | None = None


class QosBounds(Part):
    """I/Os are normalised: every 8 KiB of a request, begun ones included, is one."""

    max_iops: Iops | None = None
    min_iops: Iops | None = None
    max_bytes_per_s: PoolBytes | None = None
    min_bytes_per_s: PoolBytes | None = None


class QosCreate(QosBounds):
    """A QoS policy. ``aggregated``: its disks share its bounds; else each has them for itself.

    ``burst_s``: so many seconds of a maximum may be saved up and used at once.
    """

    name: Name
    labels: Labels = Field(default_factory=dict)
    burst_s: float = Field(default=1.0, ge=0.05, le=3600)
    aggregated: bool = False


class QosSet(ResourceSet, QosBounds):
    """Changes to a QoS policy, at once; ``null`` takes a bound away."""

    burst_s: float | None = Field(default=None, ge=0.05, le=3600)
    aggregated: bool | None = None


class PoolCreate(Part):
    """A new pool in an empty directory, or one that is not there yet; best the root of a file system of its own."""

    name: Name
    path: HostPath
    labels: Labels = Field(default_factory=dict)


class PoolSet(ResourceSet):
    """Changes to a pool. ``cache_bytes`` takes effect at once; ``null`` is the fabric's own choice."""

    cache_bytes: CacheBytes | None = None


class PoolDeviceAdd(Part):
    """A directory to take into a pool: empty, or not there yet; best the root of a file system of its own. Or an object
    store, as ``s3://BUCKET/PREFIX``: always slow, at ``endpoint`` (Amazon's without one), with a key of it.

    A store that the pool has already gets the new key. A block device gets a file system of its own, mounted by the
    inn; ``format``: what it carries may be lost.
    """

    path: DevicePlace
    tier: Tier = "slow"
    format: bool = False
    endpoint: Annotated[str, StringConstraints(pattern=r"^https?://[^\s/]+$", max_length=1000)] | None = None
    region: Annotated[str, StringConstraints(pattern=r"^[a-z0-9-]{1,64}$")] | None = None
    access_key_id: Annotated[str, StringConstraints(min_length=1, max_length=200)] | None = None
    secret_access_key: Annotated[str, StringConstraints(min_length=1, max_length=500)] | None = Field(
        default=None, repr=False
    )


class DiskCreate(Part):
    """A new disk: empty, or with an image's content (``size_bytes`` then grows it; the image's size when absent)."""

    name: Name
    labels: Labels = Field(default_factory=dict)
    size_bytes: DiskBytes | None = None
    storage: Ref | None = None
    image: Ref | None = None
    tier: Tier | None = None
    """Where its data stays; absent: as its storage says."""
    thick: bool = False
    """All of its size is kept free for it."""
    qos: Ref | None = None

    @model_validator(mode="after")
    def _sized(self) -> DiskCreate:
        if self.size_bytes is None and self.image is None:
            raise ValueError("an empty disk needs size_bytes")
        return self


class DiskMove(Part):
    """Take a disk to the pool of another storage, with its snapshots, in use or not."""

    storage: Ref


class DiskSet(ResourceSet):
    """Changes to a disk, in use or not. ``tier`` and ``qos``: ``null`` is what its storage says."""

    storage: Ref | None = None
    tier: Tier | None = None
    thick: bool | None = None
    qos: Ref | None = None
