"""What an evaluation gives."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Row = dict[str, Any]


@dataclass(frozen=True)
class Evaluation:
    """`metrics` for metrics/evaluate.json; `tables` (CSV) and `figures` (PNG, drawn when called) by name."""

    metrics: dict[str, Any]
    tables: dict[str, list[Row]] = field(default_factory=dict)
    figures: dict[str, "Callable[[], Figure]"] = field(default_factory=dict)


def rounded(values: Any, digits: int = 6) -> Any:
    """The same JSON value with its floats rounded, so that figures read well."""
    if isinstance(values, float):
        return round(values, digits)
    return {key: rounded(value, digits) for key, value in values.items()} if isinstance(values, dict) else values
