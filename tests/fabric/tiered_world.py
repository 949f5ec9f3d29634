"""The random world with devices: added, drained and removed, groups moved at random, while all else goes on."""

from __future__ import annotations

from fabric_world import World

from innkeeper.fabric.devices import HOME, ONLINE
from innkeeper.fabric.tiering import Move


class TieredWorld(World):
    """``moved`` counts the groups that went from one device to another."""

    moved = 0
    ACTIONS = (*World.ACTIONS, ("device_add", 3), ("device_rm", 2), ("tier", 3), ("shuffle", 8), ("hold", 1))

    def device_add(self) -> None:
        if len(self.pool.devices.all) < 4:
            name = self.uuid()
            self.pool.device_add(name, f"/devices/{name}", self.random.choice(("fast", "slow")))

    def device_rm(self) -> None:
        others = [each for each in self.pool.devices.all.values() if each.id != HOME]
        if others:
            self.pool.device_rm(self.random.choice(others).id)

    def tier(self) -> None:
        self.moved += self.pool.tier()["moved"]

    def shuffle(self) -> None:
        """Move some groups wherever chance wants them."""
        online = [each.id for each in self.pool.devices.all.values() if each.state == ONLINE]
        for number in self.random.sample(sorted(self.pool.store.rows), min(3, len(self.pool.store.rows))):
            self.pool._moves = [Move(number, self.random.choice(online))]
            self.moved += self.pool._move_next()

    def hold(self) -> None:
        """Hold a snapshot, or let all go."""
        if self.pool.catalog.holds or not self.snapshots:
            for name in list(self.pool.catalog.holds):
                self.pool.release(name)
        else:
            self.pool.hold(self.uuid(), self.random.choice(sorted(self.snapshots)))

    def remove(self) -> None:
        for name in list(self.pool.catalog.holds):
            self.pool.release(name)
        super().remove()
