from __future__ import annotations

import io
import json

import pycdlib
import pytest

from innkeeper.compute.seed import MAX_TEXT_BYTES, SeedInputs, seed_files, seed_image, seed_inputs
from innkeeper.model.problems import Invalid
from innkeeper.model.resources import CloudInit, Vm, VmSpec

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ someone@somewhere"


def read(iso_bytes: bytes, kind: str) -> dict[str, str]:
    """File name -> text, by the names of that kind (``joliet_path`` or ``rr_path``)."""
    iso = pycdlib.PyCdlib()
    iso.open_fp(io.BytesIO(iso_bytes))
    assert iso.pvd.volume_identifier.decode().strip() == "cidata"
    found = {}
    for name in ("meta-data", "user-data", "vendor-data", "network-config"):
        out = io.BytesIO()
        try:
            iso.get_file_from_iso_fp(out, **{kind: f"/{name}"})
        except pycdlib.pycdlibexception.PyCdlibException:
            continue
        found[name] = out.getvalue().decode()
    iso.close()
    return found


@pytest.mark.parametrize("kind", ["joliet_path", "rr_path"])
def test_the_image_holds_the_files(kind: str) -> None:
    seed = SeedInputs("i-1", "web", network_config="version: 2\n", ssh_keys=[KEY])
    assert read(seed_image(seed), kind) == seed_files(seed)


def test_generated_data_names_host_and_keys_and_brings_the_agent() -> None:
    files = seed_files(SeedInputs("i-1", "web", ssh_keys=[KEY]))
    assert json.loads(files["meta-data"]) == {"instance-id": "i-1", "local-hostname": "web", "public-keys": [KEY]}
    assert files["user-data"].startswith("#cloud-config\n") and KEY in files["user-data"]
    assert "qemu-guest-agent" in files["vendor-data"]
    assert "network-config" not in files


def test_the_users_text_goes_in_verbatim() -> None:
    text = "#!/bin/sh\necho 'grüß dich'\n"
    seed = SeedInputs("i-1", "web", user_data=text, ssh_keys=[KEY])
    assert read(seed_image(seed), "joliet_path")["user-data"] == text
    assert KEY in seed_files(seed)["meta-data"]


@pytest.mark.parametrize(
    ("parts", "code"),
    [
        ({"ssh_keys": ["nonsense"]}, "seed.ssh_key"),
        ({"ssh_keys": [KEY + "\nssh-rsa AAAA"]}, "seed.ssh_key"),
        ({"user_data": "hello"}, "seed.user_data"),
        ({"user_data": "#" * (MAX_TEXT_BYTES + 1)}, "seed.too_large"),
    ],
)
def test_what_cloud_init_would_not_read_is_refused(parts: dict[str, object], code: str) -> None:
    with pytest.raises(Invalid) as refused:
        seed_image(SeedInputs("i-1", "web", **parts))  # type: ignore[arg-type]
    assert refused.value.code == code


def test_a_vms_seed() -> None:
    assert seed_inputs(Vm(name="web"), "version: 2").network_config == "version: 2"
    vm = Vm(name="Web_1", spec=VmSpec(cloud_init=CloudInit(ssh_keys=[KEY])))
    assert seed_inputs(vm) == SeedInputs(vm.id, "web-1", ssh_keys=(KEY,))
    own = Vm(name="web", spec=VmSpec(cloud_init=CloudInit(network_config="version: 1")))
    assert seed_inputs(own, "version: 2").network_config == "version: 1", "the user's own text goes first"
