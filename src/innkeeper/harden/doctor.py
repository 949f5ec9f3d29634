"""The doctor: judges the facts of a host, purely, and gives every finding its remedy."""

from __future__ import annotations

import re

from innkeeper.harden.facts import HostFacts
from innkeeper.model.sizes import GIB, MIB, format_size
from innkeeper.model.views import Check
from innkeeper.network.features import FEATURES, REMEDY, lacking

_QEMU_MINIMUM = 9
_TOOL_PACKAGES = {
    "qemu-system-x86_64": "qemu-system-x86",
    "qemu-img": "qemu-utils",
    "nft": "nftables",
    "dnsmasq": "dnsmasq-base",
    "ip": "iproute2",
    "setpriv": "util-linux",
    "swtpm": "swtpm",
}
_OPTIONAL_TOOLS = {"swtpm": "guests cannot have a TPM"}
_SERVICES = {("udp", 67): "DHCP", ("udp", 53): "name service", ("tcp", 53): "name service"}
_NOT_BEFORE = 1_760_000_000
"""October 2025: a clock that shows an earlier time is wrong for certain."""


def examine(facts: HostFacts) -> list[Check]:
    """Every check, the essential ones first."""
    checks = [
        _root(facts),
        *_tools(facts),
        _qemu(facts),
        *_devices(facts),
        *_kernel(facts),
        *_features(facts),
        _disk(facts),
        _memory(facts),
        _clock(facts),
        _accelerator(facts),
        _cgroups(facts),
        *_ports(facts),
        *_services(facts),
        *_foreign(facts),
        *_switches(facts),
        *_host_firewall(facts),
        *_pool(facts),
        *_qos(facts),
        *_journal(facts),
    ]
    return sorted(checks, key=lambda check: not check.essential)


def essential(checks: list[Check]) -> list[Check]:
    """The findings without whose remedy an inn cannot run."""
    return [check for check in checks if check.essential and check.state == "failed"]


def _root(facts: HostFacts) -> Check:
    if facts.is_root:
        return Check(name="root", state="ok", detail="runs as root", essential=True)
    return Check(
        name="root",
        state="failed",
        detail="does not run as root",
        cause="bridges, taps, firewall rules and the guests' own uids need it",
        remedy="run it with sudo",
        essential=True,
    )


def _tools(facts: HostFacts) -> list[Check]:
    checks = []
    for tool, version in facts.tools.items():
        optional = _OPTIONAL_TOOLS.get(tool)
        if version is not None:
            checks.append(Check(name=f"tool {tool}", state="ok", detail=version, essential=not optional))
        else:
            checks.append(
                Check(
                    name=f"tool {tool}",
                    state="warning" if optional else "failed",
                    detail="is not installed",
                    cause=optional or "guests cannot run without it",
                    remedy=f"run 'make setup', or: apt install {_TOOL_PACKAGES[tool]}",
                    essential=not optional,
                )
            )
    return checks


def _qemu(facts: HostFacts) -> Check:
    version = facts.tools.get("qemu-system-x86_64") or ""
    number = re.search(r"version (\d+)\.", version)
    if number and int(number[1]) >= _QEMU_MINIMUM:
        return Check(name="qemu version", state="ok", detail=version, essential=True)
    return Check(
        name="qemu version",
        state="failed",
        detail=version or "unknown",
        cause=f"QEMU before {_QEMU_MINIMUM} corrupts a guest's memory when it is moved without KVM",
        remedy="run 'make setup': it installs QEMU from Debian's backports",
        essential=True,
    )


def _devices(facts: HostFacts) -> list[Check]:
    tun = facts.devices.get("/dev/net/tun", False)
    checks = [
        Check(
            name="device /dev/net/tun",
            state="ok" if tun else "failed",
            detail="can be used" if tun else "cannot be opened",
            cause=None if tun else "guests' network cards are taps",
            remedy=None if tun else "modprobe tun; in a container, pass the device in",
            essential=True,
        )
    ]
    if not facts.devices.get("/dev/vhost-net", False):
        checks.append(
            Check(
                name="device /dev/vhost-net",
                state="warning",
                detail="is not there",
                cause="packets of guests pass through QEMU instead of the kernel, which is slower",
                remedy="modprobe vhost_net",
            )
        )
    return checks


