"""What the running kernel is said to have is what it has."""

from __future__ import annotations

import subprocess

import pytest

from innkeeper.system.kernel_parts import kernel_parts


def test_what_nobody_has_is_not_there() -> None:
    assert kernel_parts(["no_such_part", "tun"]) == {"no_such_part": False, "tun": True}


@pytest.mark.root
@pytest.mark.parametrize("kind", ["ifb", "vxlan"])
def test_a_kind_of_device_that_is_said_to_be_there_can_be_made(kind: str) -> None:
    options = {"ifb": [], "vxlan": ["id", "7", "dstport", "4789"]}[kind]
    argv = ["unshare", "--net", "ip", "link", "add", "probe", "type", kind, *options]
    made = subprocess.run(argv, capture_output=True, check=False)
    assert (made.returncode == 0) == kernel_parts([kind])[kind], made.stderr
