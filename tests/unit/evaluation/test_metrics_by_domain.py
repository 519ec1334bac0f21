"""Where the shards have domains, each has figures of its own beside those of the whole."""

from pathlib import Path
from typing import Any

import pytest
from support.training_samples import SEQ_LEN, TEXT, make_points, make_text, with_domains

from pipelines.evaluation import evaluate_model
from pipelines.evaluation.measure import measure
from pipelines.models import ModelConfig
from storage.manifest import Manifest


def without(manifest: Manifest, domain: str) -> Manifest:
    records = [r for r in manifest.records() if r["split"] != "test" or r["domain"] != domain]
    header = {k: v for k, v in manifest.header.items() if k not in ("format", "zone")}
    return Manifest.build("shards", [{k: v for k, v in r.items() if k != "domain"} for r in records], **header)


@pytest.mark.parametrize("kind", ["sequences", "documents", "class", "value"])
def test_a_domains_figures_are_those_of_its_samples_alone(kind: str, tmp_path: Path) -> None:
    text = kind in ("sequences", "documents")
    ws = make_text(tmp_path) if text else make_points(tmp_path, rows=(70, 30, 50), target=kind)
    manifest = with_domains(ws)
    spec, model = manifest.header["spec"], ws.params.model.model_dump()
    config = ModelConfig(model, TEXT, SEQ_LEN, "language", "", kind) if text else ModelConfig(model, spec, None, "", "")
    net = config.build(0)

    def figures(of: Manifest) -> dict[str, Any]:
        return evaluate_model(net, config, ws.zone("shards"), of, ws.params)

    whole = figures(manifest)
    assert list(whole["domains"]) == ["code", "prose"]
    for domain, other in (("code", "prose"), ("prose", "code")):
        alone, own = figures(without(manifest, other)), whole["domains"][domain]
        baseline, compressors = own.pop("baseline"), {"zlib", "xz"} if text else set()
        assert {name: alone["baseline"][name] for name in baseline} == baseline
        assert set(alone["baseline"]) - set(baseline) == compressors
        assert own == {name: alone[name] for name in own}
        assert set(alone) - set(own) <= {"task", "split", "manifest", "f1", "baseline"}
    count = "bytes" if text else "samples"
    assert whole[count] == sum(own[count] for own in whole["domains"].values())
    result = measure(net, config, ws.zone("shards"), manifest, ws.params)
    assert [row["domain"] for row in result.tables["domains"]] == ["code", "prose"]
    [axes] = result.figures["domains"]().axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["all of them", "code", "prose"]
