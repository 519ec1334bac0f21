"""`shard.pack_len` from the texts to the loss."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY, write_params
from support.training_samples import without_mlflow

from pipelines.evaluation import evaluate_model
from pipelines.ingest import data_stage
from pipelines.ingest.shard import VERSION
from pipelines.ingest.stage import journal_of, run
from pipelines.models import ModelConfig, load_model
from pipelines.streaming import Stream, Text
from pipelines.training import train
from pipelines.training.process.process_group import Ranks
from pipelines.training.session import open_session
from pipelines.workspace import Workspace
from storage.digest import digest_json
from storage.errors import ParamsError
from storage.manifest import Manifest
from storage.shards import Shard

PACK = 64


def shards(root: Path, **sections: dict[str, Any]) -> tuple[Workspace, Manifest]:
    """Texts of 40 to 1,280 letters, sharded."""
    (root / "texts").mkdir(parents=True)
    rng = np.random.default_rng(1)
    for index, length in enumerate(rng.integers(40, 1280, 40).tolist()):
        (root / "texts" / f"doc{index:03d}.txt").write_bytes(
            (97 + np.cumsum(rng.integers(0, 3, length)) % 26).astype(np.uint8)
        )
    values = {name: TINY[name] | sections.get(name, {}) for name in TINY if isinstance(TINY[name], dict)}
    write_params(root, TINY | values)
    ws = Workspace.open(root)
    done = [
        run(data_stage(name, ws), journal_of(ws, name), ws.params.compute) for name in ("ingest", "curate", "shard")
    ]
    return ws, done[-1].manifest


def packs(root: Path, **stream: Any) -> tuple[Workspace, Manifest]:
    return shards(root, shard={"pack_len": PACK}, stream={"seq_len": PACK} | stream)


def opened(ws: Workspace, manifest: Manifest, split: str) -> list[Shard]:
    return [Shard.open(ws.zone("shards").local_path(path)) for path in manifest.select(split)["path"].to_pylist()]


@pytest.mark.parametrize("apart", [False, True])
def test_a_window_is_a_pack_whose_fill_is_nobodys_target(apart: bool, tmp_path: Path) -> None:
    ws, manifest = packs(tmp_path, document_mask=apart)
    files = opened(ws, manifest, "train")
    with open_session(ws, Ranks()) as session:
        session.data.stream.epochs = 1
        batches = list(session.data.stream)
        counted = sum(session.goal.task.counted(batch.arrays) for batch in batches)
    assert sum(batch["tokens"].shape[0] for batch in batches) == sum(len(shard.tokens) // PACK for shard in files)
    real = sum(int((shard.tokens != 256).sum()) for shard in files)
    ends = sum(shard.rows for shard in files)
    assert counted == real + ends, "every byte, and the end of every document"


def test_it_trains_and_is_charged_for_the_same_tokens_as_without_packs(tmp_path: Path, monkeypatch: Any) -> None:
    import pipelines.tracking

    monkeypatch.setattr(pipelines.tracking, "open_run", pipelines.tracking.open_run)
    without_mlflow()
    ws, manifest = packs(tmp_path / "packs", document_mask=True)
    train(ws)
    model, config = load_model(ws.model)
    model.forward = lambda x, **_: torch.zeros(*x.shape, 257)  # knows nothing
    found = evaluate_model(model, config, ws.zone("shards"), manifest, ws.params)
    plain, sequences = shards(tmp_path / "sequences")
    wanted = evaluate_model(model, config, plain.zone("shards"), sequences, plain.params)
    assert (found["bytes"], found["documents"]) == (wanted["bytes"], wanted["documents"])
    assert found["baseline"]["zlib"]["bytes"] == wanted["baseline"]["zlib"]["bytes"]
    shards_of_each = len(opened(ws, manifest, "test"))
    ends = found["bits_per_byte"] * found["bytes"] - wanted["bits_per_byte"] * wanted["bytes"]
    assert ends == pytest.approx(shards_of_each * np.log2(257), abs=1e-2), "also the last document's end"
    assert found["baseline"]["bigram"]["bits_per_byte"] == pytest.approx(
        wanted["baseline"]["bigram"]["bits_per_byte"], rel=0.02
    )


def test_another_length_is_refused(tmp_path: Path) -> None:
    ws, manifest = packs(tmp_path)
    with pytest.raises(ParamsError, match=r"stream\.seq_len=32, but these shards hold packs of 64 tokens"):
        Stream(ws.zone("shards"), manifest, split="train", batch_size=8, seed=1, text=Text(seq_len=32))
    with pytest.raises(ParamsError, match=r"stream\.samples=documents, but these shards hold packs of 64 tokens"):
        Stream(
            ws.zone("shards"), manifest, split="train", batch_size=8, seed=1, text=Text(seq_len=64, samples="documents")
        )
    documents = ws.params.evaluate.model_copy(update={"samples": "documents"})
    config = ModelConfig(ws.params.model.model_dump(), manifest.header["spec"], PACK, "language", manifest.digest)
    settings = ws.params.model_copy(update={"evaluate": documents})
    with pytest.raises(ParamsError, match=r"evaluate\.samples: these shards hold packs"):
        evaluate_model(config.build(), config, ws.zone("shards"), manifest, settings)


def test_shards_from_before_there_were_packs_are_not_made_again(tmp_path: Path) -> None:
    ws, manifest = shards(tmp_path)
    stage = data_stage("shard", ws)
    settings = {"target_mb": 0.01, "images": "pixels", "image_size": None, "image_mode": "RGB"}
    keys = set()
    for item in stage.plan():
        facts = [item.payload[name] for name in ("split", "kind", "facts")]
        objects = [[part["digest"], part["left_out"]] for part in item.payload["objects"]]
        keys.add(digest_json(["shard", VERSION, ws.params.seed, *facts, settings, objects]))
    assert set(manifest.table["key"].to_pylist()) == keys
    assert "pack_len" not in manifest.header["spec"]


def test_only_text_is_packed(tmp_path: Path) -> None:
    (tmp_path / "points.csv").write_text("a,label\n" + "".join(f"{i},{i % 2}\n" for i in range(20)))
    curate = {"label": "label", "split": {"train": 0.5, "val": 0.25, "test": 0.25}}
    with pytest.raises(ParamsError, match=r"shard\.pack_len=64 is for text, but this is"):
        shards(
            tmp_path, ingest={"sources": ["*.csv"]}, curate=curate, shard={"pack_len": PACK}, stream={"seq_len": PACK}
        )


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        ("stream", {"seq_len": 32}, r"shard.pack_len = 64, but stream.seq_len = 32"),
        ("stream", {"seq_len": 64, "samples": "documents"}, r"but stream.samples = documents takes each by itself"),
        ("evaluate", {"samples": "documents"}, r"but evaluate.samples = documents takes each by itself"),
    ],
)
def test_what_does_not_go_with_packs_is_refused_before_they_are_made(
    section: str, values: dict[str, Any], message: str, tmp_path: Path
) -> None:
    sections = {"shard": {"pack_len": PACK}, "stream": {"seq_len": PACK}} | {section: values}
    with pytest.raises(ParamsError, match=message):
        shards(tmp_path, **sections)
    assert not (tmp_path / "data").exists()
