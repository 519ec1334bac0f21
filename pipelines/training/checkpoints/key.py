"""Which training a checkpoint belongs to."""

from collections.abc import Sequence
from typing import Any

from pipelines.params import Params, Section
from storage.digest import digest_json

#: Parameters that change how a result is computed, not (but for rounding) which one: a resumed run may change them.
NEUTRAL = {
    "train": {
        "checkpoint_every", "checkpoints", "log_every", "device", "ranks", "threads", "accumulate", "parallel",
        "price_per_hour",
    },
}  # fmt: skip

#: What keys have held from the start, by section, whatever its value. A parameter that came later is left out at its
#: default, which is what trainings did without it: so an upgrade goes on with a training that was interrupted before.
#: Nothing is ever added here.
HELD = {
    "stream": {
        "batch_ramp", "batch_size", "bucket_batches", "documents", "first_window", "keep_lanes", "lanes", "mixture",
        "pad_multiple", "samples", "seq_len", "window",
    },
    "model": {"args", "name"},
    "train": {
        "args", "betas", "clip_norm", "clip_value", "ema", "entrypoint", "epochs", "eval_batches", "eval_every",
        "label_smoothing", "loss", "loss_args", "lr", "min_lr", "network", "nonfinite", "optimizer", "patience",
        "precision", "schedule", "steps", "warmup", "weight_decay",
    },
    "train.ema": {"decay", "evaluate", "every", "final", "warmup"},
    "train.network": {
        "bucket_mb", "compression", "local_after", "local_steps", "outer_lr", "outer_momentum", "overlap",
        "powersgd_after", "powersgd_rank",
    },
    "train.nonfinite": {"factor", "limit", "name"},
    "train.optimizer": {
        "alpha", "amsgrad", "betas", "c1", "c2", "carry", "centered", "eps", "evaluations", "formula", "history",
        "initial_accumulator_value", "iterations", "lr_decay", "momentum", "momentum_decay", "name", "nesterov",
        "ns_steps", "rest_lr", "rho", "scale", "tolerance",
    },
    "train.schedule": {"at", "decay", "end", "factor", "name", "rise", "shape", "start"},
}  # fmt: skip

#: Parameters that were renamed since: in keys they have their former names.
FORMER = {"train.communication": "train.network", "stream.document_mask": "stream.documents"}
#: Values likewise.
FORMER_VALUES = {("stream.samples", "sequences"): "windows"}


def checkpoint_key(manifest: str, params: Params, code: Sequence[str] = ()) -> str:
    """Digest of all that decides a training's result: only a training with the same one is gone on with. `code` holds
    the digests of the user's own files that it runs."""
    sections: dict[str, Any] = {name: _held(getattr(params, name), name) for name in ("stream", "model", "train")}
    if code:
        sections["code"] = list(code)
    return digest_json({"manifest": manifest, "seed": params.seed, **sections})


def _held(section: Section, path: str) -> dict[str, Any]:
    """A section's values by the names that keys have, without those that its key leaves out."""
    values: dict[str, Any] = {}
    dumped = section.model_dump(exclude=NEUTRAL.get(path))
    for name, field in type(section).model_fields.items():
        if name not in dumped:
            continue
        value = getattr(section, name)
        held = FORMER.get(f"{path}.{name}", f"{path}.{name}")
        known = held.rpartition(".")[2]
        if known in HELD.get(path, ()) or value != field.get_default(call_default_factory=True, validated_data={}):
            former = FORMER_VALUES.get((held, value), dumped[name]) if isinstance(value, str) else dumped[name]
            values[known] = _held(value, held) if isinstance(value, Section) else former
    return values
