"""Domains mixed in training by weights."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY
from support.domains import MIXTURE, SOURCES, make, shards, write
from support.flat_streams import flat_stream

from pipelines.caching.warm import _ahead
from pipelines.evaluation import evaluate
from pipelines.profiling.replay import replay
from pipelines.streaming import Batching, Mixing, Ordering, Stream, Text
from pipelines.training import train
from pipelines.training.session import samples_in
from pipelines.workspace import Workspace
from storage.errors import DataError, ParamsError


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
