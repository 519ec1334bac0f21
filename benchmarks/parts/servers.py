"""The servers that benchmarks run against, the ones of the tests: SeaweedFS with its data kept, Valkey on a socket."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.setting import Setting
from storage.cache.hot.embedded import Embedded
from tests.support.servers import s3_server, wait_for

BUCKET = "benchmarks"
Env = dict[str, str]


@contextmanager
def s3(setting: Setting) -> Iterator[Env]:
    """The environment of clients of an S3 server with the bucket `benchmarks`; what was put there once stays.

    A server that the environment names already (AWS_ENDPOINT_URL and its credentials) is used as it is.
    """
    if "AWS_ENDPOINT_URL" in os.environ:
        _make_bucket()
        yield {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
        return
    with s3_server(setting.data / "s3") as server:
        before = dict(os.environ)
        os.environ.update(server.env)
        try:
            _make_bucket()
            yield server.env
        finally:
            os.environ.clear()
            os.environ.update(before)


def _make_bucket() -> None:
    import s3fs

    fs = s3fs.S3FileSystem(skip_instance_cache=True)
    if not fs.exists(BUCKET):
        fs.mkdir(BUCKET)
    paths = fs.find(BUCKET)

    def whole() -> bool:
        """A server that has just started answers before it has found all of its volumes."""
        try:
            while paths:
                fs.cat_file(paths[-1], start=-1)
                paths.pop()
            return True
        except OSError:
            return False

    wait_for(whole, "the S3 server's objects of earlier runs")


@contextmanager
def redis(budget_bytes: int) -> Iterator[str]:
    """The URL of an empty Valkey with room for `budget_bytes`, on a Unix socket."""
    with tempfile.TemporaryDirectory() as folder:
        server = Embedded(Path(folder), budget_bytes)
        try:
            yield server.url
        finally:
            server.close()
