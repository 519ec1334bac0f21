"""Promotion's gate: whether a model may become champion. Pure arithmetic."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from pipelines.params import Gate, suggestion
from storage.errors import ParamsError

Name = Literal["bound", "baseline", "champion"]


@dataclass(frozen=True)
class Condition:
    """`value` against `limit`: at least as good as the bound, better than the baseline, better than the champion by
    min_gain. `text` says it in words."""

    name: Name
    value: float
    limit: float
    passed: bool
    text: str


@dataclass(frozen=True)
class Decision:
    promoted: bool
    reason: str
    conditions: tuple[Condition, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {
            "promoted": self.promoted,
            "reason": self.reason,
            "conditions": [_without_nan(asdict(condition)) for condition in self.conditions],
        }


def _without_nan(values: dict[str, Any]) -> dict[str, Any]:
    return {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in values.items()}


def judge(gate: Gate, metrics: Mapping[str, float], champion: Mapping[str, float] | None) -> Decision:
    """Whether `metrics` (flat, of metrics/evaluate.json) pass `gate` against those of the champion on the same data;
    None: there is no champion. Raises ParamsError when a metric that the gate names does not exist."""
    value = _look_up(metrics, gate.metric, "promote.gate.metric")
    conditions = []
    if gate.bound is not None:
        conditions.append(_bound(gate, value, gate.bound))
    if gate.baseline is not None:
        conditions.append(_baseline(gate, value, _look_up(metrics, gate.baseline, "promote.gate.baseline")))
    if champion is not None:
        conditions.append(_champion(gate, value, champion.get(gate.metric, math.nan)))
    passed = not math.isnan(value) and all(condition.passed for condition in conditions)
    texts = [condition.text for condition in conditions if condition.passed == passed]
    if not texts:
        texts = ["is not a number" if not passed else "is not compared: the gate sets no bound or baseline"]
    if passed and champion is None:
        texts.append("and there is no champion yet")
    return Decision(passed, f"{gate.metric} {value:.6g} {', '.join(texts)}", tuple(conditions))


def _look_up(metrics: Mapping[str, float], name: str, setting: str) -> float:
    if name not in metrics:
        raise ParamsError(f"{setting}: metrics/evaluate.json has no {name!r}{suggestion(name, list(metrics))}")
    return metrics[name]


def _better(gate: Gate, value: float, other: float) -> float:
    """By how much `value` is better than `other`; NaN where either is."""
    return value - other if gate.mode == "max" else other - value


def _bound(gate: Gate, value: float, bound: float) -> Condition:
    passed = _better(gate, value, bound) >= 0
    side = "least" if gate.mode == "max" else "most"
    text = f"{'is' if passed else 'is not'} at {side} the bound {bound:.6g}"
    return Condition("bound", value, bound, passed, text)


def _baseline(gate: Gate, value: float, baseline: float) -> Condition:
    passed = _better(gate, value, baseline) > 0
    text = f"{'is' if passed else 'is not'} better than the baseline's {baseline:.6g} ({gate.baseline})"
    return Condition("baseline", value, baseline, passed, text)


def _champion(gate: Gate, value: float, champion: float) -> Condition:
    gain = _better(gate, value, champion)
    enough = gain >= gate.min_gain or math.isclose(gain, gate.min_gain, rel_tol=1e-9, abs_tol=1e-12)
    passed = gain > 0 and enough
    asked = f"by at least {gate.min_gain:.6g}" if gate.min_gain else "at all"
    outcome = f"beats the champion's {champion:.6g} by {gain:.6g}"
    if not passed:
        outcome = f"does not beat the champion's {champion:.6g} {asked} (gain {gain:.6g})"
    return Condition("champion", value, champion, passed, outcome)
