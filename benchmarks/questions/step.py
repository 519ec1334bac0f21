"""A step of our training loop, as `shardline train` runs it, beside one by hand, Lightning's and accelerate's."""

from dataclasses import dataclass, field
from math import ceil, floor
from statistics import median, quantiles
from typing import Any

from benchmarks.outcome import Bar, Outcome
from benchmarks.rounds import Entrant, Process, say, started
from benchmarks.setting import Setting

RECIPES = ("python_lm", "digits")
PEERS = ("accelerate", "lightning")
LIBRARIES = ("torch", "mlflow", "accelerate", "pytorch-lightning")
SHOWN = {"ours": "Shardline", "stream": "Shardline, over its stream", "bare": "PyTorch by hand"}
LOGGED = 10  # steps between looks at the loss
ROUND = 30.0  # seconds of ours and by hand in a round: this many short blocks in turns even out what a machine does
MOST_PAIRS = 64  # of blocks in a round


@dataclass
class Loop:
    """Of each block: milliseconds a step, those on a core, and the share of them that was waiting for data."""

    milliseconds: list[float] = field(default_factory=list)
    on_core: list[float] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)

    @property
    def step(self) -> float:
        return median(self.milliseconds)

    def note(self, block: dict[str, float], steps: int) -> None:
        self.milliseconds.append(1000 * block["seconds"] / steps)
        self.on_core.append(1000 * block["cpu"] / steps)
        self.waits.append(block["waited"] / block["seconds"])


def ask(setting: Setting) -> Outcome:
    """Short blocks of steps in turns: ours, by hand, by hand, ours, …, and in each round the others once."""
    recipes = RECIPES[-1:] if setting.tiny else RECIPES
    found = {recipe: _race(recipe, setting) for recipe in recipes}
    ratios = {recipe: _ratio(loops["ours"], loops["bare"]) for recipe, loops in found.items()}
    waits = {recipe: median(loops["stream"].waits) for recipe, loops in found.items()}
    bars = [Bar(f"{recipe}: a step, × one by hand", 1.02, ratios[recipe], most=True) for recipe in recipes]
    what = "share of a step that waits for data"
    bars += [Bar(f"{recipe}: {what}", 0.01, waits[recipe], most=True) for recipe in recipes]
    rates = {who: 1000 / loop.step for who, loop in found[recipes[0]].items()}
    more: dict[str, Any] = {
        "ratio_to_bare": max(ratios.values()),
        "wait_share": max(waits.values()),
        "recipes": {recipe: _facts(loops) for recipe, loops in found.items()},
    }
    peers = {who: rates[who] for who in PEERS if who in rates}
    table = [_row(recipe, who, loop, loops["bare"]) for recipe, loops in found.items() for who, loop in loops.items()]
    columns = ["", "ms a step", "middle half", "× by hand", "95 %", "× by hand, on a core", "waits for data"]
    unit = f"steps/s ({recipes[0]})"
    outcome = Outcome("step", unit, rates["ours"], peers, rates["bare"], bars, columns, table, more)
    outcome.libraries = LIBRARIES
    return outcome


def _race(recipe: str, setting: Setting) -> dict[str, Loop]:
    """All loops of a recipe, in one process of this environment, a new one each round: where a model's weights happen
    to lie makes it a percent faster or slower, as long as the process lives."""
    against = ("bare", *(PEERS if setting.peers else ()))
    entrant = Entrant("loops", "loops", recipe, job={"against": against}, env={"OMP_WAIT_POLICY": "PASSIVE"})
    found = {who: Loop() for who in ("ours", "stream", *against)}
    for turn in range(1 if setting.tiny or setting.quick else 5):
        with started([entrant], f"step-{recipe}", setting) as processes:
            process = processes["loops"]
            steps, count = _warm(process, list(found), setting)
            pairs = ["ours", "bare", "bare", "ours"] * (count // 2)
            say(f"step {recipe}: round {turn + 1}, {len(pairs)} blocks of {steps} steps")
            for turns, length in ((pairs, steps), (["stream", *against[1:]], max(steps, LOGGED // 2))):
                for who, block in zip(turns, process.ask(turns=turns, steps=length)["blocks"], strict=True):
                    found[who].note(block, length)
    return found


def _warm(process: Process, everybody: list[str], setting: Setting) -> tuple[int, int]:
    """A few steps of each. Returns how many make a block, ten or as many as take half a second, and how many pairs of
    blocks a round."""
    process.ask(turns=everybody, steps=3)
    (block,) = process.ask(turns=["ours"], steps=3)["blocks"]
    step = float(block["seconds"]) / 3
    steps = min(LOGGED, max(1, round(0.5 / step)))
    seconds = ROUND / 3 if setting.quick else ROUND
    return steps, 2 if setting.tiny else min(MOST_PAIRS, max(4, round(seconds / (2 * step * steps))))


def _ratio(loop: Loop, bare: Loop, times: str = "milliseconds") -> float:
    """Median over the blocks of their time beside that of the block by hand that was nearest to them."""
    return float(median(_ratios(loop, bare, times)))


def _ratios(loop: Loop, bare: Loop, times: str = "milliseconds") -> list[float]:
    ours, by_hand = getattr(loop, times), getattr(bare, times)
    return [time / by_hand[index * len(by_hand) // len(ours)] for index, time in enumerate(ours)]


def _interval(loop: Loop, bare: Loop) -> tuple[float, float]:
    """In which that median lies with 95 %, by order statistics: no matter how the ratios are spread."""
    ratios = sorted(_ratios(loop, bare))
    reach = 0.98 * len(ratios) ** 0.5
    low, high = floor(len(ratios) / 2 - reach), ceil(len(ratios) / 2 + reach)
    return ratios[max(low, 0)], ratios[min(high, len(ratios) - 1)]


def _facts(loops: dict[str, Loop]) -> dict[str, Any]:
    bare = loops["bare"]
    return {
        "ratio_to_bare": _ratio(loops["ours"], bare),
        "wait_share": median(loops["stream"].waits),
        "milliseconds": {who: loop.step for who, loop in loops.items()},
        "interval": _interval(loops["ours"], bare),
        "ratios": {who: _ratio(loop, bare) for who, loop in loops.items()},
        "ratios_on_a_core": {who: _ratio(loop, bare, "on_core") for who, loop in loops.items()},
    }


def _row(recipe: str, who: str, loop: Loop, bare: Loop) -> list[str]:
    low, _, high = quantiles(loop.milliseconds, n=4) if len(loop.milliseconds) > 1 else [loop.step] * 3
    waits = f"{median(loop.waits):.2%}" if who == "stream" else ""
    on_core = f"{_ratio(loop, bare, 'on_core'):.3f}" if who != "lightning" else ""  # where it also sets up its Trainer
    between = "{:.3f} – {:.3f}".format(*_interval(loop, bare)) if len(loop.milliseconds) > 10 else ""
    return [
        f"{recipe}: {SHOWN.get(who, who)}", f"{loop.step:.2f}", f"{low:.2f} – {high:.2f}",
        f"{_ratio(loop, bare):.3f}", between, on_core, waits,
    ]  # fmt: skip
