"""Nested values by dotted names, as people and MLflow name parameters and metrics."""

from typing import Any


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"train": {"lr": 1}} → {"train.lr": 1}; lists stay values."""
    items: dict[str, Any] = {}
    for name, value in values.items():
        items |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return items


def numbers(values: dict[str, Any], prefix: str = "") -> dict[str, float]:
    """The numbers of nested dictionaries, by dotted name."""
    found: dict[str, float] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            found |= numbers(value, f"{prefix}{name}.")
        elif isinstance(value, int | float):
            found[prefix + name] = value
    return found
