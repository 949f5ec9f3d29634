"""What ``Kernel`` decides, on links in memory: where DHCP is told, what follows a card that moves, what fails alone."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import pytest
from still_kernel import StillKernel

from innkeeper.model.problems import Failed
from innkeeper.network import uplink_priorities, vlan_bridge
from innkeeper.network.minimums import DEFAULT_MINOR, minor
from innkeeper.network.overlay import OverlayPolicy
from innkeeper.network.plan import Standing
from innkeeper.network.policy import PortPolicy, SwitchPolicy
from innkeeper.network.switch import SwitchRunner
from innkeeper.network.traffic import TrafficPolicy
from innkeeper.network.uplink_policy import UplinkPolicy
from innkeeper.network.vlan_policy import VlanPolicy

LAN = SwitchPolicy("lan", "inbr-t3st1", subnet="10.66.0.0/24")
RED = SwitchPolicy(
    "red",
    "inbr-t3st2",
    kind="virtual",
    subnet="10.5.0.0/24",
    mtu=1450,
    overlay=OverlayPolicy(5001, "192.0.2.1", domain=1, gateway=True),
)
OUT, AWAY = (
    SwitchPolicy(
        f"out{number}",
        f"inbr-t3st{number}",
        kind="external",
        uplink=UplinkPolicy((f"up{number}",)),
        uplink_rate_bits_per_s=10**9,
        dhcp=False,
    )
    for number in (3, 4)
)
PORT = PortPolicy("intp-t3st1", "52:54:00:00:00:01", ("10.66.0.11",), hostname="web")


@pytest.fixture
def still(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StillKernel:
    return StillKernel(tmp_path, monkeypatch)


def test_dhcp_of_a_virtual_switch_is_told_of_a_moved_card_in_its_tenants_namespace(still: StillKernel) -> None:
    kernel = still.kernel
    kernel.ensure(LAN, [PORT])
    kernel.ensure(RED, [])
    there = replace(PORT, ipv4=("10.5.0.11",))
    kernel.move_port(RED.bridge, there)
    assert still.servers.told == {LAN.bridge: (None, []), RED.bridge: ("intn-t3st1", [PORT.tap])}
    kernel.move_port(LAN.bridge, PORT)
    assert still.servers.told == {LAN.bridge: (None, [PORT.tap]), RED.bridge: ("intn-t3st1", [])}


SURE = replace(PORT, traffic=TrafficPolicy(min_weight=40))


def test_a_minimum_follows_its_card_to_another_uplink(still: StillKernel) -> None:
    kernel = still.kernel
    kernel.ensure(OUT, [SURE])
    kernel.ensure(AWAY, [])
    assert list(still.shares.shared) == ["up3"]
    kernel.move_port(AWAY.bridge, SURE)
    assert {device: set(one.shares) for device, one in still.shares.shared.items()} == {
        "up4": {minor(SURE.tap), DEFAULT_MINOR}
    }
    still.shares.refused["up3"] = Failed("link.refused", "up3 cannot be shared")
    with pytest.raises(Failed):
        kernel.move_port(OUT.bridge, SURE)
    assert list(still.shares.shared) == ["up4"], "it is where it was, and so is its minimum"
    assert SURE.tap in kernel.standing[AWAY.bridge].ports and SURE.tap not in kernel.standing[OUT.bridge].ports


def test_a_port_whose_minimum_is_refused_does_not_come_and_stays_as_it_was(still: StillKernel) -> None:
    kernel = still.kernel
    kernel.ensure(OUT, [])
    still.shares.refused["up3"] = Failed("link.refused", "up3 cannot be shared")
    with pytest.raises(Failed):
        kernel.add_port(OUT.bridge, SURE)
    assert PORT.tap not in still.links.present and kernel.standing[OUT.bridge].ports == {}
    kernel.add_port(OUT.bridge, PORT)
    with pytest.raises(Failed):
        kernel.update_port(SURE)
    assert kernel.standing[OUT.bridge].ports == {PORT.tap: PORT} and PORT.tap in still.links.present


@pytest.fixture
def vlans(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, VlanPolicy]]:
    """The VLANs of ports that a bridge was told, one after the other."""
    told: list[dict[str, VlanPolicy]] = []

    def ensure(_switch: SwitchPolicy, _bridge: object, ports: Iterable[PortPolicy]) -> list[str]:
        told.append({port.tap: port.vlan for port in ports})
        return []

    monkeypatch.setattr(vlan_bridge, "ensure", ensure)
    return told


def test_a_vlan_is_put_back_with_a_change_that_is_refused(
    still: StillKernel, vlans: list[dict[str, VlanPolicy]]
) -> None:
    kernel = still.kernel
    here = replace(PORT, vlan=VlanPolicy("access", 10))
    kernel.ensure(OUT, [here])
    still.shares.refused["up3"] = Failed("link.refused", "up3 cannot be shared")
    with pytest.raises(Failed):
        kernel.update_port(replace(SURE, vlan=VlanPolicy("access", 20)))
    assert kernel.standing[OUT.bridge].ports == {PORT.tap: here}
    assert vlans[-2:] == [{PORT.tap: VlanPolicy("access", 20)}, {PORT.tap: here.vlan}]


def test_nothing_passes_a_tap_before_it_is_in_its_vlan(
    still: StillKernel, vlans: list[dict[str, VlanPolicy]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever has the tap open goes on sending while it is plugged in."""
    kernel, order = still.kernel, list[str]()
    make = still.links.ensure_tap

    def ensure_tap(port: PortPolicy, *facts: object, closed: bool) -> list[str]:
        order.append(f"{port.tap} joins {'closed' if closed else 'open'} after {len(vlans)}")
        return make(port, *facts)

    def open_up(taps: Iterable[str]) -> None:
        order.extend(f"{tap} opens after {len(vlans)}" for tap in taps)

    monkeypatch.setattr(still.links, "ensure_tap", ensure_tap)
    monkeypatch.setattr(still.links, "open_up", open_up, raising=False)
    apart = replace(PORT, vlan=VlanPolicy("access", 10))
    actions: list[Callable[[], object]] = [
        lambda: kernel.ensure(OUT, [apart]),
        lambda: kernel.move_port(AWAY.bridge, apart),
        lambda: kernel.repair(),
    ]
    kernel.ensure(AWAY, [])
    for number, act in enumerate(actions):
        still.links.present.pop(PORT.tap, None)
        order.clear()
        vlans.clear()
        act()
        joins = [line for line in order if line.startswith(PORT.tap)]
        assert joins[0] == f"{PORT.tap} joins closed after {joins[0][-1]}", number
        assert joins[1] == f"{PORT.tap} opens after {int(joins[0][-1]) + 1}", number
    kernel.ensure(LAN, [])
    order.clear()
    kernel.move_port(LAN.bridge, replace(PORT, vlan=VlanPolicy("access", 10)))
    assert order[0].startswith(f"{PORT.tap} joins open"), "without tags there it is not in the way"


