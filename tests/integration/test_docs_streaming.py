"""The snippets of docs/streaming.md, run as they are written."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import REPOSITORY

from storage.lake import Zone
from storage.manifest import Manifest
from storage.shards import encode_samples, encode_tokens

PAGE = (REPOSITORY / "docs" / "streaming.md").read_text()


def record(zone: Zone, data: Any, rows: int, tokens: int = 0) -> dict[str, Any]:
    stored = zone.publish(data, ".arrow")
    about = {"path": stored.path, "digest": stored.digest, "bytes": stored.bytes, "plain_bytes": stored.plain_bytes}
    return {**about, "rows": rows, "key": "", "split": "train", "tokens": tokens, "stats": None}


def samples(folder: Path, rows: int) -> Zone:
    zone = Zone(folder)
    columns = {"x": np.ones((rows, 3), np.float32), "label": np.arange(rows) % 2}
    records = [record(zone, encode_samples(columns, [f"id{row}" for row in range(rows)]), rows)]
    spec = {"inputs": {"x": {"dtype": "float32", "shape": [3]}}, "target": {"name": "label", "dtype": "int64"}}
    zone.commit(Manifest.build("shards", records, kind="samples", spec={**spec, "classes": ["0", "1"]}))
    return zone


def tokens(folder: Path) -> Zone:
    zone = Zone(folder)
    data = encode_tokens(np.arange(400, dtype=np.uint16), np.array([0, 150, 170, 400]), ["a", "b", "c"])
    spec = {"dtype": "uint16", "vocab_size": 400}
    zone.commit(Manifest.build("shards", [record(zone, data, 3, tokens=400)], kind="tokens", spec=spec))
    return zone


def test_every_snippet_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    samples(tmp_path / "data" / "shards", 22)
    names: dict[str, Any] = {"text": tokens(tmp_path / "text"), "other": samples(tmp_path / "other", 10)}
    snippets = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(snippets) == 9
    for snippet in snippets:
        exec(compile(snippet, "docs/streaming.md", "exec"), names)
    assert names["allowed"].shape == (2, 32, 32)
    assert 32 < names["allowed"].sum() < 2 * 32 * 33 / 2 + 1
    assert names["real"].shape == (2, 33)
    assert names["real"].any(axis=1).all()
    printed = capsys.readouterr().out
    assert printed.startswith("0 0 4 (4, 3) id")
    assert "'wait': 0." in printed


def test_it_names_every_option() -> None:
    import inspect
    from dataclasses import fields

    from pipelines.params import Stream as Settings
    from pipelines.streaming import Stream
    from pipelines.streaming.options import KINDS

    for name in Settings.model_fields:
        assert f"`stream.{name}`" in PAGE, name
    for name in inspect.signature(Stream).parameters:
        assert re.search(rf"\b{name}\b", PAGE), name
    for part, kind in KINDS.items():
        assert f"`{part}={kind.__name__}(…)`" in PAGE, part
        for field in fields(kind):
            assert f"`{field.name}`" in PAGE, field.name
