"""Sources: globs, folders, files, exclusions, names and fingerprints."""

from pathlib import Path

import fsspec
import pytest

from pipelines.ingest.sources import list_sources
from pipelines.params import Ingest
from storage.errors import SourceError


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in ("a.txt", "sub/b.txt", "sub/test/c.txt", "sub/test/deep/d.txt", "sub/e.md"):
        file = tmp_path / "in" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(name)
    return tmp_path


def names(tree: Path, *sources: str, exclude: list[str] | None = None) -> list[str]:
    listed = list_sources(Ingest(sources=list(sources), exclude=exclude or []), tree, tree / "state")
    return [file.name for file in listed]


def test_globs_folders_and_files(tree: Path) -> None:
    assert names(tree, "in/**/*.txt") == ["a.txt", "sub/b.txt", "sub/test/c.txt", "sub/test/deep/d.txt"]
    assert names(tree, "in/*.txt") == ["a.txt"]
    assert names(tree, "in/sub/*/*.txt") == ["test/c.txt"]
    assert names(tree, "in") == ["a.txt", "sub/b.txt", "sub/e.md", "sub/test/c.txt", "sub/test/deep/d.txt"]
    assert names(tree, "in/a.txt") == ["a.txt"]
    assert names(tree, f"file://{tree}/in/**/*.md") == ["sub/e.md"]


def test_exclusions(tree: Path) -> None:
    assert names(tree, "in/**/*.txt", exclude=["**/test/**"]) == ["a.txt", "sub/b.txt"]
    assert names(tree, "in/**/*.txt", exclude=["a.txt", "sub/test/*"]) == ["sub/b.txt"]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nowhere/x.csv", "does not exist"),
        ("in/*.csv", "matches no file"),
        ("nosuch://bucket/x", "fsspec driver"),
        ("{sklearn_digit}/*", "Did you mean 'sklearn_digits'"),
    ],
)
def test_a_source_that_gives_nothing_says_why(tree: Path, source: str, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        names(tree, source)


def test_two_files_may_not_share_a_name(tree: Path) -> None:
    (tree / "other").mkdir()
    (tree / "other" / "a.txt").write_text("x")
    with pytest.raises(SourceError, match=r"would both be named 'a.txt'"):
        names(tree, "in/*.txt", "other/*.txt")


def test_any_fsspec_url_is_a_source(tree: Path) -> None:
    fs = fsspec.filesystem("memory")
    fs.pipe("/sources-test/x/one.txt", b"1")
    try:
        assert names(tree, "memory://sources-test/**/*.txt") == ["x/one.txt"]
    finally:
        fs.rm("/sources-test", recursive=True)


def test_fingerprints_follow_content(tree: Path) -> None:
    def marks() -> dict[str, str]:
        listed = list_sources(Ingest(sources=["in/**/*.txt"]), tree, tree / "state")
        return {file.name: file.fingerprint for file in listed}

    before = marks()
    (tree / "in" / "a.txt").touch()
    assert marks() == before
    (tree / "in" / "a.txt").write_text("b.txt")
    after = marks()
    assert {name for name in before if before[name] != after[name]} == {"a.txt"}


def test_the_standard_library_is_there(tree: Path) -> None:
    listed = names(tree, "{python_stdlib}/*.py")
    assert {"ast.py", "os.py"} <= set(listed)


def test_links_to_files_count_in_folders_and_globs(tree: Path) -> None:
    (tree / "in" / "link.txt").symlink_to(tree / "in" / "a.txt")
    assert "link.txt" in names(tree, "in")
    assert "link.txt" in names(tree, "in/**")
