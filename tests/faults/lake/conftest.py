"""An S3 server behind a proxy that harms it, and a zone with an object in it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.faulty_lake import DATA
from support.faulty_proxy import FaultyProxy
from support.servers import S3Machine

from storage.lake import StoredObject, Zone


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Machine]:
    server = S3Machine(tmp_path_factory.mktemp("s3"))
    with server.stack:
        yield server


@pytest.fixture
def proxy(server: S3Machine, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    """What this process takes for the S3 server."""
    with FaultyProxy(*server.place) as proxy:
        for name, value in server.s3.env.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{proxy.address}")
        yield proxy


@pytest.fixture
def zone(proxy: FaultyProxy, tmp_path: Path) -> Zone:
    return Zone(tmp_path / "zone", "s3://lake/faults")


@pytest.fixture
def stored(zone: Zone) -> StoredObject:
    return zone.publish(DATA, ".bin")
