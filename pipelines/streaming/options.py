"""What the keywords of a `Stream` may be. Ranges that depend on the data are checked where the data is known."""

from collections.abc import Mapping
from typing import Any

from storage.errors import ParamsError

LAST_SEED = (1 << 63) - 1

_LEAST = {
    "batch_size": 1, "seed": 0, "rank": 0, "world": 1, "seq_len": 1, "lanes": 1, "window": 1, "first_window": 1,
    "epochs": 1, "prefetch": 0, "pad_multiple": 1, "bucket_batches": 1, "steps": 1, "ahead": 0, "memory": 0,
}  # fmt: skip
_MOST = {"seed": LAST_SEED}
_OR_NONE = {"seq_len", "lanes", "first_window", "epochs", "steps"}
_FLAGS = {"shuffle", "keep_lanes", "documents"}
_CHOICES = {"last": ("keep", "drop", "pad"), "samples": ("windows", "documents")}


def whole(name: str, value: Any, least: int, most: int | None = None) -> int:
    """An int from `least` to `most`. Raises ParamsError that names it and its value, also for True and 1.0."""
    if type(value) is int and least <= value and (most is None or value <= most):
        return value
    limits = f"of at least {least}" if most is None else f"from {least} to {most}"
    raise ParamsError(f"{name}={value!r}: must be an int {limits}.")


def check_options(rank: Any, world: Any, batch_ramp: Any, **options: Any) -> None:
    """Raise ParamsError for a keyword of another type, or out of its range."""
    for name, value in {"world": world, **options}.items():
        if name in _LEAST and not (value is None and name in _OR_NONE):
            whole(name, value, _LEAST[name], _MOST.get(name))
        elif name in _FLAGS and not isinstance(value, bool):
            raise ParamsError(f"{name}={value!r}: must be True or False.")
        elif name in _CHOICES and value not in _CHOICES[name]:
            raise ParamsError(f"{name}={value!r}: must be one of {', '.join(_CHOICES[name])}.")
    whole("rank", rank, 0, world - 1)
    for step, size in batch_ramp.items() if isinstance(batch_ramp, Mapping) else ():
        whole("a step of batch_ramp", step, 0)
        whole(f"batch_ramp at step {step}", size, 1)
    split = options["split"]
    if not isinstance(split, str):
        raise ParamsError(f"split={split!r}: must be the name of a split.")