def test_a_card_with_a_vlan_goes_where_the_bridge_is_gone(still: StillKernel, vlans: object) -> None:
    kernel = still.kernel
    kernel.ensure(OUT, [replace(PORT, vlan=VlanPolicy("access", 10))])
    del still.links.present[OUT.bridge]
    assert kernel.remove_port(PORT.tap) == [f"remove tap {PORT.tap}"]


@pytest.mark.parametrize("way", ["remove", "remove_all", "repair", "another uplink"])
def test_the_host_has_its_network_again_whatever_is_left_on_the_card(
    still: StillKernel, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    released: list[str] = []

    def release(bridge: str, _: object) -> list[str]:
        released.append(bridge)
        return []

    def refuse(*_args: object, **_options: object) -> list[str]:
        raise Failed("tool.failed", "tc failed")

    kernel = still.kernel
    kernel.ensure(OUT, [PORT])
    monkeypatch.setattr(kernel.uplinks, "release", release, raising=False)
    monkeypatch.setattr(kernel.uplinks, "cards", lambda _: ["up3"], raising=False)
    monkeypatch.setattr(still.shares, "ensure", refuse)
    if way == "repair":
        kernel.standing.clear()
        assert [one.code for one in kernel.repair().problems.values()] == ["tool.failed"]
    else:
        actions: dict[str, Callable[[], object]] = {
            "remove": lambda: kernel.remove(OUT.bridge),
            "remove_all": kernel.remove_all,
            "another uplink": lambda: kernel.ensure(replace(OUT, uplink=UplinkPolicy(("up4",))), [PORT]),
        }
        with pytest.raises(Failed, match="tc failed"):
            actions[way]()
    assert released[0] == OUT.bridge
    assert (OUT.bridge in still.links.present) == (way == "another uplink")


def test_nothing_of_the_inn_stays_on_a_card_that_the_host_has_again(
    still: StillKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = still.kernel
    waiting = replace(OUT, uplink=UplinkPolicy(("up3",), confirm_s=60.0))
    kernel.ensure(waiting, [SURE])
    assert "up3" in still.shares.shared
    monkeypatch.setattr(kernel.uplinks, "given_back", lambda *_: "up3", raising=False)
    kernel.repair()
    assert still.shares.shared == {}
    kernel.update_port(replace(SURE, hostname="www"))
    assert still.shares.shared == {}, "none is put on it again"
    kernel.ensure(replace(AWAY, uplink=UplinkPolicy(("up3",))), [replace(SURE, tap="intp-t3st2")])
    monkeypatch.setattr(kernel.uplinks, "given_back", lambda bridge, _: "up3" * (bridge == OUT.bridge), raising=False)
    kernel.ensure(replace(AWAY, uplink=UplinkPolicy(("up3",))), [replace(SURE, tap="intp-t3st2")])
    kernel.repair()
    assert "up3" in still.shares.shared, "it is another switch's by now"


def test_a_kernel_without_priorities_is_told_and_all_else_goes_on(
    still: StillKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uplink_priorities, "index_of", lambda _: 7)
    monkeypatch.setattr(uplink_priorities, "kernel_parts", lambda parts: dict.fromkeys(parts, False))
    monkeypatch.setattr(vlan_bridge, "ensure", lambda *_: [])
    kernel = still.kernel
    wishes = replace(PORT, vlan=VlanPolicy("access", 10), traffic=TrafficPolicy(pcp=5))
    kernel.ensure(OUT, [wishes])
    assert PORT.tap in still.links.present
    report = kernel.repair()
    assert [(name, one.code) for name, one in report.problems.items()] == [("out3", "network.kernel_lacks")]
    kernel.update_port(replace(wishes, traffic=TrafficPolicy()))
    assert kernel._traffic.problems == {}


def test_taps_that_were_made_again_are_told_once_whatever_else_fails(still: StillKernel) -> None:
    kernel, links = still.kernel, still.links
    second = replace(PORT, tap="intp-t3st2", mac="52:54:00:00:00:02")
    assert kernel.start([Standing(LAN, {PORT.tap: PORT})]).new_taps == [PORT.tap], "its vm may still run"
    kernel.add_port(LAN.bridge, second)
    assert kernel.repair().new_taps == [], "a tap of a port that comes was nobody's"
    links.present.clear()
    links.refused[second.tap] = Failed("link.refused", "no")
    report = kernel.repair()
    assert report.new_taps == [PORT.tap] and report.problems["lan"].code == "link.refused"
    links.refused.clear()
    assert kernel.repair().new_taps == [second.tap]
    assert kernel.repair().new_taps == []


@pytest.mark.parametrize("change", ["ensure", "update"])
def test_a_tap_that_a_change_made_again_is_told_by_the_next_repair(still: StillKernel, change: str) -> None:
    kernel = still.kernel
    kernel.ensure(LAN, [PORT])
    del still.links.present[PORT.tap]
    renamed = replace(PORT, hostname="www")
    if change == "ensure":
        kernel.ensure(LAN, [renamed])
    else:
        kernel.update_port(renamed)
    assert kernel.repair().new_taps == [PORT.tap]


def test_what_nobody_foresaw_at_one_switch_is_its_problem_alone(still: StillKernel) -> None:
    kernel, links = still.kernel, still.links
    kernel.ensure(OUT, [PORT])
    kernel.ensure(LAN, [])
    links.present.clear()
    links.refused[PORT.tap] = KeyError("gw-1")
    report = kernel.repair()
    assert [(name, one.code, one.cause) for name, one in report.problems.items()] == [
        ("out3", "switch.broken", "KeyError: 'gw-1'")
    ]
    assert LAN.bridge in links.present


def test_a_change_that_fails_in_no_foreseen_way_is_taken_back(still: StillKernel) -> None:
    kernel = still.kernel
    kernel.ensure(LAN, [])
    still.links.refused[PORT.tap] = OSError("no more processes")
    with pytest.raises(Failed) as problem:
        kernel.ensure(LAN, [PORT])
    assert problem.value.code == "switch.broken" and kernel.standing[LAN.bridge].ports == {}


def test_a_start_that_fails_in_no_foreseen_way_is_a_problem_too(
    still: StillKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: object) -> list[str]:
        raise OSError("too many open files")

    async def start() -> None:
        runner = SwitchRunner("t3st", still.kernel.directory)
        try:
            with pytest.raises(Failed) as problem:
                await runner.start([Standing(LAN)])
            assert problem.value.code == "switch.broken"
        finally:
            await runner.close()

    monkeypatch.setattr(still.rules, "load", refuse)
    asyncio.run(start())
