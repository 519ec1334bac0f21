"""Uploads outlive errors, and one that was killed leaves nothing visible."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.faulty_lake import DATA
from support.faulty_proxy import FaultyProxy, s3_error
from support.servers import wait_for

from storage.lake import Zone
from storage.manifest import Manifest

pytestmark = pytest.mark.xdist_group("s3")


def test_an_upload_outlives_errors_and_cuts(proxy: FaultyProxy, zone: Zone) -> None:
    left = [s3_error(503, "SlowDown")] * 3
    proxy.answer(lambda head: left.pop() if left and head.startswith((b"PUT", b"POST")) else None)
    proxy.cut(after=0, times=2)
    data = DATA[: 9 << 20] + b"uploaded"
    stored = zone.publish(data, ".bin")
    assert not left
    assert zone.read(stored.path, stored.digest) == data


#: Copies a file into the zone, whose upload never ends.
UPLOAD = """
import sys
from pathlib import Path
from storage.lake import Zone
Zone(Path(sys.argv[1]), "s3://lake/faults").publish_stream(lambda: open(sys.argv[2], "rb"), ".bin")
"""


def test_a_killed_upload_leaves_nothing_visible_and_is_swept(
    proxy: FaultyProxy, zone: Zone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, waiting = tmp_path / "source.bin", tmp_path / "tmp"
    source.write_bytes(DATA + b"killed")
    waiting.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(waiting))
    foreign = waiting / ".incoming.abcdefgh.tmp"
    foreign.write_text("another program's")
    os.utime(foreign, (0, 0))
    before = zone.sizes()
    proxy.slow(100_000)
    proxy.answer(lambda head: proxy.stall() if head.startswith(b"PUT") else None)  # type: ignore[func-returns-value]
    env = {**os.environ, "TMPDIR": str(waiting)}
    process = subprocess.Popen([sys.executable, "-c", UPLOAD, str(zone.folder), str(source)], env=env)
    wait_for(lambda: any(head.startswith(b"PUT") for head in proxy.requests), "the upload")
    left = [file for file in waiting.iterdir() if file != foreign]
    assert [file.stat().st_size for file in left] == [len(DATA) + 6]
    os.utime(left[0], (0, 0))
    manifest = Manifest.build("raw", [], kind="files")
    assert zone.sweep(manifest) == 0  # its process lives
    process.send_signal(signal.SIGKILL)
    process.wait()
    proxy.heal()
    proxy.down()
    proxy.up()
    assert zone.sizes() == before
    os.utime(left[0])
    assert zone.sweep(manifest) == 0  # younger than this process
    os.utime(left[0], (0, 0))
    assert zone.sweep(manifest) == 1
    assert list(waiting.iterdir()) == [foreign]
