"""How a training's checkpoints are written and kept: train.checkpoints."""

from pydantic import Field

from pipelines.params.schema.section import Section


class Checkpoints(Section):
    """Checkpoints of a training. Nothing here changes a result."""

    every: int | None = Field(None, ge=1)
    """Steps between checkpoints. None: train.checkpoint_every."""
    keep_last: int = Field(2, ge=1, le=10_000)
    """Number of newest checkpoints that are kept."""
    keep_best: int = Field(0, ge=0, le=10_000)
    """Number of checkpoints with the lowest val loss that are kept too, also after the training. Above 0, each
    evaluation that is the best so far is followed by a checkpoint. 0: none."""
    keep_every: int | None = Field(None, ge=1)
    """Checkpoints at multiples of this number of steps are kept too, also after the training. None: none of them."""
    background: bool = True
    """Write checkpoints while training goes on, from a copy of the state in host memory. false: training waits until
    they are written."""
    url: str | None = None
    """Where checkpoints are stored: a URL, or a folder relative to the recipe's, with a folder below it for each owner.
    None: in the lake where lake.url is remote, else in .shardline/checkpoints."""
    owner: str | None = None
    """Owner of the checkpoints below a URL, to tell apart the trainings of several clones. ${NAME} is replaced from the
    environment; the variable SHARDLINE_OWNER overrides it. None: a random name of this clone, kept in
    .shardline/owners."""
