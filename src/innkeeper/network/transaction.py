"""From what shall be to nftables transactions, and from what is to what has drifted. Pure.

An inn's rules are two tables with fixed schemas, and elements. Replacing everything and changing from one set of
elements to another lead to the same rules.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from innkeeper.network import (
    acl_rules,
    elements as standing,
    host_firewall,
    meters,
    minimums,
    overlay_plan,
    tenant,
    vlans,
    ways,
)
from innkeeper.network.nat import inet_schema, switch_elements
from innkeeper.network.policy import PortPolicy, SwitchPolicy
from innkeeper.network.ruleset import (
    COUNTED,
    RATES,
    TAP_PREFIX,
    Element,
    bridge_elements,
    bridge_schema,
    hexadecimal,
    port_elements,
)
from innkeeper.network.sources import listed_ports, listed_prefix

FAMILIES = ("bridge", "inet")
_RAW_SETS = ("nd_target", "nd_link", "ethertypes", "short_way")
_LEAST_BURST = 20
_CHAIN = re.compile(r"^  chain (\w+)", re.MULTILINE)
_COMMENT = re.compile(r'comment "([^"]*)"$')


@dataclass(frozen=True, slots=True)
class Schema:
    """The fixed text of an inn's two tables. A chain named after its hash marks which schema a table was made from."""

    inn_id: str
    logs: bool = True
    """Whether rules of lists can log; where the kernel cannot, the rest stands all the same."""

    @property
    def table(self) -> str:
        return f"inn_{self.inn_id}"

    @property
    def log_group(self) -> int | None:
        """The group of the kernel's packet log that this inn's rules log to: its own, as one program has a group."""
        return log_group(self.inn_id) if self.logs else None

    def text(self, family: str) -> str:
        """The body of a table with all that may stand in it."""
        if family != "bridge":
            return inet_schema()
        parts = (meters.schema(), overlay_plan.schema(), minimums.schema(), acl_rules.SCHEMA, vlans.SCHEMA)
        return bridge_schema(self.inn_id) + "".join(parts)

    def body(self, family: str) -> str:
        """The body of a table with what always stands in it."""
        text = self.text(family)
        return f"{standing.split(text)[0]}  chain {_mark(text)} {{ }}\n"

    def hooks(self, family: str) -> dict[str, str]:
        """The base chains of a table that stand while elements need them, by name."""
        return standing.split(self.text(family))[1]

    def rules(self, family: str) -> list[tuple[str, str]]:
        """The (chain, comment) of every rule in order of chains' first appearance: what tells that none was touched."""
        return [(chain, comment) for chain, _, comment in _rules_with_text(self.text(family))]


def compile_elements(
    switches: Iterable[tuple[SwitchPolicy, Iterable[PortPolicy]]], of_host: frozenset[Element] = frozenset()
) -> frozenset[Element]:
    """All elements for those switches with their ports, and ``of_host``, those of the host's firewall."""
    elements = set(of_host)
    for switch, ports in switches:
        elements |= switch_elements(switch) | bridge_elements(switch)
        elements |= vlans.outside_elements(switch)
        elements |= overlay_plan.overlay_elements(switch) | tenant.tenant_elements(switch)
        for port in ports:
            elements |= elements_of(switch, port)
    return frozenset(elements) | standing.hooks({element.container for element in elements})


def elements_of(switch: SwitchPolicy, port: PortPolicy) -> frozenset[Element]:
    """All elements that stand for a port."""
    of_vlans = vlans.vlan_elements(switch, port)
    own = port_elements(switch, port) | minimums.minimum_elements(switch, port) | of_vlans
    return own | meters.traffic_elements(port) | ways.way_elements(port, bool(of_vlans))


def replace(schema: Schema, elements: Iterable[Element]) -> str:
    """One transaction that makes both tables anew, whatever stood there before."""
    lines = []
    for family in FAMILIES:
        table = f"{family} {schema.table}"
        lines += [f"add table {table}", f"delete table {table}", f"table {table} {{", schema.body(family) + "}"]
    return "\n".join(lines) + "\n" + _lines("add", schema, elements)


def change(schema: Schema, old: frozenset[Element], new: frozenset[Element]) -> str:
    """One transaction from ``old`` elements to ``new`` in tables that stand; empty when nothing differs."""
    return _lines("delete", schema, old - new) + _lines("add", schema, new - old)


