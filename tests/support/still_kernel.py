"""A ``Kernel`` whose links live in memory and whose other parts only note what they are asked: for what decides there,
in which order and in which namespace, without root. What a real kernel makes of it is tested in namespaces."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from innkeeper.model.problems import Problem
from innkeeper.network import kernel as module, namespace, tenancy, uplink_traffic
from innkeeper.network.kernel import Kernel
from innkeeper.network.links import Device
from innkeeper.network.minimums import Shares
from innkeeper.network.policy import PortPolicy, SwitchPolicy

INN_ID = "t3st"


class Quiet:
    """Does whatever it is asked, which changes nothing."""

    problems: Mapping[str, Problem] = MappingProxyType({})
    limiters: frozenset[str] = frozenset()
    allowed = False

    def __getattr__(self, name: str) -> Any:
        return lambda *_args, **_kwargs: []


class Links(Quiet):
    """Bridges and taps by name. Making one that is in ``refused`` raises what stands there."""

    def __init__(self) -> None:
        self.present: dict[str, Device] = {}
        self.refused: dict[str, Exception] = {}

    def _make(self, name: str, kind: str) -> list[str]:
        if name in self.refused:
            raise self.refused[name]
        if name in self.present:
            return []
        self.present[name] = Device(name, len(self.present) + 1, kind, "52:54:00:00:00:00", 1500, True, 0, None)
        return [f"make {name}"]

    def devices(self, *_: str) -> dict[str, Device]:
        return dict(self.present)

    def device(self, name: str) -> Device | None:
        return self.present.get(name)

    def ensure_bridge(self, switch: SwitchPolicy, _present: Device | None) -> list[str]:
        return self._make(switch.bridge, "bridge")

    def ensure_tap(self, port: PortPolicy, *_: object, **__: object) -> list[str]:
        return self._make(port.tap, "tun")

    def remove(self, name: str, _kind: str) -> bool:
        return self.present.pop(name, None) is not None

    def remove_together(self, names: Iterable[str], kind: str) -> list[str]:
        return [name for name in names if self.remove(name, kind)]


class UplinkShares(Quiet):
    """Device -> what it shares. A device in ``refused`` raises what stands there."""

    def __init__(self) -> None:
        self.shared: dict[str, Shares] = {}
        self.refused: dict[str, Exception] = {}

    def ensure(self, device: str | None, wanted: Shares | None, *, verify: bool = False) -> list[str]:
        if device in self.refused and wanted is not None:
            raise self.refused[device]
        if device is not None and wanted is not None:
            self.shared[device] = wanted
        elif device is not None:
            self.shared.pop(device, None)
        return []


class Servers:
    """``told``: in which namespace (None: the host's) the DHCP of which bridge was told its ports last."""

    def __init__(self) -> None:
        self.told: dict[str, tuple[str | None, list[str]]] = {}
        self.here: str | None = None

    @contextmanager
    def inside(self, name: str) -> Iterator[None]:
        self.here = name
        yield
        self.here = None

    def server(self, directory: Path) -> Any:
        servers = self

        class Server(Quiet):
            def ensure(self, switch: SwitchPolicy, ports: list[PortPolicy]) -> list[str]:
                servers.told[directory.name] = servers.here, sorted(port.tap for port in ports)
                return []

            def remove(self) -> bool:
                return servers.told.pop(directory.name, None) is not None

        return Server()


class StillKernel:
    """The kernel, and what it stands on. ``real_uplinks``: for cards that this host does not have."""

    def __init__(self, directory: Path, patch: pytest.MonkeyPatch, *, real_uplinks: bool = False) -> None:
        self.links, self.shares, self.servers, self.rules = Links(), UplinkShares(), Servers(), Quiet()
        parts: dict[str, Callable[..., object]] = {
            "Links": lambda: self.links,
            "Rules": lambda *_: self.rules,
        }
        for name in ("Nft", "Shaper", "Overlays", "Docker", *(() if real_uplinks else ("Uplinks",))):
            parts[name] = lambda *_: Quiet()
        for name, part in parts.items():
            patch.setattr(module, name, part)
        patch.setattr(module, "Server", self.servers.server)
        patch.setattr(uplink_traffic, "UplinkShares", lambda: self.shares)
        patch.setattr(tenancy, "Tenants", lambda *_: Quiet())
        patch.setattr(namespace, "inside", self.servers.inside)
        self.kernel = Kernel(INN_ID, directory / "switches")
