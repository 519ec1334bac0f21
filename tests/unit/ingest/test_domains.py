"""Domains: sources by name, mixed in training by weights, in one dataset version."""

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import REPOSITORY, TINY, write_params, write_texts
from support.flat_streams import flat_stream
from support.training_samples import without_mlflow

from pipelines.caching.warm import _ahead
from pipelines.evaluation import evaluate
from pipelines.ingest import data_stage
from pipelines.ingest.stage import Summary, journal_of, run
from pipelines.profiling.replay import replay
from pipelines.reproduce.inspect import show_zone
from pipelines.streaming import Batching, Loading, Mixing, Ordering, Stream, Text
from pipelines.training import train
from pipelines.training.session import samples_in
from pipelines.workspace import Workspace
from storage.errors import DataError, ParamsError, SourceError
from storage.manifest import Manifest
from storage.shards import Shard

PAGE = (REPOSITORY / "docs" / "mixtures.md").read_text()
[SECTIONS] = (yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL))
[SNIPPET] = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
STAGES = ("ingest", "curate", "shard")
SOURCES = {"code": ["texts/**/*.txt"], "prose": ["books/*.md", "letters.jsonl"]}
MIXTURE = {"code": 3.0, "prose": {2: 1.0, 8: 5.0}}
TRAIN = {
    "steps": 12, "eval_every": 12, "checkpoint_every": 4, "log_every": 2, "lr": 0.003, "threads": 1, "eval_batches": 3,
}  # fmt: skip


def write(folder: Path, **changes: Any) -> Workspace:
    """The tiny recipe with two domains, one of files and JSON lines."""
    params = {**TINY, "ingest": {"sources": SOURCES}, "train": TRAIN, "curate": {**TINY["curate"], "reader": "text"}}  # type: ignore[dict-item]
    write_params(folder, {**params, **changes})
    return Workspace.open(folder)


def make(ws: Workspace) -> list[Summary]:
    return [run(data_stage(name, ws), journal_of(ws, name), ws.params.compute) for name in STAGES]


def shards(ws: Workspace) -> Manifest:
    return ws.zone("shards").manifest()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / ".dvc").mkdir()
    write_texts(tmp_path / "texts", 30)
    (tmp_path / "books").mkdir()
    for index in range(20):
        (tmp_path / "books" / f"doc{index:03d}.md").write_text(f"Once upon {index} times, " * (8 + index % 5))
    (tmp_path / "letters.jsonl").write_text("Dear reader, all is well here.\n" * 9)
    return tmp_path


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import pipelines.tracking

    monkeypatch.setattr(pipelines.tracking, "open_run", pipelines.tracking.open_run)
    monkeypatch.chdir(tmp_path)
    without_mlflow()


# -- the data stages ---------------------------------------------------------------------------------------------------


def test_without_domains_nothing_changes(recipe: Path) -> None:
    """Pinned before there were domains; the last two change with pyarrow alone, which writes its version into them."""
    summaries = make(Workspace.open(recipe))
    assert [summary.manifest.digest[:16] for summary in summaries] == [
        "4ceaf62b1e75a232",
        "7f60f88572e0e370",
        "9d51de4202b573b5",
    ]
    assert all("domain" not in summary.manifest.table.column_names for summary in summaries)


def test_a_domain_goes_with_its_files_and_no_object_or_shard_mixes_two(folder: Path) -> None:
    raw, curated, sharded = (summary.manifest for summary in make(write(folder)))
    assert raw.domains == curated.domains == sharded.domains == ["code", "prose"]
    assert Counter(raw.table["domain"].to_pylist()) == {"code": 30, "prose": 21}
    assert all(record["name"].startswith(f"{record['domain']}/") for record in raw.records())
    ws = Workspace.open(folder)
    for split in sharded.splits:
        for domain in sharded.domains:
            with Stream(
                ws.zone("shards"),
                sharded,
                split=split,
                batch_size=4,
                seed=0,
                epochs=1,
                text=Text(seq_len=8),
                mixing=Mixing(domain=domain),
                loading=Loading(prefetch=0),
            ) as stream:
                ids = [name for batch in stream for name in batch.ids()]
            assert ids
            assert {name.split("/")[0] for name in ids} == {domain}


