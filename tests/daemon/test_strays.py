"""Which processes count as a vm's when nobody recorded them."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from waiting_process import waiting_process

from innkeeper.compute.launcher import GuestPlace
from innkeeper.daemon.strays import of_place


def test_a_process_is_the_vms_when_both_its_uid_and_its_directory_are(tmp_path: Path) -> None:
    place = GuestPlace(tmp_path / "run" / "vms" / "12345678", tmp_path / "state", os.getuid(), "none")
    socket = str(place.run_dir / "vnc.sock")
    with waiting_process(socket) as running:
        assert [one.pid for one in of_place(place)] == [running.pid]
        assert of_place(replace(place, uid=place.uid + 1)) == []
        assert of_place(replace(place, run_dir=tmp_path / "run" / "vms" / "87654321")) == [], "another inn's"
    assert of_place(place) == []
