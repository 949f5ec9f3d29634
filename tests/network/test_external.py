"""External switches in a real kernel: the host's only card is taken, given back, lost and found."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from host_lab import BRIDGE, HOST4, HOST6, MAC, Host, external_port, new_host, pinging, plug_in, until
from switch_lab import INN_ID, new_namespace, run_in

from innkeeper.model.problems import Conflict, Failed, Unavailable
from innkeeper.network.plan import Standing
from innkeeper.network.switch import SwitchRunner

pytestmark = pytest.mark.root
VICTIM = Path(__file__).parents[1] / "support" / "uplink_victim.py"
HARDLY = 50
"""Lost of 100 pings a second. Looking for duplicates anew, or for a neighbour in vain, takes 100."""
MUCH = (
    "addr add 192.0.2.11/24 dev eth0",
    "addr add 203.0.113.1 peer 203.0.113.2 dev eth0 label eth0:home",
    "addr add 2001:db8::99/64 dev eth0 nodad valid_lft 3000 preferred_lft 2000",
    "addr add 2001:db8:2::1/64 dev eth0 nodad noprefixroute",
    "route add 192.0.2.128/25 dev eth0 src 192.0.2.11 mtu 1400",
    "route add default via 192.0.2.3 dev eth0 metric 100 table 77",
    "route add 198.18.1.0/24 via 10.9.9.9 dev eth0 onlink",
    "route add 198.18.2.0/24 via inet6 2001:db8::7 dev eth0",
    "route add 198.18.3.0/24 nexthop via 192.0.2.5 dev eth0 weight 3 nexthop via 192.0.2.6 dev eth0",
    "-6 route add 2001:db8:5::/48 nexthop via 2001:db8::5 dev eth0 nexthop via 2001:db8::6 dev eth0 weight 2",
    "-6 route del default",
    "-6 route add default via 2001:db8::1 dev eth0 expires 900 proto ra metric 1024 pref high",
    "rule add iif eth0 lookup 77 priority 100",
    "-6 rule add oif eth0 from 2001:db8::/32 fwmark 3/0xff lookup 300 priority 101",
    "neigh add 192.0.2.77 lladdr 02:00:00:00:00:77 dev eth0 nud permanent",
)


@pytest.fixture
def host() -> Iterator[Host]:
    with new_host() as made:
        yield made


def state(host: Host) -> str:
    found = host.runner.read_uplink_record(BRIDGE)
    return found.state if found is not None else "none"


@pytest.mark.parametrize("address", [HOST4, HOST6])
def test_taking_the_only_card_is_hardly_noticed(host: Host, address: str) -> None:
    before, policy = host.network(), host.policy()
    with pinging(host, address) as lost:
        done = host.do(host.runner.ensure(policy))
    assert f"plug eth0 into {BRIDGE}" in done
    assert lost() < HARDLY
    assert host.network() == {BRIDGE: before["eth0"]}
    assert host.reaches()
    assert host.do(host.runner.ensure(policy)) == [] and host.do(host.runner.repair()).problems == {}
    with pinging(host, address) as lost:
        host.do(host.runner.remove(BRIDGE))
    assert lost() < HARDLY
    assert host.network() == before
    assert host.reaches()
    assert BRIDGE not in host.ip("link")


def test_everything_that_is_on_the_card_moves_and_comes_back(host: Host) -> None:
    for command in MUCH:
        host.ip(command)
    before, rules = host.network(), host.ip("rule") + host.ip("-6 rule")
    label = host.ip("-4 addr show eth0")
    host.do(host.runner.ensure(host.policy()))
    advertised = {line.replace("metric 1024", "metric 1025") if "proto ra" in line else line for line in before["eth0"]}
    assert host.network() == {BRIDGE: advertised}, "the advertised default route makes room for the kernel's own"
    assert "iif " + BRIDGE in host.ip("rule") and "oif " + BRIDGE in host.ip("-6 rule")
    assert "192.0.2.77 lladdr 02:00:00:00:00:77 PERMANENT" in host.ip(f"neigh show dev {BRIDGE}")
    assert f"ether {MAC}" in host.ip(f"link show {BRIDGE}"), "the outside knows the host by its card's mac"
    assert host.reaches()
    host.do(host.runner.remove(BRIDGE))
    after = {
        line.replace("metric 1025", "metric 1024") if "proto ra" in line else line for line in host.network()["eth0"]
    }
    assert after == before["eth0"]
    assert host.ip("rule") + host.ip("-6 rule") == rules
    assert "eth0:home" in label and "eth0:home" in host.ip("-4 addr show eth0")


# --- unconfirmed moves ------------------------------------------------------------------------------------------------


def test_an_unconfirmed_move_is_given_back_and_stays_so(host: Host) -> None:
    before, policy = host.network(), host.policy(confirm_s=1.0)
    host.do(host.runner.ensure(policy))
    assert state(host) == "pending" and BRIDGE in host.network()
    with pinging(host) as lost:
        assert until(lambda: state(host) == "returned")
    assert lost() < HARDLY
    assert host.network() == before
    report = host.do(host.runner.repair())
    assert report.problems["lan"].code == "switch.not_confirmed"
    assert host.network() == before, "a repair does not take what was given back"
    with pytest.raises(Conflict) as late:
        host.do(host.runner.confirm_uplink(BRIDGE))
    assert late.value.code == "switch.not_confirmed"
    assert host.reaches()


def test_a_confirmed_move_stays(host: Host) -> None:
    before = host.network()
    host.do(host.runner.ensure(host.policy(confirm_s=30.0)))
    guard = int((host.directory.parent / "uplinks" / f"{BRIDGE}.ready").read_text())
    assert host.do(host.runner.confirm_uplink(BRIDGE))
    assert until(lambda: not Path(f"/proc/{guard}/cmdline").exists() or not Path(f"/proc/{guard}/cmdline").read_bytes())
    host.do(host.runner.forget_uplink_record(BRIDGE))
    host.do(host.runner.ensure(host.policy(network=None)))
    assert host.network() == {BRIDGE: before["eth0"]}


def die(host: Host, moment: str, confirm_s: float) -> None:
    """A daemon of its own makes the switch and is killed at that moment."""
    argv = [sys.executable, str(VICTIM), host.namespace, host.world, str(host.directory), moment, str(confirm_s)]
    assert subprocess.run(argv, check=False).returncode == -9


@pytest.mark.parametrize("moment", ["recorded", "guarded", "before the move", "after the move", "moved", "at the end"])
def test_a_daemon_killed_in_the_middle_leaves_the_host_reachable(host: Host, moment: str) -> None:
    before = host.network()
    die(host, moment, 1.0)
    assert host.reaches(), "at once"
    if moment not in ("recorded", "guarded"):  # then the time to confirm had not begun, and nothing had moved
        assert until(lambda: state(host) == "returned")
    assert host.network() == before
    assert host.reaches()


def test_a_later_daemon_gives_back_what_a_dead_guard_did_not(host: Host) -> None:
    before = host.network()
    policy = host.policy(confirm_s=1.0)
    die(host, "at the end", 3.0)
    guard = int((host.directory.parent / "uplinks" / f"{BRIDGE}.ready").read_text())
    subprocess.run(["kill", "-9", str(guard)], check=True)
    assert BRIDGE in host.network()
    later = SwitchRunner(INN_ID, host.directory, namespace=host.namespace)

    def given_back() -> bool:
        return "switch.not_confirmed" in {
            one.code for one in host.do(later.start([Standing(policy)])).problems.values()
        }

    assert until(given_back), "it waits as long as the guard would have"
    assert host.network() == before and host.reaches()
    host.do(later.close())


# --- reboots, lost cards, others' changes -----------------------------------------------------------------------------


@pytest.mark.parametrize("configured", [True, False], ids=["set up at boot", "bare at boot"])
def test_a_reboot_moves_it_again(host: Host, configured: bool) -> None:
    policy, before = host.policy(), host.network()
    with new_namespace("rebooted") as namespace, new_namespace("around") as world:
        plug_in(namespace, world)
        if not configured:
            run_in(namespace, "ip", "addr", "flush", "dev", "eth0")
        runner = SwitchRunner(INN_ID, host.directory.parent / "again" / "switches", namespace=namespace)
        again = Host(namespace, world, host.directory, runner)
        try:
            assert again.do(runner.start([Standing(policy)])).problems == {}
            assert again.network() == {BRIDGE: before["eth0"]}
            assert again.reaches()
        finally:
            again.close()
        assert again.network() == before


def test_a_card_that_is_gone_is_a_condition_and_is_taken_when_it_is_back(host: Host) -> None:
    policy, before = host.policy(), host.network()
    host.ip("link del eth0")
    report = host.do(host.runner.start([Standing(policy)]))
    assert report.problems["lan"].code == "switch.uplink_gone"
    assert isinstance(report.problems["lan"], Unavailable)
    assert host.do(host.runner.ensure(policy, [external_port(1)])) != [], "guests are plugged in meanwhile"
    run_in(host.world, "ip", "link", "del", "out", check=False)
    plug_in(host.namespace, host.world)
    report = host.do(host.runner.repair())
    assert report.problems == {} and any(f"plug eth0 into {BRIDGE}" in one for one in report.done)
    assert host.network() == {BRIDGE: before["eth0"]}
    assert host.reaches()
    run_in(host.world, "ip", "link", "set", "out", "down")
    assert until(lambda: host.do(host.runner.repair()).problems.get("lan") is not None)
    assert host.do(host.runner.repair()).problems["lan"].code == "switch.uplink_down"
    run_in(host.world, "ip", "link", "set", "out", "up")
    assert until(lambda: host.do(host.runner.repair()).problems == {})


def test_what_others_set_up_on_the_card_follows_and_what_they_take_comes_back(host: Host) -> None:
    policy, before = host.policy(), host.network()
    host.do(host.runner.ensure(policy))
    host.ip("addr add 192.0.2.44/24 dev eth0")
    host.ip("addr add 192.0.2.10/24 dev eth0")
    done = host.do(host.runner.repair()).done
    assert any("192.0.2.44/24" in one and "set up on eth0" in one for one in done)
    assert "eth0" not in host.network() and "inet 192.0.2.44/24" in " ".join(host.network()[BRIDGE])
    assert host.reaches()
    host.ip("addr del 192.0.2.44/24 dev " + BRIDGE)
    host.ip("addr flush dev " + BRIDGE)
    assert host.do(host.runner.repair()).done != []
    assert host.network() == {BRIDGE: before["eth0"]} and host.reaches()
    host.ip("link del " + BRIDGE)
    assert host.do(host.runner.repair()).done != []
    assert host.network() == {BRIDGE: before["eth0"]} and host.reaches()


def test_a_switch_that_belongs_to_nothing_gives_back_before_it_goes(host: Host) -> None:
    before = host.network()
    host.do(host.runner.ensure(host.policy()))
    later = SwitchRunner(INN_ID, host.directory, namespace=host.namespace)
    host.do(later.start([]))
    host.do(later.close())
    assert host.network() == before and host.reaches()


def test_a_step_that_the_kernel_refuses_is_named_and_the_host_is_as_before(host: Host) -> None:
    policy, before = host.policy(), host.network()
    assert policy.uplink is not None and policy.uplink.network is not None
    route = policy.uplink.network.routes[0].model_copy(update={"gateway": "10.255.255.1", "destination": "10.9.0.0/16"})
    network = policy.uplink.network.model_copy(update={"addresses": (), "routes": (route,)})
    host.ip("addr flush dev eth0 scope global")
    impossible = replace(policy, uplink=replace(policy.uplink, network=network))
    with pytest.raises(Failed) as refused:
        host.do(host.runner.ensure(impossible))
    assert refused.value.code == "switch.uplink_refused" and "10.9.0.0/16 via 10.255.255.1" in (
        refused.value.cause or ""
    )
    assert BRIDGE not in host.ip("link")
    for command in ("addr add 192.0.2.10/24 brd + dev eth0", "addr add 2001:db8::10/64 dev eth0 nodad"):
        host.ip(command)
    host.ip("route add default via 192.0.2.1 dev eth0")
    host.ip("-6 route add default via 2001:db8::1 dev eth0")
    assert host.network() == before