def test_one_more_file_in_one_domain_is_one_item_in_each_stage(folder: Path) -> None:
    ws = write(folder)
    before = make(ws)
    other = {record["path"] for record in shards(ws).records() if record["domain"] == "prose"}
    (folder / "texts" / "doc005b.txt").write_text("one more\n" * 30)
    after = make(ws)
    assert [summary.worked for summary in after] == [1, 1, 1]
    assert after[2].manifest.digest != before[2].manifest.digest
    assert other <= set(shards(ws).table["path"].to_pylist())
    (folder / "texts" / "zzz.txt").write_text("the last of its domain\n" * 30)
    assert [summary.worked for summary in make(ws)] == [1, 1, 1]


def test_readers_are_chosen_for_each_domain_and_kinds_must_agree(folder: Path) -> None:
    (folder / "letters.jsonl").write_text("".join(json.dumps({"text": f"Dear {i}, " * 20}) + "\n" for i in range(9)))
    sources = {"code": ["texts/**/*.txt"], "letters": ["letters.jsonl"]}
    ws = write(folder, ingest={"sources": sources}, curate=TINY["curate"])
    assert make(ws)[1].manifest.domains == ["code", "letters"]
    (folder / "table.csv").write_text("a,b\n1,2\n")
    ws = write(folder, ingest={"sources": {**sources, "numbers": ["table.csv"]}}, curate=TINY["curate"])
    with pytest.raises(DataError, match=r"different kinds of data: text \(letters/.*\); table \(numbers/table.csv"):
        make(ws)


def test_a_domain_is_no_class(folder: Path) -> None:
    """The class of an image is its folder's name, so that one without a folder is set aside, in a domain too."""
    from PIL import Image

    for path in ("pictures/cat/a.png", "pictures/dog/b.png", "pictures/c.png"):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (2, 2), (ord(path[-5]), 0, 0)).save(folder / path)
    ws = write(
        folder,
        ingest={"sources": {"photos": ["pictures/**/*.png"]}},
        curate={"split": {"train": 1.0, "val": 0.0, "test": 0.0}},
    )
    assert make(ws)[2].manifest.header["spec"]["classes"] == ["cat", "dog"]
    assert '"photos/c.png"' in (ws.zone("curated").folder / "quarantine.jsonl").read_text()


def test_a_file_in_two_domains_is_refused(folder: Path) -> None:
    ws = write(folder, ingest={"sources": {"all": ["texts/*.txt"], "some": ["texts/doc00*.txt"]}})
    with pytest.raises(SourceError, match=r"doc000.txt is in the domains 'all' and 'some'"):
        make(ws)


def test_of_equal_files_that_of_the_domain_that_comes_first_is_kept(folder: Path) -> None:
    (folder / "books" / "doc000.md").write_bytes((folder / "texts" / "doc000.txt").read_bytes())
    ws = write(folder, ingest={"sources": {"a-b": ["books/*.md"], "a": ["texts/doc00*.txt"]}})
    make(ws)
    zone = ws.zone("shards")
    paths = shards(ws).table["path"].to_pylist()
    names = [name for path in paths for name in Shard.open(zone.local_path(path)).ids.to_pylist()]
    assert "a/doc000.txt" in names
    assert "a-b/doc000.md" not in names


