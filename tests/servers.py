"""Real servers for tests, on loopback and free ports, with their data in a temporary folder."""

import json
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event

import fsspec


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def wait_for(ready: Callable[[], bool], what: str, seconds: float = 60) -> None:
    """Poll until `ready()`; fails with `what` when the time is over."""
    pause = Event()
    for _ in range(int(seconds / 0.05)):
        if ready():
            return
        pause.wait(0.05)
    raise AssertionError(f"{what}: not within {seconds} s")


def answers(url: str, *codes: int) -> bool:
    """Whether an HTTP server answers at `url` (with one of `codes`, when given)."""
    try:
        with urllib.request.urlopen(url, timeout=1) as response:
            return not codes or response.status in codes
    except urllib.error.HTTPError as error:
        return not codes or error.code in codes
    except OSError:
        return False


@dataclass(frozen=True)
class S3:
    """A running S3 server: `env` has what clients need."""

    endpoint: str
    env: dict[str, str]
    process: "subprocess.Popen[bytes]"

    def bucket(self, name: str) -> None:
        """Make a bucket."""
        options = {"key": self.env["AWS_ACCESS_KEY_ID"], "secret": self.env["AWS_SECRET_ACCESS_KEY"]}
        fsspec.filesystem("s3", endpoint_url=self.endpoint, skip_instance_cache=True, **options).mkdir(name)


@contextmanager
def s3_server(folder: Path) -> Iterator[S3]:
    """SeaweedFS' S3 gateway with one identity, keeping its data in `folder`. It takes a second key too: `nextkey`."""
    folder.mkdir(parents=True, exist_ok=True)
    key, secret = "testkey", "testsecret"
    identity = {
        "name": "test",
        "credentials": [
            {"accessKey": key, "secretKey": secret},
            {"accessKey": "nextkey", "secretKey": "nextsecret"},
        ],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
    process, endpoint = _start_weed(folder, tries=3)
    env = {
        "AWS_ACCESS_KEY_ID": key,
        "AWS_SECRET_ACCESS_KEY": secret,
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    try:
        yield S3(endpoint, env, process)
    finally:
        process.kill()
        process.wait()


def _start_weed(folder: Path, tries: int) -> "tuple[subprocess.Popen[bytes], str]":
    """It wants eight ports at once; where another process takes one of them first, others are tried."""
    master, master_grpc, volume, volume_grpc, filer, filer_grpc, port, s3_grpc = (free_port() for _ in range(8))
    command = [
        str(Path(sys.executable).parent / "weed"), "server", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1",
        f"-master.port={master}", f"-master.port.grpc={master_grpc}", f"-volume.port={volume}",
        f"-volume.port.grpc={volume_grpc}", f"-filer.port={filer}", f"-filer.port.grpc={filer_grpc}",
        "-s3", f"-s3.port={port}", f"-s3.port.grpc={s3_grpc}", f"-s3.config={folder}/s3.json",
        "-s3.port.lance=0", "-s3.port.iceberg=0", "-master.telemetry=false",
        "-master.volumeSizeLimitMB=64", "-volume.max=20",
    ]  # fmt: skip
    endpoint = f"http://127.0.0.1:{port}"
    with (folder / "weed.log").open("ab") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        wait_for(lambda: answers(endpoint, 200, 403), f"S3 server (see {folder}/weed.log)", seconds=30)
    except AssertionError:
        process.kill()
        process.wait()
        if tries == 1:
            raise
        return _start_weed(folder, tries - 1)
    return process, endpoint