def _kernel(facts: HostFacts) -> list[Check]:
    checks = []
    for part in ("bridge", "nf_tables"):
        there = facts.kernel_parts.get(part, False)
        checks.append(
            Check(
                name=f"kernel {part}",
                state="ok" if there else "failed",
                detail=f"kernel {facts.kernel} {'has' if there else 'lacks'} it",
                remedy=None if there else REMEDY,
                essential=True,
            )
        )
    return checks


def _features(facts: HostFacts) -> list[Check]:
    """What the switch needs of the kernel for one thing or another."""
    checks = []
    for feature in FEATURES:
        missing = lacking(feature, facts.kernel_parts)
        checks.append(
            Check(
                name=f"kernel {feature.name}",
                state="warning" if missing else "ok",
                detail=f"kernel {facts.kernel} " + (f"lacks {', '.join(missing)}" if missing else "has it"),
                cause=f"{feature.need}; {feature.still}" if missing else None,
                remedy=REMEDY if missing else None,
            )
        )
    return checks


def _disk(facts: HostFacts) -> Check:
    free = facts.state_free_bytes
    detail = f"{format_size(free)} of {format_size(facts.state_total_bytes)} are free where the state is"
    if free < 2 * GIB and not facts.founded:  # one that is full must still start, or nothing could be removed from it
        return Check(
            name="disk space",
            state="failed",
            detail=detail,
            cause="the fabric needs room for its log and for what guests write",
            remedy="free space, or put the inn elsewhere with --state-dir",
            essential=True,
        )
    if free < 10 * GIB or free < facts.state_total_bytes // 20:
        remedy = "free space soon: remove disks, snapshots or images, or give its file system more"
        return Check(name="disk space", state="warning", detail=detail, remedy=remedy, essential=True)
    return Check(name="disk space", state="ok", detail=detail, essential=True)


def _memory(facts: HostFacts) -> Check:
    detail = f"{format_size(facts.memory_available_bytes)} of {format_size(facts.memory_total_bytes)} are available"
    if facts.memory_available_bytes < 256 * MIB:
        return Check(
            name="memory",
            state="failed",
            detail=detail,
            cause="the daemon and the fabric alone need about 200 MiB",
            remedy="end programs, or add memory",
            essential=True,
        )
    if facts.memory_available_bytes < GIB:
        remedy = "only small guests will fit; end programs, or add memory"
        return Check(name="memory", state="warning", detail=detail, remedy=remedy, essential=True)
    return Check(name="memory", state="ok", detail=detail, essential=True)


def _clock(facts: HostFacts) -> Check:
    if facts.unix_time < _NOT_BEFORE:
        return Check(
            name="clock",
            state="failed",
            detail="shows a time in the past",
            cause="retention of backups goes by time",
            remedy="set it, and run a time service such as systemd-timesyncd or chrony",
        )
    if facts.clock_synchronised is False:
        return Check(
            name="clock",
            state="warning",
            detail="is not synchronised",
            cause="retention of backups goes by time",
            remedy="run a time service such as systemd-timesyncd or chrony",
        )
    known = "is synchronised" if facts.clock_synchronised else "shows a plausible time"
    return Check(name="clock", state="ok", detail=known)


def _accelerator(facts: HostFacts) -> Check:
    if facts.accelerator == "kvm":
        return Check(name="kvm", state="ok", detail="a kernel was booted with it")
    there = facts.devices.get("/dev/kvm", False)
    cause = "/dev/kvm opens but a probe kernel does not boot with it" if there else "there is no usable /dev/kvm"
    remedy = "enable virtualisation in the firmware, or nested virtualisation where this host is itself a guest"
    if facts.accelerator is None:
        cause, remedy = "it has not been probed yet", "start the inn: 'inn up' probes it by booting a kernel"
    detail = "guests run emulated (TCG), many times slower"
    return Check(name="kvm", state="warning", detail=detail, cause=cause, remedy=remedy)


