"""Namespaces, gateways and uplinks of tenants, made and kept as planned. Blocking; lives in the network's thread."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from typing import Any

from innkeeper.model.problems import Failed, Problem
from innkeeper.network.links import write_sysctl
from innkeeper.network.namespace import NAMESPACES, inside
from innkeeper.network.nft import Nft
from innkeeper.network.overlay_links import batch, read
from innkeeper.network.tenant import (
    GATEWAY_PREFIX,
    NAMESPACE_PREFIX,
    TABLE,
    UPLINK,
    UPLINK_METRIC,
    UPLINK_PREFIX,
    Gateway,
    Tenant,
    Uplink,
    ruleset,
)
from innkeeper.system import process

_SETTINGS = {
    "net/ipv4/ip_forward": "1",
    "net/ipv4/conf/all/send_redirects": "0",
    "net/ipv4/conf/default/send_redirects": "0",
    "net/ipv6/conf/all/disable_ipv6": "1",
    "net/ipv6/conf/default/disable_ipv6": "1",
}


class Tenants:
    """Raises ``Failed`` (``link.refused``, ``nft.refused``, ``network.namespace``)."""

    def __init__(self, inn_id: str) -> None:
        self._inn_id = inn_id

    def ensure(self, tenant: Tenant, gateway: Gateway) -> list[str]:
        """Make the tenant's namespace and that gateway be as planned; its bridge stands. Returns what was done."""
        done = self._ensure_namespace(tenant.namespace)
        done += self._ensure_gateway(tenant.namespace, gateway)
        return done + self.settle(tenant)

    def settle(self, tenant: Tenant) -> list[str]:
        """Make what the tenant's subnets share be so: its rules, its way out."""
        done = []
        with inside(tenant.namespace):
            if _ensure_rules(tenant):
                done.append(f"load the rules of namespace {tenant.namespace}")
        name = UPLINK_PREFIX + tenant.namespace.removeprefix(NAMESPACE_PREFIX)
        if tenant.uplink is None:
            return done + self._remove_links([name])
        return done + self._ensure_uplink(tenant.namespace, tenant.uplink)

    def remove_gateway(self, gateway: Gateway) -> list[str]:
        return self._remove_links([gateway.device])

    def remove(self, namespace: str) -> list[str]:
        """Remove a tenant's namespace with all that is in it; nothing to do when there is none."""
        done = self._remove_links([UPLINK_PREFIX + namespace.removeprefix(NAMESPACE_PREFIX)])
        if not (NAMESPACES / namespace).exists():
            return done
        process.run(["ip", "netns", "del", namespace])
        return [*done, f"remove namespace {namespace}"]

    def sweep(self, tenants: Iterable[Tenant]) -> list[str]:
        """Remove the inn's namespaces, gateways and uplinks that are not of ``tenants``."""
        wanted = list(tenants)
        kept = {gateway.device for tenant in wanted for gateway in tenant.gateways}
        kept |= {tenant.uplink.device for tenant in wanted if tenant.uplink}
        mine = (GATEWAY_PREFIX + self._inn_id, UPLINK_PREFIX + self._inn_id)
        done = self._remove_links(name for name in _links() if name.startswith(mine) and name not in kept)
        spaces = NAMESPACES.glob(f"{NAMESPACE_PREFIX}{self._inn_id}*") if NAMESPACES.is_dir() else ()
        names = {tenant.namespace for tenant in wanted}
        for path in sorted(spaces):
            done += self.remove(path.name) if path.name not in names else []
        return done

    def _remove_links(self, names: Iterable[str]) -> list[str]:
        done = []
        present = _links()
        for name in sorted(names):
            if name in present:
                batch("ip", [f"link del dev {name}"])
                done.append(f"remove {name}")
        return done

    def _ensure_namespace(self, name: str) -> list[str]:
        done = []
        if (NAMESPACES / name).exists():
            try:
                with inside(name):
                    pass
            except Problem:  # a name that is left over from a namespace that is gone
                process.run(["ip", "netns", "del", name])
        if not (NAMESPACES / name).exists():
            process.run(["ip", "netns", "add", name])
            done.append(f"make namespace {name}")
        with inside(name):
            changed = [key for key, value in _SETTINGS.items() if write_sysctl(key, value, optional=True)]
            if "UP" not in _link("lo")["flags"]:
                batch("ip", ["link set dev lo up"])
        if changed and not done:
            done.append(f"set up namespace {name}")
        return done

    def _ensure_gateway(self, namespace: str, gateway: Gateway) -> list[str]:
        done = self._ensure_wire(namespace, gateway.device, gateway.inner)
        link = _link(gateway.device)
        flags = link.get("linkinfo", {}).get("info_slave_data", {})
        stands = (link.get("master"), link.get("mtu"), "UP" in link["flags"], flags.get("learning"))
        if stands != (gateway.bridge, gateway.mtu, True, False):
            write_sysctl(f"net/ipv6/conf/{gateway.device}/disable_ipv6", "1", optional=True)
            batch(
                "ip",
                [
                    f"link set dev {gateway.device} mtu {gateway.mtu} master {gateway.bridge}",
                    f"link set dev {gateway.device} type bridge_slave learning off",
                    f"link set dev {gateway.device} up",
                ],
            )
            done = done or [f"plug gateway {gateway.device} into {gateway.bridge}"]
        entries = [f"fdb replace {gateway.mac} dev {gateway.device} master static"]
        told = {one["mac"] for one in read("bridge", "fdb", "show", "dev", gateway.device) if one["state"] == "static"}
        if told != {gateway.mac}:
            batch("bridge", [f"fdb del {mac} dev {gateway.device} master" for mac in told - {gateway.mac}] + entries)
            done = done or [f"set the mac of gateway {gateway.device}"]
        with inside(namespace):
            held = f"{gateway.address}/{gateway.length}"
            if _ensure_end(gateway.inner, held, mtu=gateway.mtu, mac=gateway.mac):
                done = done or [f"give {gateway.inner} of {namespace} the address {held}"]
            if _ensure_routes(gateway):
                done.append(f"set the routes of {gateway.inner} in {namespace}")
        return done

    def _ensure_uplink(self, namespace: str, uplink: Uplink) -> list[str]:
        done = self._ensure_wire(namespace, uplink.device, UPLINK)
        write_sysctl(f"net/ipv6/conf/{uplink.device}/disable_ipv6", "1", optional=True)
        if _ensure_end(uplink.device, f"{uplink.host}/30"):
            done = done or [f"give {uplink.device} the address {uplink.host}"]
        with inside(namespace):
            if _ensure_end(UPLINK, f"{uplink.tenant}/30"):
                done = done or [f"give the uplink of {namespace} the address {uplink.tenant}"]
            routes = read("ip", "-4", "route", "show", "default", "dev", UPLINK)
            if [(one.get("gateway"), one.get("metric")) for one in routes] != [(uplink.host, UPLINK_METRIC)]:
                batch("ip", [f"route replace default via {uplink.host} dev {UPLINK} metric {UPLINK_METRIC}"])
                done = done or [f"set the way out of {namespace}"]
        return done

    def _ensure_wire(self, namespace: str, device: str, inner: str) -> list[str]:
        """A pair of devices, one of them in the namespace."""
        if device in _links():
            with inside(namespace):
                whole = inner in _links()
            if whole:
                return []
            self._remove_links([device])
        batch("ip", [f"link add {device} type veth peer name {inner} netns {namespace}"])
        return [f"wire {device} to namespace {namespace}"]


