"""The parts of what a `Stream` is told, and what their values may be.

Each part is frozen, and named by a keyword of the stream. Ranges that depend on the data are checked where the data is
known.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, TypedDict, cast, get_type_hints

from pipelines.streaming.fetch import DEFAULT_AHEAD
from pipelines.streaming.gather.buffers import Allocate, allocate
from pipelines.streaming.gather.gatherer import DEFAULT_MEMORY
from pipelines.streaming.order import Ordering, Weight
from storage.cache import Tiered
from storage.errors import ParamsError

LAST_SEED = (1 << 63) - 1

#: What a sample of a token dataset is.
Unit = Literal["sequences", "documents"]

#: What becomes of an epoch's last batch where it is short.
Last = Literal["keep", "drop", "pad"]


@dataclass(frozen=True, kw_only=True)
class Batching:
    """How batches are filled with samples."""

    batch_ramp: Mapping[int, int] | None = None
    """A global batch that grows up to `batch_size`: step → samples from there on."""
    last: Last = "keep"
    """The last batch of an epoch is kept short, dropped, or padded with zeros and masked."""
    bucket_batches: int = 1
    """So many batches are filled together with samples of like length, where these are shuffled and differ in it (see
    `Bucketed`). 1: as they come."""


@dataclass(frozen=True, kw_only=True)
class Text:
    """What is a sample of text, and what a batch holds of it."""

    seq_len: int | None = None
    """Tokens that a model sees at once. Needed where shards hold tokens."""
    samples: Unit = "sequences"
    """Sequences of `seq_len` + 1 tokens out of all documents end to end, or whole documents, each cut to that."""
    document_mask: bool = False
    """Of sequences: also which document each token is of, and where in it (see `Tokens`)."""
    pad_multiple: int = 1
    """Of whole documents: a batch is padded to its longest, rounded up to a multiple of so many tokens."""


@dataclass(frozen=True, kw_only=True)
class Mixing:
    """What is read of several domains of one dataset, or of several datasets (docs/mixtures.md)."""

    mixture: Mapping[str, Weight] | None = None
    """Weights of the domains of one dataset."""
    domain: str | None = None
    """The only domain that is read."""
    weights: Mapping[str, Weight] | None = None
    """Weights of several datasets, whose zones and manifests are given by name. None: all alike."""
    steps: int | None = None
    """Steps of an epoch of several datasets. None: as many as all their samples fill once."""


@dataclass(frozen=True, kw_only=True)
class Loading:
    """How this process comes by its batches: it changes nothing of what they hold."""

    tiers: Tiered | Mapping[str, Tiered] | None = None
    """Caches of the lake that shards come through. None: straight from the zone."""
    ahead: int = DEFAULT_AHEAD
    """Bytes of shards that are fetched before they are needed, where they aren't on this machine."""
    memory: int = DEFAULT_MEMORY
    """Bytes of shards that are held once they were fetched, where they aren't files here."""
    prefetch: int = 2
    """Batches, at least, that a thread prepares while the consumer is busy (see `Prefetcher`). 0: no thread."""
    allocate: Allocate = allocate
    """Makes the memory that arrays lie in (pinned, say); it is used again once nothing refers to them."""


class Parts(TypedDict, total=False):
    """The keywords of a `Stream` that take a part."""

    order: Ordering
    batching: Batching
    text: Text
    mixing: Mixing
    loading: Loading


#: The parts by their keyword.
KINDS: dict[str, type] = get_type_hints(Parts)
_LEAST = {
    "batch_size": 1, "seed": 0, "rank": 0, "world": 1, "seq_len": 1, "lanes": 1, "window": 1, "first_window": 1,
    "epochs": 1, "prefetch": 0, "pad_multiple": 1, "bucket_batches": 1, "steps": 1, "ahead": 0, "memory": 0,
}  # fmt: skip
_MOST = {"seed": LAST_SEED}
_OR_NONE = {"seq_len", "lanes", "first_window", "epochs", "steps"}
_FLAGS = {"shuffle", "keep_lanes", "document_mask"}
_CHOICES = {"last": ("keep", "drop", "pad"), "samples": ("sequences", "documents")}


def whole(name: str, value: Any, least: int, most: int | None = None) -> int:
    """An int from `least` to `most`. Raises ParamsError that names it and its value, also for True and 1.0."""
    if type(value) is int and least <= value and (most is None or value <= most):
        return value
    limits = f"of at least {least}" if most is None else f"from {least} to {most}"
    raise ParamsError(f"{name}={value!r}: must be an int {limits}.")


def complete(given: Mapping[str, Any]) -> Parts:
    """All parts: those `given` by keyword, and defaults. Raises TypeError for a keyword that is none of a stream's,
    and says of which part it is a field, where it is one."""
    for name, part in given.items():
        if name not in KINDS:
            raise TypeError(_unknown(name))
        if not isinstance(part, KINDS[name]):
            kind = KINDS[name].__name__
            raise TypeError(f"Stream(): {name} must be {kind}(…), not {type(part).__name__}.")
    return cast("Parts", {name: given.get(name) or kind() for name, kind in KINDS.items()})


def _unknown(name: str) -> str:
    for part, kind in KINDS.items():
        if name in {field.name for field in fields(kind)}:
            return (
                f"Stream() has no keyword {name!r}: it is a field of a part. Write {part}={kind.__name__}({name}=…); "
                f"{kind.__name__} is in pipelines.streaming."
            )
    parts = ", ".join(f"{part}={kind.__name__}(…)" for part, kind in KINDS.items())
    return f"Stream() has no keyword {name!r}. Its parts are {parts}."


def check_options(parts: Parts, *, rank: Any, world: Any, **options: Any) -> None:
    """Raise ParamsError for a keyword, or a field of a part, of another type or out of its range."""
    named = {"world": world, **options}
    for part in parts.values():
        named |= vars(part)
    for name, value in named.items():
        if name in _LEAST and not (value is None and name in _OR_NONE):
            whole(name, value, _LEAST[name], _MOST.get(name))
        elif name in _FLAGS and not isinstance(value, bool):
            raise ParamsError(f"{name}={value!r}: must be True or False.")
        elif name in _CHOICES and value not in _CHOICES[name]:
            raise ParamsError(f"{name}={value!r}: must be one of {', '.join(_CHOICES[name])}.")
    whole("rank", rank, 0, world - 1)
    ramp = parts["batching"].batch_ramp
    for step, size in ramp.items() if isinstance(ramp, Mapping) else ():
        whole("a step of batch_ramp", step, 0)
        whole(f"batch_ramp at step {step}", size, 1)
    if not isinstance(options["split"], str):
        raise ParamsError(f"split={options['split']!r}: must be the name of a split.")