class Uses:
    """How many elements lead to each body of chains: one is made with its first use and goes with its last."""

    def __init__(self, elements: Iterable[Element]) -> None:
        self._counts = self._count(elements)

    @staticmethod
    def _count(elements: Iterable[Element]) -> Counter[str]:
        return Counter(name for each in elements if (name := acl_rules.body_of(each)) is not None)

    def settle(self, gone: Iterable[Element], come: Iterable[Element]) -> tuple[frozenset[Element], frozenset[Element]]:
        """``gone`` without the bodies that others use still, ``come`` without those that stand."""
        gone, come = frozenset(gone), frozenset(come)
        after = self._counts.copy() if any(each.container == acl_rules.BODY for each in gone) else Counter[str]()
        after.subtract(self._count(gone))
        after.update(self._count(come))
        kept = {each for each in gone if each.container == acl_rules.BODY and after[each.key[0]] > 0}
        stand = {each for each in come if each.container == acl_rules.BODY and self._counts[each.key[0]] > 0}
        return gone - kept, come - stand

    def follow(self, gone: Iterable[Element], come: Iterable[Element]) -> None:
        """That change has been made."""
        self._counts.subtract(self._count(gone))
        self._counts.update(self._count(come))
        self._counts = +self._counts


def remove(schema: Schema) -> str:
    """One transaction after which neither table exists."""
    return "".join(f"add table {family} {schema.table}\ndelete table {family} {schema.table}\n" for family in FAMILIES)


def listing(elements: Iterable[Element]) -> list[str]:
    """The elements as sorted readable lines, for differences shown to people."""
    found = []
    for element in elements:
        if element.container == acl_rules.BODY:
            shown = _rules_with_text(element.value[0])
            found += [f"{element.family} {chain}: {rule}" for chain, rule, _ in shown]
        else:
            found.append(f"{element.family} {element.container}: {_element(element)}")
    return sorted(found)


def _lines(verb: str, schema: Schema, elements: Iterable[Element]) -> str:
    table = schema.table
    hooks: list[tuple[str, str]] = []
    groups: dict[tuple[str, str], list[Element]] = defaultdict(list)
    objects: list[Element] = []
    bodies: list[Element] = []
    for element in elements:
        if element.container == acl_rules.BODY:
            bodies.append(element)
        elif element.container == meters.COUNTER:
            objects.append(element)
        elif element.container == standing.HOOK:
            hooks.append((element.family, element.key[0]))
        else:
            groups[element.family, element.container].append(element)
    counters = "".join(f"{verb} counter {each.family} {table} {each.key[0]}\n" for each in sorted(objects))
    written = _element if verb == "add" else _deleted
    changed = "".join(
        f"{verb} element {family} {table} {container} {{ {', '.join(map(written, sorted(members)))} }}\n"
        for (family, container), members in sorted(groups.items())
    )
    if verb == "delete":
        unhooked = "".join(f"delete chain {family} {table} {name}\n" for family, name in sorted(hooks))
        return unhooked + changed + counters + _without(table, sorted(bodies))
    texts_of_bodies = [acl_rules.with_group(each.value[0], schema.log_group) for each in sorted(bodies)]
    made = "".join(f"table bridge {table} {{\n{text}}}\n" for text in texts_of_bodies)
    texts = {family: schema.hooks(family) for family in sorted({family for family, _ in hooks})}
    hooked = "".join(f"table {family} {table} {{\n{texts[family][name]}}}\n" for family, name in sorted(hooks))
    return counters + made + changed + hooked


def _without(table: str, bodies: list[Element]) -> str:
    """The lines that take bodies away."""
    chains, sets = acl_rules.members(bodies, "chain"), acl_rules.members(bodies, "set")
    return (
        "".join(f"flush chain bridge {table} {chain}\n" for chain in chains)
        + "".join(f"delete chain bridge {table} {chain}\n" for chain in chains)
        + "".join(f"delete set bridge {table} {name}\n" for name in sets)
    )


def _deleted(element: Element) -> str:
    return element.key[0] if element.container in RATES else _element(element)


def _element(element: Element) -> str:
    key = " . ".join(element.key)
    if host_firewall.begins_with_a_name(element.container):
        key = " . ".join((f'"{element.key[0]}"', *element.key[1:]))
    if element.container in RATES:
        rate = int(element.value[0])
        return f"{key} limit rate over {rate}/second burst {max(_LEAST_BURST, rate // 4)} packets"
    if element.container.startswith("meter_"):
        return f'{key} : "{element.value[0]}"'
    return f"{key} : {' . '.join(element.value)}" if element.value else key


