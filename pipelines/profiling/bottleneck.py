"""From a capture's figures to the bottleneck: what bounds a step, what to change, what to expect of it. Arithmetic."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

#: The parts of a step, in the order in which they are named when they are equal.
PARTS = ("data", "network", "memory", "compute", "overhead")
MEANS = {
    "data": "waiting for data",
    "network": "network-bound: the ranks wait for each other's gradients",
    "memory": "memory-bound: it moves numbers more than it multiplies them",
    "compute": "compute-bound: it multiplies matrices",
    "overhead": "overhead-bound: its operators are so small that calling them takes longer than what they do",
}
_WORTH = 0.02  # a gain below this share of the step is not worth a word
_PASSES = 0.2  # of a step in operators that a compiler may join: worth its time
_BUSY = 0.05  # of the time without a core: worth a word
_WELL_USED = 0.6  # of the peak rate: more is hard to reach
_FASTER = 1.2  # a precision must have so many times the rate to be worth the change


@dataclass(frozen=True)
class Figures:
    """What was measured in a window, of rank 0; `shares` of the step by part add up to 1."""

    step_seconds: float
    shares: dict[str, float]
    stream: dict[str, float] = field(default_factory=dict)
    """Of the time, how much the preparing threads spent on fetch, plan, decode and gather."""
    stolen: float = 0.0
    """Share of the time by the clock in which other programs had the cores: no part of the step."""
    optimizer: float = 0.0
    """Share of the step spent in the optimiser, part of the others."""
    flops: float = 0.0
    """Operations of a step on this rank."""
    precision: str = "float32"
    peaks: dict[str, float] = field(default_factory=dict)
    """Measured FLOP/s of matrix products by precision, with the training's device and threads."""
    device: str = "cpu"
    threads: int = 1
    cores: int = 1
    """That this process may use."""
    ranks: int = 1
    batch: int = 1
    """Samples of the global batch."""
    compression: str = "none"
    """Of gradients as they are sent (train.communication.compression)."""
    compiled: bool = False
    """Whether the model's blocks run through torch.compile."""
    remote: bool = False
    """Whether the shards lie on another machine."""
    node_cache: bool = False

    @property
    def utilisation(self) -> float | None:
        """Model-flops utilisation: of the peak rate, how much the step as a whole reaches."""
        peak = self.peaks.get(self.precision)
        return self.flops / self.step_seconds / peak if peak else None

    @property
    def product_utilisation(self) -> float | None:
        """The same of the time in matrix products and convolutions alone."""
        whole, share = self.utilisation, self.shares["compute"]
        return whole / share if whole is not None and share else None


@dataclass(frozen=True)
class Advice:
    """`change` is what to do; `gain` the share of the step that it saves at most, None where that can't be told."""

    change: str
    gain: float | None

    def __str__(self) -> str:
        if self.gain is None:
            return self.change
        faster = 1 / (1 - min(self.gain, 0.99))
        return f"{self.change}  (saves up to {self.gain:.0%} of a step: {faster:.2f} times as fast)"


@dataclass(frozen=True)
class Bottleneck:
    """`bound` is one of PARTS."""

    bound: str
    figures: Figures
    advice: tuple[Advice, ...]

    def to_json(self) -> dict[str, Any]:
        figures = self.figures
        return {
            "bound": self.bound,
            "means": MEANS[self.bound],
            "figures": asdict(figures),
            "model_flops_utilisation": figures.utilisation,
            "product_utilisation": figures.product_utilisation,
            "advice": [asdict(one) for one in self.advice],
        }

    def lines(self) -> list[str]:
        """For a person."""
        f = self.figures
        shares = ", ".join(f"{part} {f.shares[part]:.1%}" for part in PARTS)
        lines = [
            f"bottleneck: {MEANS[self.bound]} ({f.shares[self.bound]:.0%} of each step)",
            f"  a step takes {f.step_seconds * 1000:.2f} ms: {shares} (the optimiser's part: {f.optimizer:.1%})",
        ]
        if f.utilisation is not None:
            lines.append(
                f"  {_count(f.flops)}FLOP a step, {_count(f.flops / f.step_seconds)}FLOP/s: {f.utilisation:.1%} of the "
                f"{_count(f.peaks[f.precision])}FLOP/s that {f.device} reached in {f.precision} in this run"
            )
        if f.stolen > _BUSY:
            lines.append(
                f"  other programs had the cores for {f.stolen:.0%} of the time, which is left out above; a run on a "
                "machine of its own tells more"
            )
        return [*lines, *(f"  - {one}" for one in self.advice)]


