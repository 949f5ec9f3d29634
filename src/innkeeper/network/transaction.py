"""From what shall be to nftables transactions, and from what is to what has drifted. Pure.

``Rules`` is the whole of an inn's rules: two tables with fixed schemas, and elements. Replacing everything and changing
from one set of elements to another lead to the same rules.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from innkeeper.network.nat import inet_schema, switch_elements
from innkeeper.network.policy import PortPolicy, SwitchPolicy
from innkeeper.network.ruleset import COUNTED, Element, bridge_schema, hexadecimal, port_elements

FAMILIES = ("bridge", "inet")
_RAW_SETS = ("nd_target", "nd_link")
_CHAIN = re.compile(r"^  chain (\w+)", re.MULTILINE)
_COMMENT = re.compile(r'comment "([^"]*)"$')


@dataclass(frozen=True, slots=True)
class Schema:
    """The fixed text of an inn's two tables. A chain named after its hash marks which schema a table was made from."""

    inn_id: str

    @property
    def table(self) -> str:
        return f"inn_{self.inn_id}"

    def body(self, family: str) -> str:
        text = bridge_schema(self.inn_id) if family == "bridge" else inet_schema()
        return f"{text}  chain {_mark(text)} {{ }}\n"

    def rules(self, family: str) -> list[tuple[str, str]]:
        """The (chain, comment) of every rule in order of chains' first appearance: what tells that none was touched."""
        found: list[tuple[str, str]] = []
        chain = ""
        for line in self.body(family).replace("\\\n", "").splitlines():
            if started := _CHAIN.match(line):
                chain = started[1]
            elif comment := _COMMENT.search(line):
                found.append((chain, comment[1]))
        return found


def compile_elements(switches: Iterable[tuple[SwitchPolicy, Iterable[PortPolicy]]]) -> frozenset[Element]:
    """All elements for those switches with their ports."""
    elements: set[Element] = set()
    for switch, ports in switches:
        elements |= switch_elements(switch)
        for port in ports:
            elements |= port_elements(switch, port)
    return frozenset(elements)


def replace(schema: Schema, elements: Iterable[Element]) -> str:
    """One transaction that makes both tables anew, whatever stood there before."""
    lines = []
    for family in FAMILIES:
        table = f"{family} {schema.table}"
        lines += [f"add table {table}", f"delete table {table}", f"table {table} {{", schema.body(family) + "}"]
    return "\n".join(lines) + "\n" + _lines("add", schema.table, elements)


def change(schema: Schema, old: frozenset[Element], new: frozenset[Element]) -> str:
    """One transaction from ``old`` elements to ``new`` in tables that stand; empty when nothing differs."""
    return _lines("delete", schema.table, old - new) + _lines("add", schema.table, new - old)


def remove(schema: Schema) -> str:
    """One transaction after which neither table exists."""
    return "".join(f"add table {family} {schema.table}\ndelete table {family} {schema.table}\n" for family in FAMILIES)


def listing(elements: Iterable[Element]) -> list[str]:
    """The elements as sorted readable lines, for differences shown to people."""
    return sorted(f"{element.family} {element.container}: {_element(element)}" for element in elements)


def _lines(verb: str, table: str, elements: Iterable[Element]) -> str:
    groups: dict[tuple[str, str], list[Element]] = defaultdict(list)
    for element in elements:
        groups[element.family, element.container].append(element)
    return "".join(
        f"{verb} element {family} {table} {container} {{ {', '.join(map(_element, sorted(members)))} }}\n"
        for (family, container), members in sorted(groups.items())
    )


def _element(element: Element) -> str:
    key = " . ".join(element.key)
    return f"{key} : {' . '.join(element.value)}" if element.value else key


def _mark(text: str) -> str:
    return f"schema_{hashlib.sha256(text.encode()).hexdigest()[:12]}"


# --- reading back ----------------------------------------------------------------------------------------------------


def read_elements(family: str, objects: Iterable[Mapping[str, Any]]) -> frozenset[Element]:
    """The elements in a table's JSON listing (libnftables-json(5))."""
    elements = []
    for item in objects:
        holder = item.get("set") or item.get("map")
        if holder is None:
            continue
        name = holder["name"]
        for entry in holder.get("elem", ()):
            key, value = entry if "map" in item else (entry, None)
            fields = tuple(_field(name, part) for part in _parts(key))
            elements.append(Element(family, name, fields, tuple(str(part) for part in _parts(value))))
    return frozenset(elements)


def schema_stands(schema: Schema, family: str, objects: Iterable[Mapping[str, Any]]) -> bool:
    """Whether a table's JSON listing shows this schema with every rule in its place and none added."""
    chains: dict[str, Mapping[str, Any]] = {}
    rules: dict[str, list[str]] = defaultdict(list)
    for item in objects:
        if "chain" in item:
            chains[item["chain"]["name"]] = item["chain"]
        elif "rule" in item:
            rules[item["rule"]["chain"]].append(item["rule"].get("comment", ""))
    wanted: dict[str, list[str]] = defaultdict(list)
    for chain, comment in schema.rules(family):
        wanted[chain].append(comment)
    return rules == wanted and set(chains) == set(_CHAIN.findall(schema.body(family)))


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


def _field(container: str, part: Any) -> str:
    if container in _RAW_SETS and (isinstance(part, int) or part.startswith("0x")):
        return hexadecimal(part if isinstance(part, int) else int(part, 16))
    return str(part)
