"""Putting disks, media and nics into a running guest and taking them out; each function leaves all or nothing."""

from __future__ import annotations

import asyncio
import logging
import os
from dataclasses import dataclass
from typing import Any

from innkeeper.compute import devices
from innkeeper.compute.commandline import CDROM
from innkeeper.compute.inputs import DiskInput, NbdExport, NicInput
from innkeeper.compute.launcher import open_tap
from innkeeper.compute.monitor import Monitor
from innkeeper.model.problems import Conflict, Failed, Problem

log = logging.getLogger(__name__)

_RESIZE_ATTEMPTS, _RESIZE_AGAIN_S = 40, 0.25
_ASK_AGAIN_S = 3.0
"""Guests drop an unplug request that comes while they boot; ask again this often."""


@dataclass(frozen=True, slots=True)
class _Added:
    """What was added so far, to be taken back when the next part fails."""

    monitor: Monitor
    undo: list[tuple[str, dict[str, Any]]]

    async def take_back(self) -> None:
        for command, arguments in reversed(self.undo):
            try:
                await self.monitor.command(command, arguments)
            except Problem as failed:
                log.warning("taking back after a failed attach: %s", failed)


async def _add_nodes(added: _Added, nodes: tuple[devices.Properties, devices.Properties]) -> None:
    for node in nodes:
        await added.monitor.command("blockdev-add", node, timeout_s=devices.OPEN_TIMEOUT_S + 10)
        added.undo.append(("blockdev-del", {"node-name": node["node-name"]}))


async def attach_disk(monitor: Monitor, disk: DiskInput) -> None:
    """Open the disk's export and plug it in.

    Raises ``Failed`` (``vm.qemu_refused``), ``Unavailable`` (``vm.monitor_away``, ``vm.monitor_hung``).
    """
    added = _Added(monitor, [])
    try:
        await _add_nodes(added, devices.disk_nodes(disk))
        await monitor.command("device_add", devices.disk_device(disk))
    except (Problem, asyncio.CancelledError):
        await asyncio.shield(added.take_back())
        raise


async def resize_disk(monitor: Monitor, disk_id: str, size_bytes: int) -> None:
    """Let the guest see a larger size, once its connection to the export has been dropped by the server.

    QEMU learns an export's size when it connects, and connects again at the next request, which is made here; then it
    lets the node grow to that size. Raises ``Failed`` (``vm.disk_not_grown``).
    """
    node = devices.format_node(devices.short(disk_id))
    for _ in range(_RESIZE_ATTEMPTS):
        await monitor.command("human-monitor-command", {"command-line": f'qemu-io {node} "read 0 512"'})
        try:
            await monitor.command("block_resize", {"node-name": node, "size": size_bytes})
        except Problem as refused:
            last = refused
            await asyncio.sleep(_RESIZE_AGAIN_S)
        else:
            return
    raise Failed(
        "vm.disk_not_grown",
        f"disk {disk_id} has grown, but its guest does not see it",
        cause=last.cause or last.detail,
        remedy="resize it again, or shut the guest down and start it",
    )


async def detach_disk(monitor: Monitor, disk_id: str, timeout_s: float = 30.0) -> None:
    """Ask the guest to give the disk up, then close it; what is gone already is left alone.

    Raises ``Conflict`` (``disk.busy``) when the guest keeps it for ``timeout_s``; then it stays attached.
    """
    await _unplug(monitor, devices.disk_device_id(disk_id), timeout_s)
    await _delete_nodes(monitor, devices.short(disk_id))


async def _delete_nodes(monitor: Monitor, name: str) -> None:
    present = {node["node-name"] for node in await monitor.execute("query-named-block-nodes", flat=True)}
    for node in (devices.format_node(name), devices.protocol_node(name)):
        if node in present:
            await monitor.execute("blockdev-del", node_name=node)


async def _devices(monitor: Monitor) -> set[str]:
    return {entry["name"] for entry in await monitor.execute("qom-list", path="/machine/peripheral")}


async def _unplug(monitor: Monitor, device: str, timeout_s: float) -> None:
    deleted = asyncio.Event()

    def watch(event: str, data: dict[str, Any]) -> None:
        if event == "DEVICE_DELETED" and data.get("device") == device:
            deleted.set()

    stop_watching = monitor.watch(watch)
    try:
        async with asyncio.timeout(timeout_s):
            while not deleted.is_set() and device in await _devices(monitor):
                try:
                    await monitor.execute("device_del", id=device)
                except Problem as pending:
                    log.debug("unplug of %s: %s", device, pending)
                try:
                    await asyncio.wait_for(deleted.wait(), _ASK_AGAIN_S)
                except TimeoutError:
                    continue
    except TimeoutError:
        raise Conflict(
            "disk.busy" if device.startswith("disk-") else "nic.busy",
            f"the guest did not give {device} up within {timeout_s:g} s",
            cause="it is mounted or in use there, or the guest's system does not support unplugging",
            remedy="unmount it in the guest and try again, or shut the vm down first",
        ) from None
    finally:
        stop_watching()


async def change_media(monitor: Monitor, media: NbdExport | None) -> None:
    """Put an ISO into the CD-ROM drive, in place of what is there; None empties it."""
    old = await _media_nodes(monitor)
    added = _Added(monitor, [])
    if media is not None:
        name = devices.media_name(media)
        if devices.format_node(name) in old:
            return
        await _add_nodes(added, devices.nbd_nodes(name, media, read_only=True))
    try:
        await monitor.execute("blockdev-open-tray", id=CDROM, force=True)
        if old:
            await monitor.execute("blockdev-remove-medium", id=CDROM)
        if media is not None:
            await monitor.execute("blockdev-insert-medium", id=CDROM, node_name=devices.format_node(name))
        await monitor.execute("blockdev-close-tray", id=CDROM)
    except (Problem, asyncio.CancelledError):
        await asyncio.shield(added.take_back())
        raise
    for node in old:
        await _delete_nodes(monitor, node.removeprefix(devices.format_node("")))


async def _media_nodes(monitor: Monitor) -> list[str]:
    """The format node in the CD-ROM drive, if any."""
    for block in await monitor.execute("query-block"):
        if str(block.get("qdev", "")).rpartition("/")[2] == CDROM and "inserted" in block:
            return [str(block["inserted"]["node-name"])]
    return []


async def attach_nic(monitor: Monitor, nic: NicInput) -> None:
    """Plug a card in whose tap exists. Raises like ``attach_disk``, and ``Unavailable`` (``vm.no_tap``)."""
    added = _Added(monitor, [])
    netdev = devices.netdev_id(nic.nic_id)
    try:
        descriptor = open_tap(nic.tap)
        try:
            await monitor.give(descriptor, netdev)
        finally:
            os.close(descriptor)
        await monitor.command("netdev_add", {"type": "tap", "id": netdev, "fd": netdev})
        added.undo.append(("netdev_del", {"id": netdev}))
        await monitor.command("device_add", devices.nic_device(nic))
    except (Problem, asyncio.CancelledError):
        await asyncio.shield(added.take_back())
        raise


async def detach_nic(monitor: Monitor, nic_id: str, timeout_s: float = 30.0) -> None:
    """Take a card out. Raises ``Conflict`` (``nic.busy``) when the guest keeps it."""
    await _unplug(monitor, devices.nic_device_id(nic_id), timeout_s)
    try:
        await monitor.execute("netdev_del", id=devices.netdev_id(nic_id))
    except Failed as gone:
        log.debug("the back end of nic %s is gone already: %s", nic_id, gone)
