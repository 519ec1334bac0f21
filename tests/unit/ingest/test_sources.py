"""Sources: globs, folders, files, exclusions, names and fingerprints."""

import os
import zipfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import fsspec
import pytest
from fsspec.implementations.ftp import FTPFileSystem
from fsspec.implementations.github import GithubFileSystem

from pipelines.ingest.fetch import IngestStage
from pipelines.ingest.sources.gather import list_sources
from pipelines.ingest.sources.listing import Fingerprints, _urls
from pipelines.params import Ingest
from storage.errors import SourceError
from storage.lake import Zone


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in ("a.txt", "sub/b.txt", "sub/test/c.txt", "sub/test/deep/d.txt", "sub/e.md"):
        file = tmp_path / "in" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(name)
    return tmp_path


def names(tree: Path, *sources: str, exclude: list[str] | None = None, links: Any = "inside") -> list[str]:
    listed = list_sources(Ingest(sources=list(sources), exclude=exclude or [], links=links), tree, tree / "state")
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


def test_hidden_folders_are_folders(tree: Path) -> None:
    for name in (".kept/a.txt", ".git/test/b.txt"):
        (tree / "in" / name).parent.mkdir(parents=True)
        (tree / "in" / name).write_text(name)
    assert names(tree, "in/.*/**/*.txt", exclude=[".git/test/**"]) == [".kept/a.txt"]
    assert names(tree, "in/.*/**/*.txt") == [".git/test/b.txt", ".kept/a.txt"]


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


def test_a_file_that_changes_under_an_old_date_is_seen(tree: Path) -> None:
    """As many bytes, in place, with the time that it had: by a tool that keeps it, or since the clock was set back."""
    marks, file = Fingerprints(tree / "state" / "fingerprints.db"), tree / "in" / "a.txt"
    with marks:
        before, times = marks.of([str(file)]), file.stat()
        file.write_bytes(file.read_bytes()[::-1])
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
        assert marks.of([str(file)]) != before


def test_a_scan_that_is_cut_off_goes_on_where_it_was(tree: Path) -> None:
    paths = [tree / f"{number:03d}.txt" for number in range(150)]
    for path in paths:
        path.write_text(path.name)
    marks = Fingerprints(tree / "state" / "fingerprints.db")
    with marks, pytest.raises(IsADirectoryError):
        marks.of([str(path) for path in (*paths, tree)])  # a folder has no digest
    with marks:
        assert set(map(str, paths[:128])) <= set(marks._known)


def test_a_damaged_list_of_fingerprints_is_made_anew(tree: Path) -> None:
    """By a power cut, say: it is a cache."""
    before = names(tree, "in")
    (tree / "state" / "fingerprints.db").write_text("no database at all, but as long as its head is" * 9)
    assert names(tree, "in") == before


def test_the_standard_library_is_there(tree: Path) -> None:
    listed = names(tree, "{python_stdlib}/*.py")
    assert {"ast.py", "os.py"} <= set(listed)


def test_links_to_files_count_in_folders_and_globs(tree: Path) -> None:
    (tree / "in" / "link.txt").symlink_to(tree / "in" / "a.txt")
    assert "link.txt" in names(tree, "in")
    assert "link.txt" in names(tree, "in/**")


def test_links_to_nothing_are_named_unless_they_are_left_out(tree: Path) -> None:
    for number in range(5):
        (tree / "in" / f"lost{number}.txt").symlink_to(tree / "far" / f"{number}.txt")
    (tree / "in" / "sub" / "circle.md").symlink_to("circle.md")
    for source in ("in", "in/**", "in/**/*.txt"):
        with pytest.raises(SourceError, match=r"links that lead to nothing: lost0\.txt → .*/far/0\.txt, .*, …\. Mend"):
            names(tree, source)
    with pytest.raises(
        SourceError, match=r": 1 of its files are links that lead to nothing: circle\.md → circle\.md\."
    ):
        names(tree, "in/sub/*")
    assert names(tree, "in/*/*.md", exclude=["**/circle.md"]) == ["sub/e.md"]
    assert names(tree, "in/*.txt", exclude=["lost*"]) == ["a.txt"]


