"""A checkpoint's key follows what decides a result, and nothing else, through all versions."""

from typing import Any

from pipelines.params import Communication, Params, Section, Stream, Train
from pipelines.training.checkpoints import checkpoint_key
from pipelines.training.checkpoints.key import _held


def test_the_key_follows_results_and_nothing_else() -> None:
    def key(manifest: str = "m", seed: int = 0, **sections: dict[str, object]) -> str:
        values = {name: {} for name in ("lake", "curate", "shard", "model", "evaluate", "package")} | {
            "recipe": "r", "seed": seed, "ingest": {"sources": ["x"]}, "promote": {"gate": {"metric": "accuracy"}},
            "train": {"steps": 5} | sections.get("train", {}), "stream": sections.get("stream", {}),
            "compute": sections.get("compute", {}),
        }  # fmt: skip
        return checkpoint_key(manifest, Params.model_validate(values))

    neutral = [
        {"train": {"checkpoint_every": 7}}, {"train": {"ranks": 2}}, {"train": {"threads": 1}},
        {"train": {"log_every": 3}}, {"compute": {"prefetch": 0}}, {"train": {"checkpoints": {"keep_last": 9}}},
    ]  # fmt: skip
    assert {key(**change) for change in neutral} == {key()}
    decisive = [
        {"train": {"lr": 0.5}}, {"train": {"steps": 6}}, {"stream": {"batch_size": 2}}, {"seed": 1}, {"manifest": "n"},
    ]  # fmt: skip
    assert len({key(), *(key(**change) for change in decisive)}) == 6


def test_a_younger_parameter_leaves_the_keys_of_older_trainings_alone() -> None:
    """Else a training that was interrupted before an upgrade would begin anew after it."""
    values: dict[str, Any] = {name: {} for name in ("lake", "curate", "shard", "model", "evaluate", "package")} | {
        "recipe": "r", "seed": 1, "ingest": {"sources": {"a": ["x"], "b": ["y"]}}, "stream": {},
        "promote": {"gate": {"metric": "loss"}}, "train": {"steps": 5},
    }  # fmt: skip
    usual = Params.model_validate(values)
    rich = Params.model_validate(values | {
        "model": {"name": "m:C", "args": {"dim": 4}},
        "stream": {"batch_size": 8, "mixture": {"a": 0.5, "b": {0: 1.0, 10: 2.0}}, "batch_ramp": {0: 4, 9: 8}},
        "train": {
            "epochs": 2.0, "optimizer": {"name": "muon"}, "schedule": "wsd", "ema": {"decay": 0.9, "every": 5},
            "nonfinite": "backoff", "communication": {"local_steps": 5, "outer_lr": 0.7},
        },
    })  # fmt: skip
    keys = [checkpoint_key("m", params) for params in (usual, rich)]
    assert [key[:16] for key in keys] == ["6c7e06655de6ede6", "be3e6abf2d925149"], (
        "a parameter was renamed, or its default changed: checkpoints of today would not be found any more"
    )

    class WiderNetwork(Communication):
        sparse: bool = False

    class Part(Section):
        size: int = 3

    class WiderStream(Stream):
        part: Part = Part()

    def widened(params: Params, sparse: bool = False, size: int = 3) -> str:
        communication = WiderNetwork(**params.train.communication.model_dump(), sparse=sparse)
        stream = WiderStream(**params.stream.model_dump(), part=Part(size=size))
        train = params.train.model_copy(update={"communication": communication})
        return checkpoint_key("m", params.model_copy(update={"stream": stream, "train": train}))

    for key, params in zip(keys, (usual, rich), strict=True):
        assert widened(params) == key
        assert len({key, widened(params, sparse=True), widened(params, size=4)}) == 3


def test_renamed_parameters_have_their_former_names_in_keys() -> None:
    """Else a training that was interrupted before they were renamed would begin anew."""
    masked, documents = _held(Stream(document_mask=True), "stream"), _held(Stream(samples="documents"), "stream")
    assert (masked["documents"], masked["samples"], documents["samples"]) == (True, "windows", "documents")
    assert "document_mask" not in masked
    train = _held(Train(steps=5, communication=Communication(compression="bf16")), "train")
    assert train["network"]["compression"] == "bf16"
    assert "communication" not in train
