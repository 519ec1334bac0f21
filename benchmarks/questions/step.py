"""A step of our training loop, as `shardline train` runs it, beside one by hand, Lightning's and accelerate's."""

from dataclasses import dataclass, field
from statistics import median, quantiles
from typing import Any

from benchmarks.outcome import Bar, Outcome
from benchmarks.rounds import Entrant, Process, say, started
from benchmarks.setting import Setting

RECIPES = ("python_lm", "digits")
AGAINST = ("bare", "accelerate", "lightning")
SHOWN = {"ours": "Shardline", "stream": "Shardline, over its stream", "bare": "PyTorch by hand"}
LOGGED = 10  # steps between looks at the loss; blocks are a multiple


@dataclass
class Loop:
    """Milliseconds a step, one of each block, and the share of them that was waiting for data."""

    milliseconds: list[float] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)

    @property
    def step(self) -> float:
        return median(self.milliseconds)


def ask(setting: Setting) -> Outcome:
    """Blocks of steps in turns: by hand, ours, Lightning, by hand, ours over the stream, accelerate, …"""
    found = {recipe: _race(recipe, setting) for recipe in RECIPES}
    ratios = {recipe: _ratio(loops["ours"], loops["bare"]) for recipe, loops in found.items()}
    waits = {recipe: median(loops["stream"].waits) for recipe, loops in found.items()}
    bars = [Bar(f"{recipe}: a step, × one by hand", 1.02, ratios[recipe], most=True) for recipe in RECIPES]
    bars += [
        Bar(f"{recipe}: share of a step that waits for data", 0.01, waits[recipe], most=True) for recipe in RECIPES
    ]
    rates = {who: 1000 / found["python_lm"][who].step for who in ("ours", *AGAINST)}
    more: dict[str, Any] = {
        "ratio_to_bare": max(ratios.values()),
        "wait_share": max(waits.values()),
        "recipes": {
            recipe: {
                "ratio_to_bare": ratios[recipe],
                "wait_share": waits[recipe],
                "milliseconds": {who: loop.step for who, loop in loops.items()},
                "ratios": {who: _ratio(loop, loops["bare"]) for who, loop in loops.items()},
            }
            for recipe, loops in found.items()
        },
    }
    peers = {who: rates[who] for who in AGAINST if who != "bare"}
    table = [_row(recipe, who, loop, loops["bare"]) for recipe, loops in found.items() for who, loop in loops.items()]
    columns = ["", "ms a step", "middle half", "× by hand", "waits for data"]
    return Outcome("step", "steps/s (python_lm)", rates["ours"], peers, rates["bare"], bars, columns, table, more)


def _race(recipe: str, setting: Setting) -> dict[str, Loop]:
    """All loops of a recipe, in one process. Peers and by hand are always there: they need no other environment."""
    entrant = Entrant("loops", "loops", recipe, job={"against": AGAINST}, env={"OMP_WAIT_POLICY": "PASSIVE"})
    turns = ("bare", "ours", "lightning", "bare", "ours", "accelerate", "bare", "stream", "ours")
    found = {who: Loop() for who in ("ours", "stream", *AGAINST)}
    with started([entrant], f"step-{recipe}", setting) as processes:
        process = processes["loops"]
        steps = _warm(process, setting)
        for turn in range(1 if setting.tiny else 3 if setting.quick else 8):
            say(f"step {recipe}: round {turn + 1}, blocks of {steps} steps")
            for who in turns:
                answer = process.ask(who=who, steps=steps)
                found[who].milliseconds.append(1000 * answer["seconds"] / steps)
                found[who].waits.append(answer["waited"] / answer["seconds"])
    return found


def _warm(process: Process, setting: Setting) -> int:
    """A block of each, and an epoch of the stream. Returns how many steps make a block of a good length."""
    for who in AGAINST:
        process.ask(who=who, steps=LOGGED)
    process.ask(who="stream", steps=LOGGED if setting.tiny else 3 * LOGGED)
    seconds = float(process.ask(who="ours", steps=LOGGED)["seconds"]) / LOGGED
    wanted = 0.05 if setting.tiny else 0.5
    return LOGGED * max(1, round(wanted / seconds / LOGGED))


def _ratio(loop: Loop, bare: Loop) -> float:
    """Median over the blocks of the time beside that of the blocks by hand in the same round."""
    each, by_hand = len(loop.milliseconds), len(bare.milliseconds)
    pairs = [(time, bare.milliseconds[index * by_hand // each]) for index, time in enumerate(loop.milliseconds)]
    return median(time / other for time, other in pairs)


def _row(recipe: str, who: str, loop: Loop, bare: Loop) -> list[str]:
    low, _, high = quantiles(loop.milliseconds, n=4) if len(loop.milliseconds) > 1 else [loop.step] * 3
    waits = f"{median(loop.waits):.2%}" if who == "stream" else ""
    return [
        f"{recipe}: {SHOWN.get(who, who)}", f"{loop.step:.2f}", f"{low:.2f} – {high:.2f}",
        f"{_ratio(loop, bare):.3f}", waits,
    ]  # fmt: skip
