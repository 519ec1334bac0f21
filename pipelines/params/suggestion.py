"""The nearest name that is known."""

import difflib


def suggestion(name: str, known: list[str]) -> str:
    """'. Did you mean x?' for the nearest of `known`, else the list of what there is."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f". Did you mean {near[0]!r}?" if near else f". Known here: {', '.join(known)}."