def _links() -> dict[str, Any]:
    return {link["ifname"]: link for link in read("ip", "-d", "link", "show")}


def _link(device: str) -> Any:
    """A device that was there a moment ago."""
    if (link := _links().get(device)) is None:
        raise Failed("link.refused", f"{device} is gone again", remedy="try again in a moment")
    return link


def _ensure_end(device: str, address: str, *, mtu: int | None = None, mac: str | None = None) -> bool:
    """A device of this namespace that is up and has exactly that address; True when that changed it."""
    link = _link(device)
    shown = read("ip", "-4", "addr", "show", "dev", device)
    held = {f"{one['local']}/{one['prefixlen']}" for each in shown for one in each.get("addr_info", ())}
    lines = []
    if mac is not None and link.get("address") != mac:
        lines.append(f"link set dev {device} address {mac}")
    if mtu is not None and link.get("mtu") != mtu:
        lines.append(f"link set dev {device} mtu {mtu}")
    if "UP" not in link["flags"]:
        lines.append(f"link set dev {device} up")
    lines += [f"addr del {one} dev {device}" for one in sorted(held - {address})]
    lines += [f"addr add {address} dev {device}"] if address not in held else []
    batch("ip", lines)
    return bool(lines)


def _ensure_routes(gateway: Gateway) -> bool:
    """The customer routes by one gateway; True when any was changed."""
    shown = read("ip", "-4", "route", "show", "dev", gateway.inner, "proto", "static")
    held = {
        (
            str(ipaddress.ip_network(one["dst"].replace("default", "0.0.0.0/0"))),
            one.get("gateway"),
            one.get("metric", 0),
        )
        for one in shown
    }
    wanted = {(route.prefix, route.next_hop, route.metric) for route in gateway.routes}
    text = "route {} {} via {} dev {} proto static metric {}"
    lines = [text.format("del", *one[:2], gateway.inner, one[2]) for one in sorted(held - wanted)]
    lines += [text.format("add", *one[:2], gateway.inner, one[2]) for one in sorted(wanted - held)]
    batch("ip", lines)
    return bool(lines)


def _ensure_rules(tenant: Tenant) -> bool:
    """The namespace's rules; True when they had to be loaded."""
    text = ruleset(tenant)
    nft = Nft()
    try:
        stands = nft.table_exists("inet", TABLE) and _facts(nft.read_text(f"list table inet {TABLE}")) == _facts(text)
        if not stands:
            nft.apply(f"add table inet {TABLE}\ndelete table inet {TABLE}\n{text}")
        return not stands
    finally:
        nft.close()


def _facts(text: str) -> tuple[list[str], list[str]]:
    """What tells one of our rulesets from another: members of its set; hooks, policies, and rules by their reasons."""
    found = []
    for line in (line.strip() for line in text.splitlines()):
        comment = re.search(r'comment "([^"]*)"', line)
        if line.startswith(("chain", "type filter", "type nat")):
            found += re.findall(r"chain \w+|hook \w+|policy \w+", line)
        elif line and not line.startswith(("table", "set", "type", "elements", "}")):
            found.append(comment[1] if comment else line)
    return sorted(re.findall(r"gw-\w+", text)), found