def judge(figures: Figures) -> Bottleneck:
    """The bottleneck: the largest part bounds; advice first for it, then for the others that are worth it."""
    bound = max(PARTS, key=lambda part: figures.shares[part])
    found = {part: [one for one in _ADVISERS[part](figures) if _worth(one)] for part in PARTS}
    if not found[bound]:
        found[bound] = [Advice(_NOTHING[bound], None)]
    others = [one for part in PARTS if part != bound for one in found[part] if one.gain is not None]
    others.sort(key=lambda one: -(one.gain or 0.0))
    return Bottleneck(bound, figures, (*found[bound], *others))


def _worth(advice: Advice) -> bool:
    return advice.gain is None or advice.gain >= _WORTH


_NOTHING = {
    "data": "raise compute.prefetch",
    "network": "fewer ranks, or a faster network",
    "memory": "a device with faster memory",
    "compute": "the device is used as well as it goes: only a faster one, more ranks or a smaller model will help",
    "overhead": "raise stream.batch_size",
}


def _data(f: Figures) -> Iterator[Advice]:
    """The preparing threads tell what the waiting is for."""
    wait = f.shares["data"]
    part = max(f.stream, key=lambda name: f.stream[name]) if f.stream else ""
    if not part or f.stream[part] < wait / 4:  # they are idle: they don't get a core, or too few batches are ahead
        yield Advice(f"raise compute.prefetch; lower train.threads (now {f.threads}) by one for the stream", wait)
    elif part == "fetch" and f.remote and not f.node_cache:
        yield Advice("set cache.node.enabled to true: after the first epoch the shards lie on this machine", wait)
    elif part == "fetch":
        yield Advice("fill the caches first (`shardline cache warm`), or raise compute.ahead_mb", wait)
    elif part == "decode":
        yield Advice("set shard.images to pixels, which decodes once, or lower shard.image_size", wait)
    elif part == "plan":
        yield Advice("lower stream.window, or raise compute.prefetch", wait)
    else:
        yield Advice("raise compute.prefetch; leave a core to the stream (train.threads)", wait)


def _network(f: Figures) -> Iterator[Advice]:
    share = f.shares["network"]
    if f.compression == "none":
        yield Advice("set train.communication.compression to bf16: half the bytes", share / 2)
        yield Advice(
            "set train.communication.local_steps to 8: the ranks meet at every eighth step only", share * 7 / 8
        )
    if f.ranks > 1:
        yield Advice("double stream.batch_size: as many bytes for twice the samples (a gain per sample)", share / 2)


def _memory(f: Figures) -> Iterator[Advice]:
    share = f.shares["memory"]
    if share > f.shares["compute"]:
        yield from _threads(f)
    if f.device != "cpu" and f.precision == "float32":
        yield Advice("set train.precision to bf16: half the bytes", share / 2)
    if not f.compiled and share - f.optimizer > _PASSES:
        yield Advice("set train.parallel.compile to true, which joins passes over memory", (share - f.optimizer) / 2)
    if f.optimizer > 0.1:
        yield Advice("double stream.batch_size: the optimiser reads as much for twice the samples", f.optimizer / 2)


def _compute(f: Figures) -> Iterator[Advice]:
    share, now = f.shares["compute"], f.peaks.get(f.precision)
    best = max(f.peaks, key=lambda name: f.peaks[name]) if f.peaks else f.precision
    if now and f.peaks[best] > _FASTER * now:
        name = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}[best]
        yield Advice(f"set train.precision to {name}", share * (1 - now / f.peaks[best]))
    if f.shares["memory"] <= share:
        yield from _threads(f)
    reached = f.product_utilisation
    if reached is not None and reached < _WELL_USED and share > 0.3:
        yield Advice(
            f"larger products (stream.batch_size, the model's widths): they reach {reached:.0%} of the peak",
            share * (1 - reached / _WELL_USED),
        )


def _overhead(f: Figures) -> Iterator[Advice]:
    yield Advice("double stream.batch_size: as many calls for twice the samples", f.shares["overhead"] / 2)


def _threads(f: Figures) -> Iterator[Advice]:
    """Threads that a CPU rank could have besides."""
    each = f.cores // f.ranks
    if f.device == "cpu" and f.threads < each:
        busy = f.shares["memory"] + f.shares["compute"]
        yield Advice(f"raise train.threads from {f.threads} to {each}", busy * (1 - f.threads / each))


_ADVISERS = {"data": _data, "network": _network, "memory": _memory, "compute": _compute, "overhead": _overhead}


def _count(value: float) -> str:
    """1.2e9 → "1.2 G"."""
    for prefix in ("", "k", "M", "G", "T", "P"):
        if abs(value) < 1000 or prefix == "P":
            return f"{value:.3g} {prefix}"
        value /= 1000
    raise AssertionError
