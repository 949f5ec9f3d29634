"""External switches' connection to the outside: cards, teams of cards and cables, and the host's network on them.

Blocking; lives in the network thread. Every ``ensure`` may be repeated, and changes only what differs.
"""

from __future__ import annotations

import errno
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from innkeeper.model.problems import Conflict, Failed, Problem, Unavailable
from innkeeper.model.uplink import HostNetwork
from innkeeper.network import managers, uplink_plan as plan
from innkeeper.network.links import write_sysctl
from innkeeper.network.policy import SwitchPolicy
from innkeeper.network.uplink_batch import run_batch
from innkeeper.network.uplink_facts import Brief, read_brief, read_nic
from innkeeper.network.uplink_guard import give_back, give_back_unconfirmed, index_of
from innkeeper.network.uplink_lease import Leases
from innkeeper.network.uplink_plan import NicFacts
from innkeeper.network.uplink_policy import DEVICE_PREFIXES, FAR_PREFIX, UplinkPolicy, suffix
from innkeeper.network.uplink_record import Record, RecordFile, boot_time_s
from innkeeper.system import process
from innkeeper.system.kernel_parts import kernel_parts

_GUARD_PATIENCE_S = 30.0
_MODES = {"active-backup": 1, "balance-xor": 2, "802.3ad": 4}
_LAYER_2_3 = 2
_MONITOR_MS = 100


def ignore(_moment: str) -> None:
    return