def _rules_with_text(body: str) -> list[tuple[str, str, str]]:
    """The (chain, rule, comment) of every rule in a table's text, in order of chains' first appearance."""
    found: list[tuple[str, str, str]] = []
    chain = ""
    for line in body.replace("\\\n", "").splitlines():
        if started := _CHAIN.match(line):
            chain = started[1]
        elif comment := _COMMENT.search(line):
            found.append((chain, line.strip(), comment[1]))
    return found


def log_group(inn_id: str) -> int:
    """The group of the kernel's packet log for the inn of that id."""
    return 1024 + int(hashlib.sha256(inn_id.encode()).hexdigest()[:8], 16) % 64_000


def _mark(text: str) -> str:
    return f"schema_{hashlib.sha256(text.encode()).hexdigest()[:12]}"


# --- reading back ----------------------------------------------------------------------------------------------------


def dynamic(holder: Mapping[str, Any]) -> bool:
    """Whether a listed set is filled by packets, not by us."""
    return "timeout" in holder.get("flags", ())


def read_elements(family: str, objects: Iterable[Mapping[str, Any]]) -> frozenset[Element]:
    """The elements in a table's JSON listing (libnftables-json(5)), without those of dynamic sets and bodies."""
    elements = []
    for item in objects:
        if "chain" in item and item["chain"]["name"] in standing.chains_of(family):
            elements.append(Element(family, standing.HOOK, (item["chain"]["name"],)))
        if "counter" in item and "/" in item["counter"]["name"]:
            elements.append(Element(family, meters.COUNTER, (item["counter"]["name"],)))
        holder = item.get("set") or item.get("map")
        if holder is None or dynamic(holder):
            continue
        name = holder["name"]
        for entry in holder.get("elem", ()):
            key, value = entry if "map" in item else (entry, None)
            if name in RATES:
                value = entry["elem"]["limit"]["rate"]
            fields = tuple(_field(name, part) for part in _parts(key))
            elements.append(Element(family, name, fields, tuple(_value(part) for part in _parts(value))))
    return frozenset(elements)


def schema_stands(
    schema: Schema, family: str, objects: Iterable[Mapping[str, Any]], bodies: Iterable[Element] = ()
) -> bool:
    """Whether a table's JSON listing shows this schema and these bodies with every rule in its place and none added.

    Chains that stand only while elements need them may be there, or be missing whole.
    """
    text = schema.body(family) + "".join(each.value[0] for each in sorted(bodies) if each.family == family)
    chains: dict[str, Mapping[str, Any]] = {}
    rules: dict[str, list[str]] = defaultdict(list)
    for item in objects:
        if "chain" in item:
            chains[item["chain"]["name"]] = item["chain"]
        elif "rule" in item:
            rules[item["rule"]["chain"]].append(item["rule"].get("comment", ""))
    wanted: dict[str, list[str]] = defaultdict(list)
    text += "".join(chain for name, chain in schema.hooks(family).items() if name in chains)
    for chain, _, comment in _rules_with_text(text):
        wanted[chain].append(comment)
    return rules == wanted and set(chains) == set(_CHAIN.findall(text))


def read_counters(objects: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, int]]:
    """Tap -> guard -> packets dropped, from the bridge table's JSON listing."""
    guard_of = {name: guard for guard, names in COUNTED.items() for name in names}
    dropped: dict[str, dict[str, int]] = defaultdict(lambda: dict.fromkeys(COUNTED, 0))
    for item in objects:
        guard = guard_of.get(item.get("set", {}).get("name", ""))
        if guard is None:
            continue
        for entry in item["set"].get("elem", ()):
            element = entry["elem"]
            dropped[element["val"]][guard] += element["counter"]["packets"]
    return dict(dropped)


def _parts(value: Any) -> list[Any]:
    if value is None:
        return []
    if isinstance(value, dict):
        if "elem" in value:
            return _parts(value["elem"]["val"])
        if "concat" in value:
            return list(value["concat"])
        if "prefix" in value:
            return [f"{value['prefix']['addr']}/{value['prefix']['len']}"]
    return [value]


def _value(part: Any) -> str:
    if isinstance(part, dict):  # a verdict
        return next(f"{verdict} {to['target']}" if to else verdict for verdict, to in part.items())
    return str(part)


def _field(container: str, part: Any) -> str:
    if (text := vlans.listed(container, part)) is not None:
        return text
    if container.startswith("meter_") and (isinstance(part, dict) or not part.startswith(TAP_PREFIX)):
        return meters.listed_range(part)
    if container in _RAW_SETS and (isinstance(part, int) or part.startswith("0x")):
        return hexadecimal(part if isinstance(part, int) else int(part, 16))
    return listed_ports(part) or listed_prefix(part) or str(part)
