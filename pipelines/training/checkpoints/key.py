"""Which training a checkpoint belongs to."""

from pipelines.params import Params
from storage.digest import digest_json

#: Parameters that change how a result is computed, not (but for rounding) which one: a resumed run may change them.
NEUTRAL = {
    "train": {
        "checkpoint_every", "checkpoints", "log_every", "device", "ranks", "threads", "accumulate", "parallel",
        "price_per_hour",
    },
}  # fmt: skip


def checkpoint_key(manifest: str, params: Params) -> str:
    """Digest of all that decides a training's result: only a training with the same one is gone on with."""
    sections = {
        name: getattr(params, name).model_dump(exclude=NEUTRAL.get(name)) for name in ("stream", "model", "train")
    }
    return digest_json({"manifest": manifest, "seed": params.seed, **sections})