class Uplinks:
    """``directory`` holds the records of moves that wait to be confirmed; it must vanish with a reboot.

    ``passed`` hears each moment of a move after which this process could be killed.
    """

    def __init__(self, directory: Path, passed: Callable[[str], None] = ignore) -> None:
        self._directory = directory
        self._passed = passed
        self._netlink = IPRoute()
        self._leases = Leases(directory)
        self.problems: dict[str, Problem] = {}
        """Bridge -> what is wrong with its uplink now."""

    def close(self) -> None:
        self._leases.close()
        self._netlink.close()

    def facts(self, name: str) -> NicFacts | None:
        """What the kernel says of a card. Raises ``Failed`` (``link.refused``)."""
        return read_nic(self._netlink, name)

    def record(self, bridge: str) -> Record | None:
        """The move to ``bridge`` that waits to be confirmed, or was not."""
        return self._file(bridge).read()

    def given_back(self, bridge: str, uplink: UplinkPolicy | None) -> str | None:
        """The card that is the host's again, since its move to ``bridge`` was not confirmed in time."""
        record = self.record(bridge) if uplink is None or uplink.confirm_s is not None else None
        return record.uplink if record is not None and record.state == "returned" else None

    def _file(self, bridge: str) -> RecordFile:
        return RecordFile(self._directory, bridge)

    # --- making it so -------------------------------------------------------------------------------------------------

    def ensure(self, switch: SwitchPolicy) -> list[str]:
        """Connect the switch, whose bridge stands, with the outside; returns what was done.

        A card that is gone is in ``problems``. Raises ``Failed`` (``switch.uplink_refused``), ``Conflict``
        (``switch.uplink_busy``), ``Unavailable`` (``switch.team_missing``).
        """
        bridge, uplink = switch.bridge, switch.uplink
        self.problems.pop(bridge, None)
        if uplink is None:
            return self.release(bridge, None) if self._cards(bridge, None) else []
        record = self.record(bridge)
        if uplink.confirm_s is not None and record is not None:
            give_back_unconfirmed(self._file(bridge))  # its guard may have died
            record = self.record(bridge)
            if record is not None and record.state == "returned":
                self.problems[bridge] = not_confirmed(record)
                return []
            if record is not None and record.state == "pending" and not self._file(bridge).guarded():
                self._spawn_guard(self._file(bridge))
        if uplink.via == "cable":
            return self._ensure_cable(switch, uplink)
        done = self._ensure_team(switch, uplink) if uplink.via == "team" else []
        port = uplink.port(bridge) if uplink.via == "team" else None
        carried = False
        # Cards that carry nothing of the host's first: they bear its traffic while the others move.
        briefs = {name: read_brief(self._netlink, name) for name in uplink.devices}
        for name in sorted(uplink.devices, key=lambda name: bool((brief := briefs[name]) and brief.versions)):
            done += self._ensure_card(switch, uplink, name, briefs[name], port)
            now = read_brief(self._netlink, name)
            carried = carried or (now is not None and now.carrier)
        if not carried and bridge not in self.problems:
            self.problems[bridge] = Unavailable(
                "switch.uplink_down",
                f"the uplink {', '.join(uplink.devices)} of switch {switch.name} has no carrier",
                remedy="look at the cable and at the port it leads to",
            )
        self._look_after_leases(switch)
        return done

    def _ensure_card(
        self, switch: SwitchPolicy, uplink: UplinkPolicy, name: str, brief: Brief | None, team: str | None
    ) -> list[str]:
        bridge, wanted = switch.bridge, team or switch.bridge
        if brief is None:
            self.problems[bridge] = Unavailable(
                "switch.uplink_gone",
                f"{name}, the uplink of switch {switch.name}, is gone",
                cause="no network card of this host has that name now",
                remedy="it is taken again when it is back; guests reach each other meanwhile",
            )
            return []
        if brief.master is not None and brief.master != wanted:
            raise Conflict(
                "switch.uplink_busy",
                f"{name} is in use",
                cause=f"it is a part of {brief.master}",
                remedy=f"take it out: ip link set {name} nomaster",
            )
        if brief.mtu < switch.mtu:
            self.problems[bridge] = Failed(
                "switch.uplink_mtu",
                f"{name} carries {brief.mtu} bytes, switch {switch.name} {switch.mtu}",
                cause="larger frames of guests vanish on their way out",
                remedy=f"inn switch set {switch.name} --mtu {brief.mtu}, or ip link set {name} mtu {switch.mtu}",
            )
        if brief.master == wanted:
            return self._ensure_moved(switch, uplink, name, strayed=bool(brief.versions))
        return self._take(switch, uplink, name, team)

    def _ensure_moved(self, switch: SwitchPolicy, uplink: UplinkPolicy, name: str, *, strayed: bool) -> list[str]:
        """What others did since the card joined: an address set up on it anew, or the bridge's own taken away."""
        bridge, done = switch.bridge, []
        if strayed and (facts := self.facts(name)) is not None:
            self._run(plan.stray_steps(name, bridge, facts.network), switch.name)
            self._hold_leases(bridge, facts)
            self._silence(name)
            found = [str(one) for one in facts.network.addresses if not one.link_local]
            done.append(f"move {', '.join(found)}, which was set up on {name}, to {bridge}")
        brief = read_brief(self._netlink, bridge)
        wanted = {one.version for one in uplink.network.addresses if not one.link_local} if uplink.network else set()
        if brief is not None and uplink.network is not None and wanted - brief.versions:
            present = self.facts(bridge)
            steps = plan.lost_steps(bridge, uplink.network, present.network) if present else []
            if steps:
                self._run(steps, switch.name)
                done.append(f"put the host's network back on {bridge}: {', '.join(str(step.item) for step in steps)}")
        return done

    def _take(self, switch: SwitchPolicy, uplink: UplinkPolicy, name: str, team: str | None) -> list[str]:
        facts = self.facts(name)
        if facts is None:
            return []
        bridge = switch.bridge
        recorded = uplink.network if name == uplink.devices[0] else None
        network = plan.merged(recorded, facts.network)
        guarded = uplink.confirm_s is not None and network.moves and self.record(bridge) is None
        for key, value in plan.bridge_settings(network).items():
            family, _, setting = key.partition("/")
            write_sysctl(f"net/{family}/conf/{bridge}/{setting}", value, optional=True)
        if guarded:
            self._start_guard(Record(uplink=name, bridge=bridge, network=network, deadline_s=0.0), uplink)
        self._passed("before the move")
        steps = plan.take_steps(name, bridge, network) if team is None else plan.team_steps(name, team, bridge, network)
        try:
            self._run(steps, switch.name)
        except Problem:
            give_back(Record(uplink=name, bridge=bridge, network=network, deadline_s=0.0))
            self.forget_record(bridge)
            raise
        self._passed("after the move")
        self._hold_leases(bridge, facts)
        self._silence(name)
        self._passed("moved")
        moved = [str(one) for one in network.addresses if not one.link_local]
        return [f"plug {name} into {team or bridge}", *([f"move {', '.join(moved)} to {bridge}"] if moved else [])]

    def _hold_leases(self, bridge: str, facts: NicFacts) -> None:
        """The host's leases that came to ``bridge`` with that card are to be renewed there."""
        client_id = managers.find_client_id(facts.name, facts.index, facts.mac)
        self._leases.hold(bridge, facts.network.addresses, client_id)

    def _look_after_leases(self, switch: SwitchPolicy) -> None:
        if not self._leases.held(switch.bridge) or (facts := self.facts(switch.bridge)) is None:
            return
        problem = self._leases.look(switch.bridge, switch.mac, [one.address for one in facts.network.addresses])
        if problem is not None:
            self.problems.setdefault(switch.bridge, problem)

    def _silence(self, name: str) -> None:
        """A bridge's port has no IPv6 of its own: it would answer beside the bridge."""
        write_sysctl(f"net/ipv6/conf/{name}/disable_ipv6", "1", optional=True)

    def _run(self, steps: list[plan.Step], switch: str) -> None:
        refused = run_batch(steps, index_of)
        if refused:
            raise Failed(
                "switch.uplink_refused",
                f"the kernel refused a step of connecting switch {switch}; what had moved was given back",
                cause="; ".join(refused),
                remedy="see 'inn doctor'; a bridge of your own can be the uplink instead",
            )

    # --- the guard ----------------------------------------------------------------------------------------------------

    def _start_guard(self, record: Record, uplink: UplinkPolicy) -> None:
        """Have a guard wait, ready, before anything moves; the time to confirm begins when it is."""
        file = self._file(record.bridge)
        assert uplink.confirm_s is not None
        file.write(record.model_copy(update={"deadline_s": boot_time_s() + _GUARD_PATIENCE_S + uplink.confirm_s}))
        self._passed("recorded")
        self._spawn_guard(file)
        self._passed("guarded")
        file.write(record.model_copy(update={"deadline_s": boot_time_s() + uplink.confirm_s}))

    def _spawn_guard(self, file: RecordFile) -> None:
        file.ready.unlink(missing_ok=True)
        guard = process.spawn([sys.executable, "-m", "innkeeper.network.uplink_guard", str(file.path)])
        deadline = boot_time_s() + _GUARD_PATIENCE_S
        while not file.ready.exists():
            if guard.poll() is not None or boot_time_s() > deadline:
                file.remove()
                raise Failed(
                    "switch.guard_failed",
                    "the guard that would give the host's network back does not start; nothing has moved",
                    cause=f"it ended with {guard.returncode}" if guard.returncode is not None else "it is not ready",
                    remedy="try again when the machine has less to do; see 'inn doctor'",
                )
            time.sleep(0.02)

    def confirm(self, bridge: str) -> bool:
        """The move is to stay. False when there is none that waits; raises ``Conflict`` (``switch.not_confirmed``)
        when it has been given back already."""
        file = self._file(bridge)
        with file.locked():
            record = file.read()
            if record is None:
                return False
            if record.state == "returned":
                raise not_confirmed(record)
            file.write(record.model_copy(update={"state": "confirmed"}))
        return True

    def forget_record(self, bridge: str) -> None:
        """Forget a move that is over; its guard ends."""
        file = self._file(bridge)
        if file.path.exists():
            with file.locked():
                file.remove()

    def forget(self) -> None:
        """Forget all records; nothing of the host's is on a bridge of the inn any more."""
        shutil.rmtree(self._directory, ignore_errors=True)

    # --- giving back --------------------------------------------------------------------------------------------------

    def release(self, bridge: str, uplink: UplinkPolicy | None) -> list[str]:
        """Give the cards of ``bridge`` back with all of the host's network that is on the bridge now.

        ``uplink`` None: an unknown bridge of the inn; whatever is plugged in there is found. Returns what was done.
        """
        self.problems.pop(bridge, None)
        done: list[str] = []
        facts = self.facts(bridge)
        cards = self._cards(bridge, uplink)
        if facts is not None and cards:
            recorded = uplink.network if uplink is not None else None
            done += self._return(cards, bridge, facts, recorded)
        for prefix in DEVICE_PREFIXES:
            if prefix != FAR_PREFIX and self._delete(f"{prefix}{suffix(bridge)}"):
                done.append(f"remove {prefix}{suffix(bridge)}")
        self.forget_record(bridge)
        self._leases.forget(bridge)
        return done

    def cards(self, bridge: str) -> list[str]:
        """The host's own cards in an unknown bridge of the inn."""
        return self._cards(bridge, None)

    def _return(self, cards: list[str], bridge: str, facts: NicFacts, recorded: HostNetwork | None) -> list[str]:
        first = cards[0]
        for other in cards[1:]:
            run_batch([plan.Step("leave", other), plan.Step("up", other)], index_of)
        own = facts.network
        kept = {one.address: one for one in recorded.addresses} if recorded is not None else {}
        settings = recorded.settings if recorded is not None else (("ipv6/disable_ipv6", "0"),)
        network = own.model_copy(
            update={
                "addresses": tuple(
                    one.model_copy(update={"label": kept[one.address].label}) if one.address in kept else one
                    for one in own.addresses
                    if not one.link_local
                ),
                "settings": settings,
            }
        )
        refused = give_back(Record(uplink=first, bridge=bridge, network=network, deadline_s=0.0))
        moved = ", ".join(str(one) for one in network.addresses)
        done = [f"give {first} back" + (f" with {moved}" if moved else "")]
        return done + [f"not given back: {one}" for one in refused]

    def _cards(self, bridge: str, uplink: UplinkPolicy | None) -> list[str]:
        """The host's own cards in ``bridge``, or in the team that is its port."""
        wanted = {index_of(bridge), index_of(f"inbd-{suffix(bridge)}")} - {0}
        if uplink is not None:
            briefs = {name: read_brief(self._netlink, name) for name in uplink.devices}
            return [
                name for name, brief in briefs.items() if brief is not None and index_of(brief.master or "") in wanted
            ]
        try:
            links = list(self._netlink.get_links())
        except (NetlinkError, OSError) as refused:
            raise Failed("link.refused", "the links cannot be listed", cause=str(refused)) from refused
        found = [str(link.get("ifname")) for link in links if (link.get("master") or 0) in wanted]
        cards = [name for name in found if not name.startswith(("intp-", "inov-", "ingw-", *DEVICE_PREFIXES))]
        # The uplink has the bridge's mac; others may have been plugged in by the administrator.
        macs = {name: facts.mac for name in (bridge, *cards) if (facts := self.facts(name)) is not None}
        return sorted(cards, key=lambda name: macs.get(name) != macs.get(bridge))

    def _delete(self, name: str) -> bool:
        index = index_of(name)
        if index == 0:
            return False
        try:
            self._netlink.link("del", index=index)
        except NetlinkError as refused:
            if refused.code == errno.ENODEV:
                return False
            raise Failed("link.refused", f"{name} cannot be removed", cause=str(refused)) from refused
        return True

    # --- cables and teams ---------------------------------------------------------------------------------------------

    def _ensure_cable(self, switch: SwitchPolicy, uplink: UplinkPolicy) -> list[str]:
        """A pair of devices between the switch's bridge and a bridge of the host's own, which stays as it is."""
        bridge, outside = switch.bridge, uplink.devices[0]
        near, far = uplink.port(bridge), f"{FAR_PREFIX}{suffix(bridge)}"
        brief = read_brief(self._netlink, outside)
        if brief is None:
            self.problems[bridge] = Unavailable(
                "switch.uplink_gone",
                f"bridge {outside}, the uplink of switch {switch.name}, is gone",
                remedy="it is connected again when it is back; guests reach each other meanwhile",
            )
            return []
        done = []
        try:
            if index_of(near) == 0 or index_of(far) == 0:
                self._delete(near)
                self._netlink.link("add", ifname=near, kind="veth", peer={"ifname": far})
                done.append(f"connect {bridge} with {outside}")
            for name, master in ((near, bridge), (far, outside)):
                present = read_brief(self._netlink, name)
                write_sysctl(f"net/ipv6/conf/{name}/disable_ipv6", "1", optional=True)
                if present is None or (present.master, present.carrier, present.mtu) != (master, True, switch.mtu):
                    self._netlink.link("set", index=index_of(name), master=index_of(master), mtu=switch.mtu, state="up")
        except NetlinkError as refused:
            raise Failed(
                "switch.uplink_refused", f"{bridge} cannot be connected with {outside}", cause=str(refused)
            ) from refused
        return done

    def _ensure_team(self, switch: SwitchPolicy, uplink: UplinkPolicy) -> list[str]:
        name, done = uplink.port(switch.bridge), []
        try:
            if index_of(name) == 0:
                options: dict[str, object] = {"bond_mode": _MODES[uplink.team or "active-backup"]}
                if uplink.team != "active-backup":
                    options["bond_xmit_hash_policy"] = _LAYER_2_3
                self._netlink.link("add", ifname=name, kind="bond", bond_miimon=_MONITOR_MS, **options)
                done.append(f"make team {name} ({uplink.team})")
            write_sysctl(f"net/ipv6/conf/{name}/disable_ipv6", "1", optional=True)
            brief = read_brief(self._netlink, name)
            if brief is None or brief.master != switch.bridge or brief.mtu != switch.mtu or done:
                index, master = index_of(name), index_of(switch.bridge)
                self._netlink.link("set", index=index, address=switch.mac, mtu=switch.mtu, master=master, state="up")
        except NetlinkError as refused:
            if refused.code == errno.EOPNOTSUPP:
                plan.check_team(uplink.team, False)
            raise Failed(
                "switch.uplink_refused", f"team {name} cannot be made", cause=str(refused), remedy="see 'inn doctor'"
            ) from refused
        return done


def has_bonding() -> bool:
    """Whether this kernel has, or can load, the driver that makes teams of cards."""
    return kernel_parts(["bonding"])["bonding"]


def not_confirmed(record: Record) -> Conflict:
    """The problem of a move that was given back; what the kernel refused then is its cause."""
    return Conflict(
        "switch.not_confirmed",
        f"the move of the host's network to {record.bridge} was not confirmed in time, so {record.uplink} has it again",
        cause="; ".join(record.refused) or None,
        remedy=f"try again: inn switch set NAME --uplink {record.uplink}, and then inn switch confirm NAME",
    )