def _cgroups(facts: HostFacts) -> Check:
    return Check(name="cgroups", state="ok", detail=f"version {facts.cgroup_version} is in use")


def _ports(facts: HostFacts) -> list[Check]:
    checks = []
    for protocol, port in facts.wanted_ports:
        holders = [one for one in facts.listeners if one.protocol == protocol and one.port == port]
        if not holders:
            checks.append(Check(name=f"port {protocol}/{port}", state="ok", detail="is free for its forward"))
        for one in holders:
            checks.append(
                Check(
                    name=f"port {protocol}/{port}",
                    state="warning",
                    detail=f"is held by {one.process} (pid {one.pid}) on {one.address}",
                    cause="a forward from this port takes the traffic that the process expects",
                    remedy=f"let {one.process} listen elsewhere, or forward from another port",
                )
            )
    return checks


def _services(facts: HostFacts) -> list[Check]:
    """The ports that the switches' own DHCP and DNS need on their gateways."""
    checks = []
    for one in facts.listeners:
        service = _SERVICES.get((one.protocol, one.port))
        taken = [address for bridge, address in facts.gateways if one.takes(address, bridge)]
        everywhere = one.everywhere and one.device is None
        if service is None or not (taken or everywhere):
            continue
        where = "every address" if everywhere else ", ".join(taken)
        serves = f"bind {one.process} to the addresses that it serves" if everywhere else f"let {one.process} leave it"
        checks.append(
            Check(
                name=f"port {one.protocol}/{one.port}",
                state="warning",
                detail=f"is held by {one.process} (pid {one.pid}) on {where}",
                cause=f"the switches' own {service} cannot answer on their gateways then",
                remedy=serves,
            )
        )
    return checks


def _foreign(facts: HostFacts) -> list[Check]:
    if not facts.foreign_drops:
        return [Check(name="firewall", state="ok", detail="no other policy drops the guests' traffic")]
    return [
        Check(
            name="firewall",
            state="warning",
            detail=finding,
            cause="it is not Innkeeper's, so it is left alone",
            remedy=remedy,
        )
        for finding, remedy in facts.foreign_drops
    ]


def _switches(facts: HostFacts) -> list[Check]:
    return [
        Check(
            name=f"switch {name}",
            state="warning",
            detail=finding,
            remedy=f"see 'inn switch show {name}'; it is put right by itself once the cause is gone",
        )
        for name, finding in facts.switch_findings
    ]


def _host_firewall(facts: HostFacts) -> list[Check]:
    return [
        Check(
            name="host firewall",
            state="warning",
            detail=finding,
            remedy="see 'inn host firewall show'; 'inn host firewall set' changes it, --disabled opens the host",
        )
        for finding in facts.firewall_findings
    ]


def _pool(facts: HostFacts) -> list[Check]:
    if facts.pool_problem is None:
        return []
    return [
        Check(
            name="pool",
            state="failed",
            detail="the disks' data is not all as it should be",
            cause=facts.pool_problem,
            remedy="see 'inn pool ls' and 'inn pool show'; 'inn pool scrub' repairs what it can; look at the medium",
        )
    ]


def _qos(facts: HostFacts) -> list[Check]:
    return [
        Check(
            name="qos",
            state="warning",
            detail=alarm,
            cause="the pool has no more to give, though others are held back",
            remedy="lower the minimum, bound other disks with a maximum, or give the pool faster devices",
        )
        for alarm in facts.qos_alarms
    ]


def _journal(facts: HostFacts) -> list[Check]:
    if facts.damaged_journal is None:
        return []
    return [
        Check(
            name="journal",
            state="warning",
            detail="a journal of events could not be read; a new one was begun",
            cause=f"the old one is {facts.damaged_journal}",
            remedy="look at the disk's health, then remove that file",
        )
    ]