def test_links_out_of_a_source_s_folder_are_refused_by_name(tree: Path) -> None:
    """Else a folder that somebody sent would be read together with whatever its links lead to."""
    (tree / "far").mkdir()
    (tree / "far" / "z.txt").write_text("z")
    (tree / "in" / "more").symlink_to(tree / "far")
    (tree / "in" / "sub" / "y.txt").symlink_to(tree / "far" / "z.txt")
    for source in ("in", "in/**", "in/**/*.txt", "in/*/*.txt", f"file://{tree}/in"):
        with pytest.raises(
            SourceError, match=r"2 of its files lie outside .*more/z\.txt → .*/far, sub/y\.txt → .*/far/z"
        ):
            names(tree, source)
    with pytest.raises(SourceError, match=r"1 of its files .*/far/z\.txt\. Set ingest\.links: anywhere if"):
        names(tree, "in/**/*.txt", exclude=["more/**"])
    assert names(tree, "in/**/*.txt", exclude=["more/**", "**/y.txt"]) == names(tree, "in/**/[a-x].txt")
    assert names(tree, "in/*.txt") == ["a.txt"]
    assert names(tree, "in/more/*.txt") == ["z.txt"]  # which is named
    assert names(tree, "in/sub/y.txt") == ["y.txt"]


def test_links_to_folders_are_followed_but_not_in_a_circle(tree: Path) -> None:
    """Others' data is linked, not copied; what a link leads to must not be left out without a word."""
    (tree / "far").mkdir()
    (tree / "far" / "z.txt").write_text("z")
    (tree / "in" / "more").symlink_to(tree / "far")
    (tree / "far" / "back").symlink_to(tree / "in")
    (tree / "in" / "sub" / "up").symlink_to(tree / "in")
    known = ["a.txt", "sub/b.txt", "sub/test/c.txt", "sub/test/deep/d.txt"]
    anywhere = partial(names, tree, links="anywhere")
    assert anywhere("in/**/*.txt") == sorted(["more/z.txt", *known])
    assert anywhere("in/*/*.txt") == ["more/z.txt", "sub/b.txt"]
    assert anywhere("in/**/*.txt", exclude=["more/**"]) == known


def test_links_within_a_source_s_folder_are_followed(tree: Path) -> None:
    (tree / "in" / "again").symlink_to("sub")
    (tree / "link").symlink_to("in")
    for source in ("in/*/*.txt", "link/*/*.txt"):
        assert names(tree, source) == ["again/b.txt", "sub/b.txt"]


def test_links_that_make_many_ways_to_a_folder_are_refused(tree: Path) -> None:
    """Two in each of thirty folders would be 2^30 ways."""
    for level in range(30):
        (tree / "in" / f"{level:02d}").mkdir()
        for name in "ab":
            (tree / "in" / f"{level:02d}" / name).symlink_to(tree / "in" / f"{level + 1:02d}")
    (tree / "in" / "30").mkdir()
    with pytest.raises(
        SourceError, match=r"more than 16 links below .*/in lead to .*Leave links out with ingest\.excl"
    ):
        names(tree, "in/**/*.txt")
    assert len(names(tree, "in/**/*.txt", exclude=["*/a", "*/b", "*/a/", "*/b/"])) == 4


def test_a_glob_enters_no_folder_that_lies_too_deep_for_it(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entered, scandir = [], os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: entered.append(os.path.relpath(path, tree)) or scandir(path))
    assert names(tree, "in/*/*.txt") == ["sub/b.txt"]
    assert entered == ["in", "in/sub"]


def test_a_name_with_brackets_is_that_file_where_it_is_there(tree: Path) -> None:
    for folder in ("data[1]", "data1"):
        (tree / folder).mkdir()
        (tree / folder / "a.txt").write_text(folder)
    (tree / "data1" / "part[2].txt").write_text("part")
    stage = IngestStage(Ingest(sources=["data[1]/*.txt"]), tree, tree / "state", Zone(tree / "raw"))
    assert [item.payload["url"].split("/")[-2] for item in stage.plan()] == ["data[1]"]
    assert names(tree, "data[1]") == names(tree, "data[1]/a.txt") == ["a.txt"]
    assert names(tree, "data1/part[2].txt") == ["part[2].txt"]
    assert names(tree, "data[12]/*.txt") == ["data1/a.txt", "data1/part[2].txt"]
    with pytest.raises(
        SourceError, match=r"matches no file.*\[ab\] stands for a or b; for a bracket itself write \[\[\]"
    ):
        names(tree, "data[2]/*.txt")


