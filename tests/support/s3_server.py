"""A real S3 server on this machine's loopback: SeaweedFS in one process, with keys and buckets of its own."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from datetime import timedelta
from pathlib import Path

import obstore
from obstore import sign
from obstore.exceptions import BaseError
from obstore.store import S3Store

from innkeeper.system.blobs import Address, Credentials

KEYS = Credentials("inn-test-key", "inn-test-secret-3f9a")
READY_S = 60.0


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


class S3Server:
    """``start`` and ``stop`` as often as wanted: ports and data stay."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None
        directory.mkdir(parents=True)
        self._ports = _free_ports(8)
        self.endpoint = f"http://127.0.0.1:{self._ports[6]}"
        identity = {
            "name": "inn",
            "credentials": [{"accessKey": KEYS.access_key_id, "secretKey": KEYS.secret_access_key}],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        }
        (directory / "s3.json").write_text(json.dumps({"identities": [identity]}))

    def start(self) -> None:
        master, master_grpc, volume, volume_grpc, filer, filer_grpc, s3, s3_grpc = self._ports
        command = [
            *(str(Path(sys.executable).parent / "weed"), "-logtostderr=true", "server", f"-dir={self._directory}"),
            *("-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-volume.max=40", "-master.volumeSizeLimitMB=128"),
            *(f"-master.port={master}", f"-master.port.grpc={master_grpc}"),
            *(f"-volume.port={volume}", f"-volume.port.grpc={volume_grpc}"),
            *("-filer", f"-filer.port={filer}", f"-filer.port.grpc={filer_grpc}"),
            *("-s3", f"-s3.port={s3}", f"-s3.port.grpc={s3_grpc}", f"-s3.config={self._directory / 's3.json'}"),
            *("-s3.iam=false", "-s3.autoCreateBucket=false"),
            *("-s3.port.iceberg=0", "-s3.port.lance=0", "-filer.localSocket=filer.sock", "-s3.localSocket=s3.sock"),
        ]
        with (self._directory / "weed.log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, cwd=self._directory)
        deadline = time.monotonic() + READY_S
        while not self._ready():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError((self._directory / "weed.log").read_text()[-3000:])
            time.sleep(0.1)

    def _ready(self) -> bool:
        """Whether a bucket can be made and an object be put and read, which needs all the parts."""
        try:
            self.make_bucket("ready")
            store = self._store("ready")
            obstore.put(store, "ready", b"ready")
            return bytes(obstore.get(store, "ready").bytes()) == b"ready"
        except (BaseError, OSError):
            return False

    def stop(self) -> None:
        """End it at once, as a power cut would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
        for port in self._ports:  # sockets that it makes there whatever it is told
            for path in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
                path.unlink(missing_ok=True)

    def make_bucket(self, name: str) -> None:
        url = sign(self._store(name), "PUT", "", timedelta(seconds=60))
        try:
            urllib.request.urlopen(urllib.request.Request(url, method="PUT", data=b""), timeout=10).close()
        except urllib.error.HTTPError as answer:
            if answer.code != 409:  # it is there already
                raise

    def _store(self, bucket: str) -> S3Store:
        return S3Store(
            bucket,
            endpoint=self.endpoint,
            region="us-east-1",
            access_key_id=KEYS.access_key_id,
            secret_access_key=KEYS.secret_access_key,
            virtual_hosted_style_request=False,
            client_options={"allow_http": True},
            retry_config={"max_retries": 0},
        )

    def address(self, url: str, keys: Credentials = KEYS, patience_s: float = 5.0) -> Address:
        return Address(url, self.endpoint, "us-east-1", keys, patience_s)


BUCKET = "inn-tests"


def new_prefix(server: S3Server) -> str:
    """A URL below which there is nothing yet."""
    server.make_bucket(BUCKET)
    return f"s3://{BUCKET}/{os.urandom(6).hex()}"
