"""The embedded server when its users, its keeper or itself are killed or stopped."""

import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY
from support.servers import pings, redis_client, wait_for

from storage.cache import HotCache
from storage.cache.hot.embedded import Embedded
from storage.cache.hot.link import Unavailable

pytestmark = pytest.mark.xdist_group("redis")

USER = """
import sys
from pathlib import Path
from storage.cache.hot.embedded import Embedded
server = Embedded(Path(sys.argv[1]), 1 << 26)
print(server.url, flush=True)
sys.stdin.read()
"""


def embedded_user(folder: Path) -> "subprocess.Popen[str]":
    """Uses the embedded server of `folder` until it is killed; its first line is the URL."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    command = [sys.executable, "-c", USER, str(folder)]
    return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(REPOSITORY)}, text=True, **pipes)  # type: ignore[call-overload,no-any-return]


def pid_at(url: str) -> int:
    """Of the server at `url`, once it answers."""
    client = redis_client(url)
    wait_for(lambda: pings(client), f"a server at {url}", seconds=20)
    pid = int(client.info("server")["process_id"])
    client.close()
    return pid


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def runs(pid: int) -> bool:
    """Whether the process is there, and no zombie."""
    try:
        return bool(Path(f"/proc/{pid}/cmdline").read_bytes())
    except (FileNotFoundError, ProcessLookupError):
        return False


def answers(cache: HotCache) -> bool:
    try:
        return cache.usage()["bytes"] == 0
    except Unavailable:
        return False


def test_the_embedded_server_ends_with_its_last_user(tmp_path: Path) -> None:
    """However they end: of two that share it, one is killed, then the other; then a third gets a new one."""

    def user() -> "subprocess.Popen[str]":
        return embedded_user(tmp_path / "valkey")

    with user() as first, user() as second:
        assert first.stdout is not None
        assert second.stdout is not None
        url = first.stdout.readline().strip()
        assert second.stdout.readline().strip() == url
        socket = Path(url.removeprefix("unix://"))
        first.kill()
        first.wait()
        cache = HotCache(url, 1 << 26)
        assert cache.usage()["bytes"] == 0
        second.kill()
        wait_for(lambda: not (tmp_path / "valkey" / "url").exists(), "the server to end")
        assert not socket.parent.exists()
        cache.close()
    with user() as third:
        assert third.stdout is not None
        assert third.stdout.readline().strip() not in ("", url)
        third.kill()


def test_the_embedded_server_ends_with_its_keeper(tmp_path: Path) -> None:
    """The keeper is killed: nothing is left that nobody looks after. The next user's is where the first one looks."""
    first = Embedded(tmp_path / "valkey", 1 << 26)
    cache, server = HotCache(first.url, 1 << 26), pid_at(first.url)
    assert answers(cache)
    os.kill(parent_of(server), signal.SIGKILL)
    wait_for(lambda: not runs(server), "the server to end", seconds=10)
    second = Embedded(tmp_path / "valkey", 1 << 26)
    assert second.url == first.url
    wait_for(lambda: answers(cache), "the first user to find the server", seconds=10)
    cache.close()
    first.close()
    assert runs(pid_at(second.url))
    second.close()
    wait_for(lambda: not (tmp_path / "valkey" / "url").exists(), "the server to end", seconds=10)
    assert not Path(first.url.removeprefix("unix://")).parent.exists()


def test_an_embedded_server_that_is_killed_comes_back(tmp_path: Path) -> None:
    """By the kernel when memory is short, say: its users find it again. One that begins meanwhile waits for it."""
    first = Embedded(tmp_path / "valkey", 1 << 26)
    cache, server = HotCache(first.url, 1 << 26), pid_at(first.url)
    keeper = parent_of(server)
    assert answers(cache)
    os.kill(server, signal.SIGKILL)
    wait_for(lambda: not runs(server), "the server to end", seconds=10)
    second = Embedded(tmp_path / "valkey", 1 << 26)
    assert second.url == first.url
    wait_for(lambda: answers(cache), "the first user to find the server", seconds=10)
    assert parent_of(pid_at(first.url)) == keeper
    cache.close()
    first.close()
    second.close()
    wait_for(lambda: not runs(keeper), "the keeper to end", seconds=10)
    assert not Path(first.url.removeprefix("unix://")).parent.exists()


@pytest.mark.parametrize("held", ["start", "users"])
def test_a_lock_of_the_embedded_server_that_nobody_lets_go(tmp_path: Path, held: str) -> None:
    """Whoever starts the server, or ends it, is stopped."""
    with (tmp_path / held).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(RuntimeError, match=rf"locked by another process.*{tmp_path}/{held}.*cache\.hot\.url"):
            Embedded(tmp_path, 1 << 26, timeout=0.2)
    server = Embedded(tmp_path, 1 << 26)
    assert runs(pid_at(server.url))
    server.close()
