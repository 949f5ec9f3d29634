"""What the inn itself costs: starting a guest, and the memory of its processes."""

from __future__ import annotations

import json
import os
import re
import socket
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from uuid import uuid4

from bench.report import Context, Row, at_most
from bench.serve import Fabric
from innkeeper.client.inn import InnClient
from innkeeper.model.requests import VmCreate
from innkeeper.model.resources import Task
from innkeeper.system import process
from innkeeper.system.paths import Paths

GUESTS = 10
MEMORY_LIMIT_MIB = 200.0
START_LIMIT_MS = 100.0
_MIB = 1 << 20
_ROUNDS = 5
_SETTLE_S = 5.0


def _inn(paths_of: Path, *arguments: str) -> None:
    command = [sys.executable, "-m", "innkeeper", *arguments, "--state-dir", str(paths_of)]
    process.run(command, timeout_s=120)


@contextmanager
def inn(work: Path) -> Iterator[Paths]:
    """A whole inn in ``work``."""
    state = work / "inn"
    _inn(state, "up")
    try:
        yield Paths.open(state)
    finally:
        _inn(state, "down", "--force")


def memory_mib(paths: Paths, name: str) -> float:
    """Proportional set size of the inn's process ``name``."""
    pid = int((paths.run / f"{name}.pid").read_text())
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    found = re.search(r"^Pss:\s+(\d+) kB", rollup, re.MULTILINE)
    assert found is not None
    return int(found[1]) / 1024


def _done(client: InnClient, task: object) -> None:
    assert isinstance(task, Task)
    client.wait(task)


def _qemu_of(name: str, vm_id: str) -> list[str]:
    """The command line of a running guest's QEMU."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                arguments = (entry / "cmdline").read_bytes().decode().split("\0")[:-1]
            except (OSError, UnicodeDecodeError):
                continue
            if vm_id in arguments and any(each.startswith(f"guest={name},") for each in arguments):
                return arguments
    raise RuntimeError(f"{name} has no QEMU")


def _by_hand(work: Path, arguments: list[str], exports: dict[str, str]) -> float:
    """Milliseconds from the start of QEMU by this command line until its monitor says that it runs."""
    with ExitStack() as closing:
        passed: list[int] = []
        monitor = work / "monitor.sock"
        command = []
        for argument in arguments:
            if match := re.search(r"^socket,id=(\w+),fd=(\d+),", argument):
                listener = closing.enter_context(socket.socket(socket.AF_UNIX))
                path = work / f"{match[1]}.sock"
                path.unlink(missing_ok=True)
                listener.bind(str(path))
                listener.listen(1)
                passed.append(listener.fileno())
                argument = argument.replace(f"fd={match[2]},", f"fd={listener.fileno()},")
            elif argument.startswith("unix:") and argument.endswith("vnc.sock"):
                argument = f"unix:{work}/vnc.sock"
            for old, new in exports.items():
                argument = argument.replace(old, new)
            command.append(argument)
        began = time.perf_counter()
        qemu = process.spawn(command, pass_fds=passed, log=work / "qemu.log")
        try:
            talk = closing.enter_context(socket.socket(socket.AF_UNIX))
            talk.settimeout(30)
            talk.connect(str(monitor))
            lines = closing.enter_context(talk.makefile("rw"))
            lines.readline()
            for order in ("qmp_capabilities", "cont", "query-status"):
                lines.write(json.dumps({"execute": order}) + "\n")
                lines.flush()
                while "return" not in (answer := json.loads(lines.readline())):
                    if "error" in answer:
                        raise RuntimeError(f"QEMU refuses {order}: {answer}")
            assert answer["return"]["status"] == "running", answer
            return 1000 * (time.perf_counter() - began)
        finally:
            qemu.kill()
            qemu.wait()


def _exports(paths: Paths, running: Fabric, arguments: list[str]) -> dict[str, str]:
    """New attachments, for this user, of the disks that a stopped guest's command line names."""
    disks = [str(disk["id"]) for disk in running.ask("disk_ls")]
    old = re.findall(r'"export": "([0-9a-f-]+)"', "\n".join(arguments))
    assert len(old) == len(disks), "the inn has other disks than the guest's"
    made = {}
    for export, disk in zip(old, disks, strict=True):
        made[export] = str(uuid4())
        running.ask("attach", made[export], disk_id=disk, role="writer", uid=os.getuid())
    return made


def starts(context: Context) -> list[Row]:
    """Start of a guest at the API and by the CLI, beside the same QEMU by hand."""
    api, cli, hand = [], [], []
    with inn(context.work) as paths, InnClient(paths.api_socket) as client:
        task = client.vms.create(VmCreate(name="start", disk_bytes=1 << 30, memory_bytes=256 * _MIB, start=False))
        _done(client, task)
        vm_id = client.vms.show("start").id
        for _ in range(_ROUNDS):
            began = time.perf_counter()
            _done(client, client.vms.start("start"))
            api.append(1000 * (time.perf_counter() - began))
            arguments = _qemu_of("start", vm_id)
            _done(client, client.vms.poweroff("start"))
            began = time.perf_counter()
            _inn(paths.state, "vm", "start", "start")
            cli.append(1000 * (time.perf_counter() - began))
            _done(client, client.vms.poweroff("start"))
        with Fabric(paths) as running:
            exports = _exports(paths, running, arguments)
            hand = [_by_hand(context.work, arguments, exports) for _ in range(_ROUNDS)]
            for export in exports.values():
                running.ask("detach", export)
    at_api, at_cli, alone = (statistics.median(each) for each in (api, cli, hand))
    name, peer, goal = "start of a guest until QEMU runs", "QEMU by hand", f"<= +{START_LIMIT_MS:g} ms"
    return [
        Row(f"{name}, at the API", at_api, "ms", peer, alone, alone / at_api, goal, at_api - alone <= START_LIMIT_MS),
        Row(f"{name}, by the CLI", at_cli, "ms", peer, alone, alone / at_cli),
    ]


def memory(context: Context) -> list[Row]:
    """Memory of daemon and fabric at rest."""
    with inn(context.work) as paths, InnClient(paths.api_socket) as client:
        for number in range(GUESTS):
            request = VmCreate(name=f"guest{number}", disk_bytes=1 << 30, memory_bytes=256 * _MIB, start=False)
            _done(client, client.vms.create(request))
        time.sleep(_SETTLE_S)
        used = memory_mib(paths, "daemon") + memory_mib(paths, "fabric")
    return [at_most(f"memory of daemon and fabric, idle, {GUESTS} guests defined", used, "MiB", MEMORY_LIMIT_MIB)]


def rows(context: Context) -> list[Row]:
    """The rows of the inn itself."""
    found = []
    for part in (starts, memory):
        work = context.work / part.__name__
        work.mkdir()
        found += part(Context(work, context.quick))
    return found
