"""The NoCloud seed: a small ISO from which cloud-init configures a guest at first boot. Pure: values in, bytes out.

Format: ISO 9660 with Joliet and Rock Ridge, volume label ``cidata``, files ``meta-data``, ``user-data``,
``vendor-data`` and, when given, ``network-config`` (cloud-init's documentation, "NoCloud"). The user's own texts go in
as they are; the guest agent comes through vendor-data, so that user-data stays the user's.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pycdlib

from innkeeper.model.problems import Invalid
from innkeeper.model.resources import CloudInit, Vm

MAX_TEXT_BYTES = 256 * 1024
_LABEL = "cidata"
_AGENT = "qemu-guest-agent"


@dataclass(frozen=True, slots=True)
class SeedInputs:
    """What the seed tells. A new ``instance_id`` makes cloud-init configure the guest anew."""

    instance_id: str
    hostname: str
    user_data: str | None = None
    network_config: str | None = None
    ssh_keys: Sequence[str] = ()


def seed_inputs(vm: Vm, network_config: str | None = None) -> SeedInputs:
    """The seed of a vm, with that network configuration unless the user gives one."""
    wish = vm.spec.cloud_init or CloudInit()
    hostname = wish.hostname or vm.name.replace("_", "-").replace(".", "-").lower()
    return SeedInputs(vm.id, hostname, wish.user_data, wish.network_config or network_config, tuple(wish.ssh_keys))


def seed_files(seed: SeedInputs) -> dict[str, str]:
    """The seed's files, name -> text. YAML is written as JSON, which is YAML.

    Raises ``Invalid`` (``seed.ssh_key``, ``seed.user_data``, ``seed.too_large``).
    """
    for key in seed.ssh_keys:
        if len(key.split()) < 2 or "\n" in key.strip():
            raise Invalid("seed.ssh_key", f"{key[:40]!r} is not an SSH public key", remedy="give a line of a .pub file")
    keys = [key.strip() for key in seed.ssh_keys]
    files = {
        "meta-data": _yaml({"instance-id": seed.instance_id, "local-hostname": seed.hostname, "public-keys": keys}),
        "user-data": _user_data(seed),
        "vendor-data": "#cloud-config\n" + _yaml(_vendor_data()),
    }
    if seed.network_config is not None:
        files["network-config"] = seed.network_config
    for name, text in files.items():
        if len(text.encode()) > MAX_TEXT_BYTES:
            raise Invalid("seed.too_large", f"{name} is larger than {MAX_TEXT_BYTES} bytes", remedy="fetch it at boot")
    return files


def _user_data(seed: SeedInputs) -> str:
    if seed.user_data is None:
        return "#cloud-config\n" + _yaml({"ssh_authorized_keys": [key.strip() for key in seed.ssh_keys]})
    if not seed.user_data.startswith(("#", "Content-Type:", "MIME-Version:")):
        raise Invalid(
            "seed.user_data",
            "the user data is not of a kind that cloud-init knows",
            cause="its first line says what it is, such as #cloud-config or #!/bin/sh",
            remedy="write #cloud-config as its first line",
        )
    return seed.user_data


def _vendor_data() -> dict[str, Any]:
    """Installs the guest agent where a package mirror can be reached, and starts it where it is.

    The network is configured anew at every boot: cards come and go, and addresses change.
    """
    start = f"systemctl enable --now {_AGENT} || rc-service {_AGENT} start || true"
    updates = {"network": {"when": ["boot-new-instance", "boot"]}}
    return {"packages": [_AGENT], "runcmd": [["sh", "-c", start]], "updates": updates}


def _yaml(value: Any) -> str:
    return json.dumps(value, indent=1) + "\n"


def seed_image(seed: SeedInputs) -> bytes:
    """The ISO. Raises like ``seed_files``."""
    iso = pycdlib.PyCdlib()
    iso.new(interchange_level=3, joliet=3, rock_ridge="1.09", vol_ident=_LABEL)
    for number, (name, text) in enumerate(seed_files(seed).items()):
        data = text.encode()
        iso.add_fp(io.BytesIO(data), len(data), f"/FILE{number}.;1", rr_name=name, joliet_path=f"/{name}")
    out = io.BytesIO()
    iso.write_fp(out)
    iso.close()
    return out.getvalue()