def test_the_page_s_example_runs_as_it_is_written(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ws = write(folder, **SECTIONS)
    assert ws.params.stream.mixture == MIXTURE
    make(ws)
    exec(compile(SNIPPET, "docs/mixtures.md", "exec"), {})
    assert capsys.readouterr().out == ("['code', 'prose']\n{'code': 0.5, 'prose': 0.5} {'code': 0.25, 'prose': 0.75}\n")
    with Stream(
        ws.zone("shards"),
        shards(ws),
        split="train",
        seed=7,
        batch_size=8,
        mixing=Mixing(mixture=ws.params.stream.mixture),
        text=Text(seq_len=32),
    ) as stream:
        counts = [
            Counter(name.split("/")[0] for name in batch.ids()) for _, batch in zip(range(12), stream, strict=False)
        ]
    assert (counts[0], counts[9]) == ({"code": 6, "prose": 2}, {"code": 3, "prose": 5})


def test_a_zone_is_shown_with_its_domains(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ws = write(folder)
    make(ws)
    for zone in ("raw", "shards"):
        show_zone(ws, zone)
    out = capsys.readouterr().out
    assert "domain    prose: 21 files" in out
    assert "domain    code: " in out and "objects, test " in out  # noqa: PT018


# -- the mixture -------------------------------------------------------------------------------------------------------


def trained(ws: Workspace, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Train; the ids of each step's samples."""
    from pipelines.training import loop

    seen: list[list[str]] = []
    real = loop.forward_backward

    def noting(s: Any, batch: Any) -> Any:
        seen.append(batch.ids())
        return real(s, batch)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "forward_backward", noting)
        train(ws)
    return seen


def test_training_mixes_by_weights_that_change_with_the_step(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ws = write(folder, stream={**TINY["stream"], "mixture": MIXTURE})  # type: ignore[dict-item]
    make(ws)
    seen = trained(ws, monkeypatch)
    assert len(seen) == 12
    for step, ids in enumerate(seen):
        prose = 1 + 4 * min(max(step - 2, 0), 6) / 6
        wanted = len(ids) * prose / (3 + prose)
        assert abs(sum(name.startswith("prose/") for name in ids) - wanted) <= 1
    found = json.loads(ws.metrics("train").read_text())
    given = Counter(name.split("/")[0] for ids in seen for name in ids)
    for domain in ("code", "prose"):
        with Stream(
            ws.zone("shards"),
            shards(ws),
            split="train",
            batch_size=8,
            seed=0,
            text=Text(seq_len=32),
            mixing=Mixing(domain=domain),
        ) as own:
            assert found[f"epochs/{domain}"] == pytest.approx(given[domain] / own.order.rows, abs=1e-6)
        assert f"val_loss/{domain}" in ws.plots("val.csv").read_text()
    losses = {domain: found[f"val_loss/{domain}"] for domain in ("code", "prose")}
    assert min(losses.values()) < found["val_loss"] < max(losses.values())
    # By their sizes, though of prose a larger part is read (one batch is the least).
    sizes = {domain: samples_in(shards(ws), "val", 32, domain) for domain in losses}
    whole = sum(losses[domain] * size for domain, size in sizes.items()) / sum(sizes.values())
    assert found["val_loss"] == pytest.approx(whole, abs=2e-6)
    ws.plots("evaluate").mkdir()
    ws.plots("evaluate/roc.png").touch()  # of an evaluation before, which is not what this one finds
    measured = evaluate(ws)
    assert {file.stem for file in ws.plots("evaluate").iterdir()} == {"bits_per_byte", "domains"}
    assert list(measured["domains"]) == ["code", "prose"]
    assert json.loads(ws.metrics("evaluate").read_text()) == measured
    assert f"by domain: code {measured['domains']['code']['bits_per_byte']:.4f}, prose " in capsys.readouterr().out
    assert [line.split(",")[0] for line in ws.plots("evaluate/domains.csv").read_text().splitlines()[1:]] == [
        "code",
        "prose",
    ]
    assert ws.plots("evaluate/domains.png").is_file()
    for step in (1, 7, 12):
        assert sorted(name for name, _ in replay(ws, step).samples) == sorted(seen[step - 1])


def test_interrupted_it_goes_on_with_the_same_batches(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipelines.training import loop

    ws = write(folder, stream={**TINY["stream"], "mixture": MIXTURE, "batch_size": 4})  # type: ignore[dict-item]
    make(ws)
    whole = trained(ws, monkeypatch)
    model = (ws.model / "model.safetensors").read_bytes()
    real = loop.forward_backward

    def failing(s: Any, batch: Any) -> Any:
        if s.state.step == 10:
            raise RuntimeError("enough")
        return real(s, batch)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "forward_backward", failing)
        with pytest.raises(RuntimeError, match="enough"):
            train(ws)
    assert trained(ws, monkeypatch) == whole[8:]
    assert (ws.model / "model.safetensors").read_bytes() == model


def test_a_domain_of_weight_0_is_left_out_and_caches_are_warmed_for_the_others(folder: Path) -> None:
    ws = write(folder, stream={**TINY["stream"], "mixture": {"code": 0, "prose": 2.0}})  # type: ignore[dict-item]
    make(ws)
    manifest = shards(ws)
    wanted = manifest.select("train", "prose")["digest"].to_pylist()
    ahead = [obj.digest for obj in _ahead(ws, 0, 1)]
    assert sorted(ahead) == sorted(wanted)
    often = write(folder, stream={**TINY["stream"], "mixture": {"code": 0.1, "prose": 9.0}})  # type: ignore[dict-item]
    ahead = [obj.digest for obj in _ahead(often, 0, 1)]  # in an epoch of the mixture, prose has several
    assert len(ahead) == len(set(ahead)) > len(wanted)
    with Stream(
        ws.zone("shards"),
        manifest,
        split="train",
        batch_size=8,
        seed=7,
        epochs=1,
        text=Text(seq_len=32),
        mixing=Mixing(mixture=ws.params.stream.mixture),
        order=Ordering(first_window=16),
        batching=Batching(last="drop"),
    ) as stream:
        assert {name.split("/")[0] for batch in stream for name in batch.ids()} == {"prose"}


def test_whole_documents_are_mixed_too_sorted_by_length_or_in_batches_that_grow(folder: Path) -> None:
    ws = write(folder)
    make(ws)

    def shares(**options: Any) -> list[Counter[str]]:
        about = {"split": "train", "seed": 7, "seq_len": 400, "samples": "documents", "mixture": MIXTURE}
        with flat_stream(ws.zone("shards"), shards(ws), **about, **options) as stream:
            return [
                Counter(name.split("/")[0] for name in batch.ids()) for _, batch in zip(range(12), stream, strict=False)
            ]

    assert shares(batch_size=8, bucket_batches=4) == shares(batch_size=8)
    grown = shares(batch_size=8, batch_ramp={0: 4, 6: 8})
    assert [counts.total() for counts in grown] == [4] * 6 + [8] * 6
    assert grown[11] == {"code": 3, "prose": 5}
    with pytest.raises(ParamsError, match=r"stream.bucket_batches=4 sorts batches of one size"):
        shares(batch_size=8, batch_ramp={0: 4, 6: 8}, bucket_batches=4)
    stream = {"batch_size": 8, "batch_ramp": {0: 4, 6: 8}, "samples": "documents"}
    with pytest.raises(ParamsError, match=r"bucket_batches = 64 sorts batches of one size"):
        write(folder, stream=stream)


def test_the_order_in_which_weights_are_written_changes_nothing(folder: Path) -> None:
    """DVC and a stream's state see no difference in it, so there must be none."""
    ws = write(folder)
    make(ws)
    about = {"split": "train", "batch_size": 8, "seed": 7, "seq_len": 32}
    with (
        flat_stream(ws.zone("shards"), shards(ws), mixture=MIXTURE, **about) as one,
        flat_stream(ws.zone("shards"), shards(ws), mixture=dict(reversed(MIXTURE.items())), **about) as other,
    ):
        for _ in range(9):
            assert next(one).ids() == next(other).ids()
        assert one.state_dict() == other.state_dict()


@pytest.mark.parametrize(
    ("mixture", "message"),
    [
        ({"cod": 1, "prose": 1}, r"stream.mixture.cod: unknown domain. Did you mean 'code'\?"),
        ({"a": 1, "code": 1, "prose": 1}, r"stream.mixture.a: unknown domain. Known here: code, prose"),
        ({"code": 1}, r"stream.mixture: no weight for prose. Give one, or 0 to leave the domain out"),
        ({"code": 1, "prose": -1}, r"stream.mixture: prose: -1 is no weight: a number from 0 on"),
        ({"code": 1, "prose": {"x": 1}}, r"prose: 'x' is no step: a whole number"),
        ({"code": 1, "prose": {}}, r"prose: no weight"),
        ({"code": {0: 1, 9: 0}, "prose": 0}, r"all weights are 0 at step 9"),
        (0.5, r"stream.mixture: must be weights by the name of a domain"),
    ],
)
def test_a_mixture_that_makes_no_sense_is_refused_before_anything_runs(
    folder: Path, mixture: Any, message: str
) -> None:
    with pytest.raises(ParamsError, match=message):
        write(folder, stream={**TINY["stream"], "mixture": mixture})  # type: ignore[dict-item]


def test_a_mixture_needs_domains_in_the_sources_and_in_the_shards(folder: Path) -> None:
    mixture = {"code": 1.0, "prose": 1.0}
    with pytest.raises(ParamsError, match=r"ingest.sources names none. Write them there by name: {code: \[…\], prose"):
        write(folder, ingest={"sources": ["texts/*.txt"]}, stream={**TINY["stream"], "mixture": mixture})  # type: ignore[dict-item]
    ws = write(folder)
    make(ws)
    about = {"split": "train", "batch_size": 8, "seed": 7, "seq_len": 32}
    with pytest.raises(ParamsError, match=r"stream.mixture.poems: unknown domain.*The shards are of version"):
        flat_stream(ws.zone("shards"), shards(ws), mixture={**mixture, "poems": 1.0}, **about)
    with pytest.raises(DataError, match=r"domain 'code' has no window of 9000 tokens.*Or set stream.mixture.code to"):
        flat_stream(ws.zone("shards"), shards(ws), mixture=mixture, **{**about, "seq_len": 9000})


def test_a_domain_of_which_nothing_is_left_may_have_the_weight_0(folder: Path) -> None:
    """Its weight can't be left out, as ingest.sources names it; and its only file is one of another domain's."""
    sources = {**SOURCES, "twins": ["twin.txt"]}
    (folder / "twin.txt").write_bytes((folder / "texts" / "doc000.txt").read_bytes())
    ws = write(folder, ingest={"sources": sources}, stream={"mixture": {**MIXTURE, "twins": 0}})
    make(ws)
    about = {"split": "train", "batch_size": 8, "seed": 7, "seq_len": 32}
    with flat_stream(ws.zone("shards"), shards(ws), mixture=ws.params.stream.mixture, **about) as stream:
        assert stream.mixed
        assert stream.mixed.shares(0) == {"code": 0.75, "prose": 0.25}
    with pytest.raises(ParamsError, match=r"mixture.twins: unknown domain.*where all its files are duplicates"):
        flat_stream(ws.zone("shards"), shards(ws), mixture={**MIXTURE, "twins": 1.0}, **about)


def test_a_domain_that_the_shards_do_not_have_cannot_be_read(folder: Path, recipe: Path) -> None:
    about = {"split": "train", "batch_size": 8, "seed": 7, "seq_len": 32}
    plain = Workspace.open(recipe)
    make(plain)
    with pytest.raises(DataError, match=r"have no domain 'code': their sources name none"):
        flat_stream(plain.zone("shards"), shards(plain), domain="code", **about)
    ws = write(folder)
    make(ws)
    with pytest.raises(DataError, match=r"have no domain 'pros'. Did you mean 'prose'"):
        flat_stream(ws.zone("shards"), shards(ws), domain="pros", **about)


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        ({"my code": ["x"]}, r"ingest.sources: 'my code' is no name for a domain"),
        ({"code": "x"}, r"ingest.sources: code: must be a list"),
        ({"code": []}, r"ingest.sources: code: must have at least 1 item"),
        ({}, r"ingest.sources: must have at least 1 item"),
        ([3], r"ingest.sources: 3 is no URL, glob or folder"),
    ],
)
def test_sources_that_make_no_sense_are_refused(folder: Path, sources: Any, message: str) -> None:
    with pytest.raises(ParamsError, match=message):
        write(folder, ingest={"sources": sources})
