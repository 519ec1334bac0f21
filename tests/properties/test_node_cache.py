"""The node cache's folder for any history of fetches, deaths and damage: what it holds, and what it says it holds."""

import os
import shutil
import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from storage.cache.node.cache import Claim, NodeCache
from storage.cache.node.index import Index

BUDGET, RING = 100, 40
KEYS = st.sampled_from("abcdefgh")
SIZES = {"a": 10, "b": 20, "c": 30, "d": 35, "e": 40, "f": 41, "g": 60, "h": 101}


def digest(key: str) -> str:
    return key * 64 if key in "abcdef" else ("0" if key == "g" else "1") * 64


class Folder(RuleBasedStateMachine):
    """Processes, each with a cache of its own on one folder; `claims` are the fetches under way, `lost` those whose
    file went with the folder."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp()) / "node"
        self.claims: dict[str, Claim] = {}
        self.lost: list[tuple[str, Claim]] = []
        self.restart()

    def teardown(self) -> None:
        for claim in [*self.claims.values(), *(claim for _, claim in self.lost)]:
            claim.abandon()
        shutil.rmtree(self.folder.parent)

    def bytes_of(self, key: str) -> bytes:
        return key.encode() * SIZES[key]

    @rule()
    def restart(self) -> None:
        """Another process."""
        self.cache = NodeCache(self.folder, BUDGET, RING, timeout=0)

    @rule(key=KEYS)
    def fetch(self, key: str) -> None:
        found = self.cache.claim(digest(key), SIZES[key])
        if isinstance(found, Path):
            assert found.read_bytes() == self.bytes_of(key)
        elif isinstance(found, Claim):
            assert key not in self.claims
            self.claims[key] = found
        elif key not in self.claims:  # nor is another fetching it: there is no place
            with self.cache._index() as index:
                pinned = index.bytes - sum(index.ring.values())
                arriving = sum(index.ring.get(digest(other), 0) for other in self.claims)
            assert SIZES[key] > min(RING, BUDGET - pinned) - arriving
            assert pinned + SIZES[key] > BUDGET - RING

    @rule(key=KEYS)
    def commit(self, key: str) -> None:
        if key in self.claims:
            path = self.claims.pop(key).commit(memoryview(self.bytes_of(key)))
            assert path is not None
            assert path.read_bytes() == self.bytes_of(key)

    @rule(key=KEYS)
    def abandon(self, key: str) -> None:
        if key in self.claims:
            self.claims.pop(key).abandon()
            assert not self.cache.temporary(digest(key)).exists()

    @rule(key=KEYS)
    def die(self, key: str) -> None:
        """The process that fetches it: the kernel lets its lock go, and its file stays."""
        if key in self.claims:
            os.close(self.claims.pop(key).descriptor)

    @rule(key=KEYS)
    def drop(self, key: str) -> None:
        self.cache.drop([digest(key)])
        assert not self.cache.path(digest(key)).exists()

    @rule(key=KEYS, left=st.integers(0, 9))
    def cut(self, key: str, left: int) -> None:
        """A file loses its end, and somebody looks for it."""
        path = self.cache.path(digest(key))
        if path.exists():
            os.truncate(path, left)
            assert self.cache.find(digest(key), SIZES[key]) is None
            assert not path.exists()

    @rule()
    def tear_the_index(self) -> None:
        if self.folder.exists():
            (self.folder / "shardline" / "index.json").write_text('{"bytes": 1')

    @rule()
    def delete_the_folder(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        self.lost.extend(self.claims.items())
        self.claims.clear()

    @rule(commits=st.booleans())
    def end_a_lost_one(self, commits: bool) -> None:
        if self.lost:
            key, claim = self.lost.pop(0)
            before = self.cache.path(digest(key)).exists()
            if commits:
                assert claim.commit(memoryview(self.bytes_of(key))) is None
            else:
                claim.abandon()
            assert self.cache.path(digest(key)).exists() == before

    @invariant()
    def it_holds_what_it_says_within_the_budget(self) -> None:
        if not (self.folder / "shardline" / "objects").is_dir():
            return
        held = {file.name: file.stat().st_size for file in (self.folder / "shardline" / "objects").iterdir()}
        assert sum(held.values()) <= BUDGET
        with self.cache._index() as index:
            assert isinstance(index, Index)
            now = {file.name: file.stat().st_size for file in (self.folder / "shardline" / "objects").iterdir()}
            assert index.bytes == sum(now.values())
            assert sum(index.ring.values()) <= RING
            assert {name for name, size in held.items() if name.endswith(".arrow")} <= set(now)


TestFolder = Folder.TestCase
TestFolder.settings = settings(max_examples=120, stateful_step_count=30, deadline=None)


def test_the_ring_gives_the_place_of_a_fetch_that_died_to_the_next() -> None:
    folder = Folder()
    folder.fetch("d")
    folder.fetch("c")
    folder.die("c")
    folder.fetch("e")
    folder.it_holds_what_it_says_within_the_budget()
    assert set(folder.claims) == {"d", "e"}
    folder.teardown()
