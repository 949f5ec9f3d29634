"""Every noun and verb through the real parser, client and API, on an in-memory house."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from running_api import RunningApi

from innkeeper.cli.main import run
from innkeeper.model.guards import GUARD_NAMES
from innkeeper.model.journal import Subject
from innkeeper.model.problems import NoSpace


class Shell:
    """Runs command lines in this process and keeps what they printed."""

    def __init__(self, capture: pytest.CaptureFixture[str]) -> None:
        self._capture = capture
        self.out = self.err = ""

    def __call__(self, line: str, *, code: int = 0) -> str:
        self._capture.readouterr()
        ended = run(line.split())
        self.out, self.err = self._capture.readouterr()
        assert ended == code, f"{line}: {ended}\n{self.out}{self.err}"
        return self.out

    def json(self, line: str) -> Any:
        return json.loads(self(f"{line} -o json"))


@pytest.fixture
def inn(served: RunningApi, capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(capsys)


@pytest.fixture
def web(inn: Shell) -> Shell:
    inn("image build debian/12")
    inn("switch create lan")
    inn("vm create web --image debian/12 --switch lan --memory 512M --cpus 1 --disk 4G --wait ready")
    return inn


def test_the_examples_of_the_readme(web: Shell, tmp_path: Path) -> None:
    assert "web is ready" in web.err
    assert web("vm exec web -- echo hi") == "echo hi\n"
    web("checkpoint create web before-upgrade")
    web("checkpoint apply web before-upgrade")
    web("disk create d --size 1G")
    web("disk snapshot d monday")
    web("disk clone d e --snapshot monday")
    assert web("disk diff d monday") == "65536\t131072\tdata\n"
    web("disk snapshot d tuesday")
    drawn = [line.split()[:3] for line in web("disk snapshots d").splitlines()[1:]]
    assert drawn[0][:2] == ["monday", "snapshot"]
    assert drawn[1:] == [["├─", "d", "clone"], ["└─", "tuesday", "snapshot"], ["└─", "now", "disk"]]
    assert web.json("disk snapshots d")[1]["parent_id"] == web.json("disk snapshots d")[0]["id"]
    assert web("disk snapshots d -q").split() == ["monday", "tuesday"]
    web("disk revert d monday")
    web("disk revert d friday", code=1)
    web("disk attach d web")
    web("disk detach d")
    web(f"repository create main --path {tmp_path}")
    web("backup create web --repository main")
    assert "web@0" in web.out
    web("vm rm web --with-disks --force")
    web("backup restore web --as web2")
    assert "web2 restored from web@0" in web.err
    web("vm start web2")
    assert [vm["name"] for vm in web.json("vm ls")] == ["web2"]


def test_tables_can_be_cut_by_awk(web: Shell) -> None:
    header, row = web("vm ls").splitlines()
    assert header.split()[:3] == ["NAME", "STATE", "AGENT"]
    assert row.split()[:5] == ["web", "running", "yes", "1", "512.0"]
    assert web("vm list -q") == "web\n"


def test_details_show_what_matters(web: Shell) -> None:
    shown = web("vm show web")
    assert "memory" in shown and "512.0 MiB" in shown
    nic = web("nic show web-0")
    assert "dropped_packets.arp" in nic


def test_data_goes_to_stdout_and_messages_to_stderr(inn: Shell) -> None:
    assert inn("switch create lan") == ""
    assert inn.err == "switch lan made\n"
    assert inn("switch create other -q").strip() == inn.json("switch show other")["id"]


def test_a_dry_run_prints_a_plan(web: Shell) -> None:
    assert "would create b" in web("vm create b --image debian/12 --dry-run")
    assert "nothing has been done" in web.out
    assert "+new" in web("switch set lan --no-dhcp --dry-run")
    for line in (
        "vm clone web x --dry-run",
        "checkpoint create web now --dry-run",
        "image build probe --dry-run",
        "disk create d --size 1G --dry-run",
        "storage create fast --dry-run",
        "switch create x --dry-run",
        "switch rm lan --dry-run",
        "nic create web --switch lan --dry-run",
        "nic set web-0 --no-guard arp --dry-run",
        "nic rm web-0 --dry-run",
        "repository create r --path /tmp/r --dry-run",
    ):
        assert "dry run" in web(line)
    assert len(web.json("vm ls")) == 1


def test_each_life_cycle_verb_reaches_its_state(web: Shell) -> None:
    for verb, state in (
        ("pause", "paused"),
        ("resume", "running"),
        ("reset", "running"),
        ("save", "saved"),
        ("start", "running"),
        ("shutdown", "stopped"),
        ("start", "running"),
        ("poweroff", "stopped"),
    ):
        web(f"vm {verb} web")
        assert web.json("vm show web")["status"]["state"] == state
    web("vm rename web www")
    web("vm clone www copy")
    web("vm delete www copy --force")
    assert web.json("vm list") == []


def test_guards_are_switched_one_by_one(web: Shell) -> None:
    web("nic set web-0 --no-guard arp --no-guard mac")
    assert "off: mac, arp" in web("nic ls")
    web("nic set web-0 --guard all")
    guards = web.json("nic show web-0")["guards"]
    assert {name for name, on in guards.items() if on is True} == {*GUARD_NAMES}
    web("nic set web-0 --default-guard all --no-guard storm --ethertype 0x88cc --broadcast-rate 50")
    guards = web.json("nic show web-0")["guards"]
    assert (guards["arp"], guards["storm"], guards["ethertypes"], guards["broadcast_per_s"]) == (
        None,
        False,
        [0x88CC],
        50,
    )
    web("nic set web-0 --no-ethertypes --extra-mac 00:00:5e:00:01:07 --extra-address 2001:db8::7")
    shown = web.json("nic show web-0")
    assert (shown["guards"]["ethertypes"], shown["extra_macs"]) == ([], ["00:00:5e:00:01:07"])
    web("nic set web-0 --ethertype 0x8100", code=2)
    web("switch create quiet --no-guard nd --multicast-rate 9")
    assert web.json("switch show quiet")["guards"]["nd"] is False
    web("switch set quiet --default-guard nd")
    assert web.json("switch show quiet")["guards"]["nd"] is True
    web("nic set web-0", code=2)
    web("nic set web-0 --max-in 100M --max-out 1.5Gbit/s --burst 256K --mirror source")
    bounds = {"max_in_bits_per_s": 100_000_000, "max_out_bits_per_s": 1_500_000_000, "burst_bytes": 262_144}
    assert bounds.items() <= web.json("nic show web-0")["traffic"].items()
    assert "100 Mbit/s/1.5 Gbit/s" in web("nic ls")
    web("nic set web-0 --max-in 0 --mirror none")
    assert web.json("nic show web-0")["traffic"]["max_in_bits_per_s"] is None
    assert "-/1.5 Gbit/s" in web("nic ls")
    web("nic set web-0 --meter 192.0.2.7/24 --meter 2001:db8::/32 --dscp 46 --pcp 5 --min-weight 50")
    traffic = web.json("nic show web-0")["traffic"]
    marks = [traffic[each] for each in ("meters", "dscp", "pcp", "min_weight")]
    assert marks == [["192.0.2.0/24", "2001:db8::/32"], 46, 5, 50]
    assert "192.0.2.0/24" in web("nic meter web-0") and "1500" in web("nic meter web-0")
    assert {one["bytes"] for one in web.json("nic meter web-0 --reset")["counts"]} == {0}
    web("nic set web-0 --no-meters --dscp trust --pcp trust")
    assert {"meters": [], "dscp": None, "pcp": None}.items() <= web.json("nic show web-0")["traffic"].items()
    for wrong in ("--max-in 1k", "--max-out fast", "--burst 1", "--mirror both", "--dscp 64", "--pcp 8", "--meter web"):
        web(f"nic set web-0 {wrong}", code=2)


def test_frames_are_captured_to_a_file(web: Shell, tmp_path: Path) -> None:
    file = tmp_path / "web.pcap"
    web(f"port capture web-0 --seconds 1 --count 5 --max-bytes 1M --file {file}")
    assert file.read_bytes()[:4] == b"\x4d\x3c\xb2\xa1"
    assert len(file.read_bytes()) == 24 + 16 + 17
    refused = tmp_path / "refused.pcap"
    web(f"port capture web-0 --filter bogus --file {refused}", code=1)
    assert not refused.exists(), "what is refused leaves no file"
    web(f"port capture nobody --file {refused}", code=1)
    web(f"port capture web-0 --seconds 2h --file {refused}", code=2)
    web(f"port capture web-0 --count 0 --file {refused}", code=2)
    web(f"port capture web-0 --file {tmp_path}/none/web.pcap", code=1)


def test_storages_and_pools(web: Shell) -> None:
    web("storage create fast --no-dedup")
    assert "fast" in web("storage ls")
    web("storage set fast --compression zstd --level 9 --dedup")
    assert "zstd 9" in web("storage ls")
    assert web.json("storage show fast")["disks"] == 2
    assert "figures.dedup_ratio" in web("storage show fast")
    web("storage set fast", code=2)
    web("storage set fast --level 20", code=2)
    web("pool set default --cache 2G")
    assert "2.0 GiB" in web("pool ls")
    assert "hits" in web("pool show default")
    web("pool set default --cache auto")
    assert web.json("pool show default")["cache_bytes"] is None
    web("pool set default", code=2)
    web("pool scrub default")
    assert "pool default is sound" in web.err
    web("pool add default /mnt/hdd --tier slow")
    assert "/mnt/hdd" in web("pool show default")
    web("pool drain default /mnt/hdd")
    assert "/mnt/hdd" not in web("pool show default")
    web("pool drain default /mnt/hdd", code=1)
    web("pool set default --cache 1M", code=2)
    web("storage rm fast")


def test_pools(inn: Shell, tmp_path: Path) -> None:
    inn(f"pool create flash {tmp_path} --dry-run")
    inn(f"pool create flash {tmp_path}")
    assert inn.json("pool ls")[1]["path"] == str(tmp_path)
    inn("storage create quick --pool flash")
    assert inn("storage ls").splitlines()[-1].split()[:2] == ["quick", "flash"]
    inn("storage create odd --pool none", code=1)
    inn("pool open flash")
    inn("pool rm flash --lost")


def test_an_object_store_in_a_pool(web: Shell, served: RunningApi, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("[default]\naws_access_key_id = inn\naws_secret_access_key = a-secret\n")
    web(f"pool add default s3://cold/inn1 --endpoint https://s3.example.org --key-file {key}")
    assert "s3://cold/inn1" in web("pool show default")
    assert served.house.pools.added.secret_access_key == "a-secret" and "a-secret" not in repr(served.house.pools.added)
    web("pool drain default s3://cold/inn1")
    web("pool add default ftp://cold/inn1", code=2)
    web("pool add default s3://cold/inn1 --endpoint nowhere", code=2)
    web(f"pool add default /mnt/hdd --key-file {key}", code=2)
    key.write_text("access_key_id = inn\n")
    web(f"pool add default s3://cold/inn1 --key-file {key}", code=2)
    web("pool add default /dev/sdb --format")
    assert served.house.pools.added.format and served.house.pools.added.path == "/dev/sdb"


def test_policies_of_storages_and_disks(web: Shell) -> None:
    web("qos create silver --max-iops 2000 --min-iops 200 --max-bandwidth 100M --burst 5")
    assert "2000" in web("qos ls")
    assert "100.0 MiB/s" in web("qos ls")
    web("qos set silver --min-iops 0 --aggregated")
    shown = web.json("qos show silver")
    assert (shown["min_iops"], shown["aggregated"], shown["max_iops"]) == (None, True, 2000)
    assert shown["flows"][0]["minimum_missed"] is True
    web("qos set silver", code=2)
    web("qos create wrong --burst 0", code=2)
    web("storage create cold --cold-level 19 --cold-after 12h --quota 1T --reserve 10G --tier slow --qos silver")
    shown = web.json("storage show cold")
    assert (shown["cold_level"], shown["cold_after_s"], shown["quota_bytes"]) == (19, 43200.0, 1 << 40)
    assert shown["qos_id"] == web.json("qos show silver")["id"]
    web("storage set cold --quota 0 --tier none --qos none --cold-level 0")
    shown = web.json("storage show cold")
    assert [shown[name] for name in ("quota_bytes", "tier", "qos_id", "cold_level")] == [None] * 4
    assert shown["reservation_bytes"] == 10 << 30
    web("storage set cold --cold-after soon", code=2)
    web("disk create d --size 1G --thick --tier fast")
    assert web.json("disk show d")["thick"] is True
    web("disk set d --thin --tier none --qos silver --storage cold --name e")
    shown = web.json("disk show e")
    assert (shown["thick"], shown["tier"]) == (False, None)
    assert shown["storage_id"] == web.json("storage show cold")["id"]
    assert "home" in web("disk show e")
    web("disk set e", code=2)
    web("qos rm silver")


def test_the_curator_is_run_paused_and_watched(web: Shell) -> None:
    web("pool curate default")
    assert "as its policies say" in web.err
    web("pool pause default")
    assert "rests" in web.err
    web("pool resume default")
    assert "goes on" in web.err
    assert "███" in web("pool hot default")
    assert web.json("pool hot default")[0]["number"] == 7
    assert "innkeeper_pool_disks 2.0" in web("metrics")


def test_the_other_verbs(web: Shell, tmp_path: Path) -> None:
    web("vm set web --cpus 2 --memory 1G --label team=a --protect")
    assert web.json("vm show web")["spec"]["cpus"] == 2
    assert web("vm ls --label team=b -q") == ""
    web("checkpoint create web now --kind standard")
    assert "standard" in web("checkpoint ls web")
    web("checkpoint show web now")
    web("checkpoint set web now --name then --label why=upgrade")
    assert web.json("checkpoint show web then")["labels"] == {"why": "upgrade"}
    web("checkpoint set web then --no-labels")
    assert web.json("checkpoint show web then")["labels"] == {}
    web("checkpoint set web then", code=2)
    web("checkpoint rm web then")
    web("disk create d --size 1G")
    web("disk resize d 2G")
    web("disk resize d 1G", code=1)
    web("disk resize d 1G --shrink")
    web("disk set d --name e --label a=b")
    web("disk rm e")
    web("switch set lan --forward 8080=web:80 --forward udp:127.0.0.1:53=web:53")
    web("switch show lan")
    web("switch set lan --forward [2001:db8::1]:8080=web:80 --subnet6 auto --ra-mode slaac --ntp 2001:db8::7")
    web("switch set lan --forward nonsense", code=2)
    web("switch set lan --host-service tcp/3142 --host-service udp/123")
    assert "tcp/3142" in web("switch show lan -o json")
    web("switch set lan --no-host-services")
    assert "3142" not in web("switch show lan -o json")
    for wrong in ("tcp/0", "tcp/70000", "gre/5", "sctp", "3142"):
        web(f"switch set lan --host-service {wrong}", code=2)
    web("switch set lan --forward 2001:db8::1:8080=web:80", code=2)
    web("switch set lan --range 10.0.0.9", code=2)
    web("switch set lan --option 51=60", code=2)
    web("switch set lan --subnet6 fd00::1", code=2)
    (tmp_path / "x.iso").touch()
    web(f"image import tools {tmp_path}/x.iso --iso")
    web("vm set web --iso tools")
    assert web.json("vm show web")["spec"]["iso_image_id"]
    web("vm set web --no-iso")
    assert web.json("vm show web")["spec"]["iso_image_id"] is None
    web("image rm tools")
    web(f"repository create main --path {tmp_path}")
    assert "extents: 12" in web("repository verify main")
    assert "remove" in web("repository prune main --keep-last 3 --dry-run")
    web("repository prune main --keep-days 3")
    web("repository prune main", code=2)
    web("backup create web --repository main")
    web("backup show web")
    web("backup set web --label keep=yes")
    assert web.json("backup show web@0")["labels"] == {"keep": "yes"}
    web("backup set web@0", code=2)
    web("backup verify web@0")
    web("backup rm web@0")
    assert "vm.create" in web("task ls")
    assert web("host show -o json")
    web("host set --allow-docker")
    assert json.loads(web("host show -o json"))["allow_docker"] is True
    web("host set --no-allow-docker")
    assert json.loads(web("host show -o json"))["allow_docker"] is False
    web("host set", code=2)
    assert "kvm" in web("doctor")


def test_a_problem_is_told_with_code_cause_and_remedy(inn: Shell, served: RunningApi) -> None:
    served.house.failing["vm.create"] = NoSpace(
        "pool.full", "the pool is full", cause="0 bytes free", remedy="add space"
    )
    inn("vm create web", code=1)
    assert inn.out == ""
    assert inn.err.splitlines()[-3:] == [
        "error: the pool is full [pool.full]",
        "  cause: 0 bytes free",
        "  remedy: add space",
    ]


@pytest.mark.parametrize(
    "line",
    [
        "vm create",
        "vm create 1web",
        "vm create web --memory lots",
        "vm create web --disk 1.0001K",
        "vm create web --cpus 0",
        "vm create web --secure-boot",
        "vm create web --address 10.0.0.1",
        "vm create web --no-start --wait ready",
        "vm frobnicate",
        "disk create d",
        "switch create lan --subnet 10.0.0.1/24",
        "vm set web",
        "vm ls -o xml",
    ],
)
def test_wrong_usage_ends_with_2(inn: Shell, line: str) -> None:
    inn(line, code=2)
    assert inn.out == ""
    assert inn.err


def test_what_does_not_exist_ends_with_1(inn: Shell) -> None:
    inn("vm show nobody", code=1)
    assert "[vm.not_found]" in inn.err
    inn("vm create web --image nothing", code=1)
    assert "[image.not_found]" in inn.err


def test_exec_ends_with_the_commands_own_code(web: Shell) -> None:
    web("vm exec web -- false --option", code=3)
    assert web.out == "false --option\n"


def test_a_task_can_be_left_and_taken_up_again(inn: Shell, served: RunningApi) -> None:
    gate = served.house.held["vm.create"] = asyncio.Event()
    task = inn.json("vm create web --wait none")
    assert "running" in inn("task ls --running")
    served.loop.call_soon_threadsafe(gate.set)
    inn(f"task wait {task['name']}")
    assert "succeeded" in inn.err
    inn(f"task cancel {task['name']}")


def test_progress_off_a_terminal_is_plain_lines(inn: Shell) -> None:
    inn("vm create web")
    assert "vm.create web: " in inn.err  # which of its steps are seen is up to the machine
    assert "\x1b" not in inn.err + inn.out


def test_interrupting_a_wait_leaves_the_task(inn: Shell, served: RunningApi, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("innkeeper.client.inn.InnClient.wait", interrupted)
    inn("vm create web", code=1)
    assert "inn task wait vm.create-" in inn.err
    assert "inn task cancel vm.create-" in inn.err


def test_access_control_lists(web: Shell) -> None:
    web("nic acl add web-0 deny both --remote 192.0.2.0/24")
    web("nic acl add web-0 allow in --weight 100 --protocol tcp --local-port 443 --stateful --idle-timeout 1m --log")
    web("nic acl add web-0 meter in")
    web("acl create servers")
    web("acl add servers deny in --weight 1")
    web("acl add servers allow out --local 10.0.0.0/24")
    web("nic acl attach web-0 servers")
    listed = web("nic acl ls web-0")
    assert "in/100" in listed and "allow in tcp local port 443 stateful 60 s log" in listed and "in/meter/any" in listed
    assert [line.split()[:2] for line in listed.splitlines() if "servers" in line] == [
        ["out/local/10.0.0.0/24", "servers"],
        ["in/1", "servers"],
    ]
    assert web("acl lines servers -q").split() == ["out/local/10.0.0.0/24", "in/1"]
    assert web.json("acl show servers")["nics"] == ["web-0"]
    assert "servers" in web("acl ls")
    web("nic acl rm web-0 in/100 in/remote/192.0.2.0/24")
    own = web.json("nic acl ls web-0")
    assert [one["direction"] for one in own["entries"]] == ["out", "in"] and own["rules"] == []
    web("acl drop servers in/1")
    assert web.json("acl lines servers")["rules"] == []
    web("nic acl detach web-0 servers")
    web("acl set servers --name spare")
    web("acl rm spare")
    for wrong in (
        "nic acl add web-0 deny in --protocol tcp",
        "nic acl add web-0 deny in --weight 1 --local-port 443",
        "nic acl add web-0 deny in --remote 10.0.0.1/8",
        "nic acl add web-0 deny both --remote 192.0.2.0/24",
        "nic acl rm web-0 in/7",
    ):
        web(wrong, code=2)
    web("nic acl add web-0 deny in --remote any --dry-run")
    assert len(web.json("nic acl ls web-0")["entries"]) == 2


def test_what_decides_about_packets(web: Shell) -> None:
    assert "tcp 443 40000" in web("port trace web-0 in --remote 192.0.2.7 --local-port 443")
    assert "web-0: it passes" in web.err
    assert "tcp 40000 22" in web("port trace web-0 out --remote 192.0.2.7 --remote-port 22")
    assert web.json("port trace web-0 in --remote 192.0.2.7 --protocol icmp")["allowed"] is True
    assert "dropped, logged" in web("switch simulate lan web db tcp/5432")
    assert "web does not reach db with tcp/5432" in web.err
    for wrong in (
        "port trace web-0 in --remote 192.0.2.7",
        "port trace web-0 in --remote 192.0.2.0/24 --local-port 443",
        "port trace web-0 in --remote 192.0.2.7 --protocol icmp --local-port 443",
        "port trace web-0 in --remote 192.0.2.7 --protocol any --local-port 443",
        "port trace web-0 in --remote 192.0.2.7 --protocol wrong --local-port 443",
        "switch simulate lan web db tcp",
        "switch simulate lan web db icmp/7",
        "switch simulate lan web db tcp/https",
    ):
        web(wrong, code=2)


def test_events(web: Shell, served: RunningApi) -> None:
    journal, nic = served.house.events_journal, served.house.nics.shelf.get("web-0")

    async def happen() -> None:
        journal.note("GuardDropped", nic, "3 forged ARP packets", "warning", count=3)
        journal.note("SwitchRepaired", Subject(kind="switch", id="s", name="lan"), "the bridge was made again")

    asyncio.run_coroutine_threadsafe(happen(), served.loop).result(10)
    lines = web("event ls").splitlines()
    assert lines[0].split() == ["LAST", "COUNT", "SEVERITY", "REASON", "SUBJECT", "MESSAGE"]
    assert lines[1].split()[3:7] == ["3", "warning", "GuardDropped", "nic/web-0"]
    assert [one["reason"] for one in web.json("event ls --vm web")] == ["GuardDropped"]
    assert [one["count"] for one in web.json("event ls --severity warning --since 1h")] == [3]
    assert web("event ls --subject lan -q") == "the bridge was made again\n"
    assert web.json("event ls --since 0s") == []
    assert "there is no vm" in web.err if web("event ls --vm nobody", code=1) else web.err
    assert len(web("event ls -n 1").splitlines()) == 2
