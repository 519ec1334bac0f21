"""Text ↔ numbers: one grammar for tables that are curated and for those that a model is asked about.

An optional sign, ASCII digits with an optional point, and an optional exponent; blanks and tabs around it don't count.
Python's `float` and NumPy would also take 1_000, digits of every script, and words such as nan and infinity.
"""

import re
from typing import Any

_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")


def number_of(value: Any) -> float | None:
    """What a cell says, where it is a number or its text (str, or bytes of it); None for what says none."""
    if isinstance(value, bytes):
        value = value.decode("latin-1")
    if not isinstance(value, str):
        return None if value is None else float(value)
    value = value.strip(" \t")
    return float(value) if _NUMBER.fullmatch(value) else None
