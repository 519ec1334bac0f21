"""How a training's checkpoints are written and kept: train.checkpoints."""

from pydantic import Field

from pipelines.params.schema.section import Section


class Checkpoints(Section):
    """Checkpoints of a training. Nothing here changes a result."""

    every: int | None = Field(None, ge=1)
    """Steps between checkpoints. None: train.checkpoint_every."""
    keep_last: int = Field(2, ge=1, le=10_000)
    """How many of the newest stay."""
    keep_best: int = Field(0, ge=0, le=10_000)
    """How many of those with the least val loss stay too, also after the training. Above 0, each evaluation that is the
    best so far is followed by a checkpoint."""
    keep_every: int | None = Field(None, ge=1)
    """Those of each multiple of so many steps stay too, also after the training. None: none of them."""
    background: bool = True
    """Write while training goes on, from a copy of the state in host memory. false: training waits."""
    url: str | None = None
    """Where they lie; a folder is relative to the recipe's. None: in the lake where that is remote (lake.url), else in
    .shardline/checkpoints. Below a url each owner has a folder."""
    owner: str | None = None
    """Whose they are, where they lie below a url; ${NAME} is replaced from the environment, and SHARDLINE_OWNER wins.
    None: this clone's own, remembered in .shardline/owners."""
