"""Names: what was meant by a wrong one, and import paths."""

import difflib
from collections.abc import Sequence
from typing import Annotated

from pydantic import Field


def suggestion(name: str, known: Sequence[str], instead: Sequence[str] | None = None) -> str:
    """'. Did you mean x?' for the nearest of `known`, else the list of what there is (`instead` of a long one)."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f". Did you mean {near[0]!r}?" if near else f". Known here: {', '.join(instead or known)}."


ImportPath = Annotated[str, Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")]
