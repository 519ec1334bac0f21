"""Names that stand for code: ours, or an import path. A wrong one is refused before the data stages have worked."""

import difflib
from collections.abc import Sequence
from typing import Annotated

from pydantic import AfterValidator, Field


def suggestion(name: str, known: Sequence[str], instead: Sequence[str] | None = None) -> str:
    """'. Did you mean x?' for the nearest of `known`, else the list of what there is (`instead` of a long one)."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f". Did you mean {near[0]!r}?" if near else f". Known here: {', '.join(instead or known)}."


MODELS = ("transformer", "mlp", "cnn", "resnet", "vit")
LOSSES = ("auto", "cross_entropy", "focal", "squared", "absolute", "huber")


def _known(name: str, what: str, known: tuple[str, ...], own: str) -> str:
    """`name`, where it is one of `known` or an import path. Raises ValueError with the nearest one."""
    if name not in known and ":" not in name:
        raise ValueError(f"no such {what}{suggestion(name, known)} One of your own is named by its import path, {own}")
    return name


ModelName = Annotated[str, AfterValidator(lambda name: _known(name, "model", MODELS, "package.module:Class"))]
LossName = Annotated[str, AfterValidator(lambda name: _known(name, "loss", LOSSES, "package.module:function"))]
ImportPath = Annotated[str, Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")]
