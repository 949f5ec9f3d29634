"""The rules of an inn in the kernel: what of them stands, and every change of it as one transaction. Blocking."""

from __future__ import annotations

from innkeeper.model.problems import Failed
from innkeeper.network.acl_rules import BODY
from innkeeper.network.elements import Elements
from innkeeper.network.nft import Nft
from innkeeper.network.ruleset import Element
from innkeeper.network.transaction import (
    FAMILIES,
    Schema,
    Uses,
    change,
    dynamic,
    read_elements,
    remove,
    replace,
    schema_stands,
)


class Rules:
    """Raises ``Failed`` (``nft.refused``): what stood before stands."""

    def __init__(self, schema: Schema, nft: Nft) -> None:
        self._schema = schema
        self._nft = nft
        self._elements, self._uses = Elements(), Uses(())

    def change(self, old: frozenset[Element], new: frozenset[Element]) -> None:
        """One transaction. When it is refused because the kernel's rules are no longer ours, they are repaired."""
        gone, come = self._elements.difference(*self._uses.settle(old - new, new - old))
        try:
            self._nft.apply(change(self._schema, gone, come))
        except Failed:
            if not self.load(self._elements.moved(gone, come)):
                raise
            return
        self._elements.move(gone, come)
        self._uses.follow(gone, come)

    def load(self, target: frozenset[Element]) -> list[str]:
        """Make the kernel's rules be the schema with ``target``; returns what was done."""
        intact, actual = True, frozenset[Element]()
        bodies = [element for element in target if element.container == BODY]
        for family in FAMILIES:
            if self._nft.table_exists(family, self._schema.table):
                objects = self._nft.read_table(family, self._schema.table, dynamic)
                intact = intact and schema_stands(self._schema, family, objects, bodies)
                actual |= read_elements(family, objects)
            else:
                intact = False
        actual |= frozenset(bodies)
        if intact and actual == target:
            done = []
        elif intact:
            self._nft.apply(change(self._schema, actual, target))
            done = [f"set the rules of {self._schema.table} right"]
        else:
            self._nft.apply(replace(self._schema, target))
            done = [f"load the rules of {self._schema.table}"]
        self._elements, self._uses = Elements(target), Uses(target)
        return done

    def remove(self) -> None:
        """Leave nothing of them."""
        self._nft.apply(remove(self._schema))
        self._elements, self._uses = Elements(), Uses(())
