"""The model card states what it must, for each kind of model."""

from dataclasses import replace

import pytest
import yaml
from support.release_samples import GATES, MODELS, SPECS, TASKS

from pipelines.params import Params
from pipelines.release.model_card import Facts, Lineage, Measured, Trained, model_card

METRICS = {"loss": 0.25, "accuracy": 0.975, "baseline.majority.accuracy": 0.1, "baseline.majority.samples": 7}


def facts(kind: str, **package: str) -> Facts:
    params = Params.model_validate(
        {
            "recipe": "demo", "seed": 5, "ingest": {"sources": ["data/*"]}, "model": MODELS[kind],
            "train": {"steps": 3}, "promote": {"gate": GATES[kind]}, "package": package,
            "lake": {}, "curate": {}, "shard": {}, "stream": {}, "evaluate": {},
        }
    )  # fmt: skip
    return Facts(
        params=params, task=TASKS[kind], kind=kind, parameters=12345, example="label 7",
        data=Trained(manifest="a1" * 32, counts={"rows": 1000}, spec=SPECS[kind], seq_len=16),
        measured=Measured(metrics=METRICS, train_metrics={"steps": 3.0}),
        lineage=Lineage(run="`run`", tags={
            "git.commit": "c0ffee", "git.dirty": "false", "dvc.lock": "d1" * 32, "data.raw": "b2" * 32,
        }),
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["text", "image", "table"])
def test_all_parts_are_there(kind):
    card = model_card(facts(kind, description="It tells digits.", license="Apache-2.0"))
    for part in ("12,345", "a1a1a1", "c0ffee", "d1d1", "b2b2", "rows 1,000", "`train.steps`", "It tells digits.",
                 "models:/demo@champion", "label 7", "## Limits", "`seed` | `5`"):  # fmt: skip
        assert part in card
    head = yaml.safe_load(card.split("---")[1])
    assert head == {"license": "Apache-2.0", "tags": ["shardline", TASKS[kind], "demo"]}


def test_metrics_stand_beside_their_baselines():
    lines = model_card(facts("image")).splitlines()
    assert "| metric | model | majority |" in lines
    assert "| loss | 0.25 |  |" in lines
    assert "| accuracy | 0.975 | 0.1 |" in lines


def test_a_domain_has_a_column():
    more = {"domains.code.accuracy": 0.5, "domains.code.baseline.majority.accuracy": 0.2, "domains.prose.loss": 2.0}
    of = facts("image")
    lines = model_card(replace(of, measured=replace(of.measured, metrics=METRICS | more))).splitlines()
    assert "| metric | model | majority | code | prose |" in lines
    assert "| accuracy | 0.975 | 0.1 | 0.5 |  |" in lines


def test_a_missing_license_is_said():
    assert "unknown (set `package.license`)" in model_card(facts("image"))


def test_a_secret_among_the_parameters_is_not_published():
    """A card travels with the weights."""
    of = facts("table")
    train = of.params.train.model_copy(update={"entrypoint": "own:train", "args": {"hub": {"hf_token": "s3cret"}}})
    card = model_card(replace(of, params=of.params.model_copy(update={"train": train})))
    assert "| `train.args.hub.hf_token` | `***` |" in card
    assert "s3cret" not in card