def test_a_remote_name_with_brackets_is_that_file_too(tree: Path) -> None:
    fs = fsspec.filesystem("memory")
    fs.pipe({"/brackets/x[1]/one.txt": b"1", "/brackets/x1/two.txt": b"2"})
    try:
        assert names(tree, "memory://brackets/x[1]/*.txt") == ["one.txt"]
        assert names(tree, "memory://brackets/x[12]/*.txt") == ["x1/two.txt"]
    finally:
        fs.rm("/brackets", recursive=True)


@pytest.mark.parametrize("name", ["/etc/a.txt", "../a.txt", "in/../../a.txt"])
def test_an_archive_s_names_that_lead_out_of_it_are_refused(tree: Path, name: str) -> None:
    with zipfile.ZipFile(tree / "data.zip", "w") as archive:
        archive.writestr(name, "first")
    with pytest.raises(SourceError, match=r"leads out of 'the archive'.*pack the archive anew"):
        names(tree, "zip://**/*.txt::data.zip")


def test_a_recipe_s_folder_may_have_any_name(tmp_path: Path) -> None:
    odd = tmp_path / "my [new] job?*"
    (odd / "in").mkdir(parents=True)
    (odd / "in" / "a.txt").write_text("a")
    for source in ("in/*.txt", "in/**", "in", "in/a.txt"):
        assert names(odd, source) == ["a.txt"]


def test_a_folder_of_a_web_server_is_its_files_not_the_page_that_lists_them(tree: Path) -> None:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tree))) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        place = f"http://127.0.0.1:{server.server_port}/in"
        known = ["a.txt", "sub/b.txt", "sub/e.md", "sub/test/c.txt", "sub/test/deep/d.txt"]
        assert names(tree, f"{place}/") == known
        assert names(tree, f"{place}/*.txt") == names(tree, f"{place}/a.txt?sig=1") == ["a.txt"]
        server.shutdown()


def test_files_in_an_archive_are_listed_and_fetched(tree: Path) -> None:
    with zipfile.ZipFile(tree / "data.zip", "w") as archive:
        archive.writestr("in/a.txt", "first")
        archive.writestr("in/sub/b.txt", "second")
    stage = IngestStage(Ingest(sources=["zip://in/**/*.txt::data.zip"]), tree, tree / "state", Zone(tree / "raw"))
    items = stage.plan()
    assert [item.label for item in items] == ["a.txt", "sub/b.txt"]
    paths = [stage.work(item).records[0]["path"] for item in items]
    assert [(tree / "raw" / path).read_text() for path in paths] == ["first", "second"]


@pytest.mark.parametrize(
    ("kind", "source"),
    [
        (FTPFileSystem, "ftp://me:pw@host:2121/pub/x/a.txt"),
        (GithubFileSystem, "github://org:repo@main/docs/a.md"),
    ],
)
def test_a_file_is_fetched_from_the_host_that_its_source_names(kind: type, source: str) -> None:
    class Named(kind):  # type: ignore[misc, valid-type]
        def __init__(self) -> None:
            """Connects to nothing."""

        def __del__(self) -> None:
            """So there is nothing to close."""

        cachable = False

    path = Named._strip_protocol(source)
    [url] = _urls(Named(), [path], source.replace("a.", "*."))
    assert url == source
    assert Named._get_kwargs_from_urls(url) == kind._get_kwargs_from_urls(source)


def test_passwords_and_signatures_are_not_told(tree: Path) -> None:
    for source in ("ftp://me:s3cret@127.0.0.1:1/*.txt", "https://127.0.0.1:1/a.txt?X-Amz-Signature=s3cret&x=1"):
        with pytest.raises(SourceError, match=r"127.0.0.1:1/.*cannot be listed") as caught:
            names(tree, source)
        assert "s3cret" not in str(caught.value)
        assert "s3cret" not in " ".join(Ingest(sources=[source]).listed)
    stage = IngestStage(Ingest(sources=["in"]), tree, tree / "state", Zone(tree / "raw"))
    [item, *_] = stage.plan()
    item.payload["url"] = "ftp://me:s3cret@127.0.0.1:1/a.txt"
    with pytest.raises(SourceError, match="cannot be read") as caught:
        stage.work(item)
    assert "s3cret" not in str(caught.value)
