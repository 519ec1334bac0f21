"""What starts the ranks, on which machines, and what happens when one of them fails. Nothing here changes a result."""

from typing import Literal

from pydantic import Field, model_validator

from pipelines.params.schema.section import Section


class Launching(Section):
    """The part of `compute` that concerns the ranks of a training (docs/launching.md)."""

    launcher: Literal["auto", "in_process", "torchrun", "ray", "external"] = "auto"
    """What starts the ranks. external: something else does, and the variables RANK, WORLD_SIZE, MASTER_ADDR and
    MASTER_PORT tell each rank its place. auto: external where these are set, else torchrun for several ranks,
    in_process for one."""
    nodes: int = Field(1, ge=1, le=4096)
    """Number of machines that train together, with train.ranks ranks each; the same command is started on each of
    them."""
    rendezvous: str | None = None
    """HOST[:PORT] at which the machines of a training meet: an address of one of them, which hosts the rendezvous.
    ${NAME} is replaced from the environment. Required for several nodes."""
    rendezvous_id: str | None = None
    """Id of the job, the same on all of its machines; ${NAME} is replaced from the environment. None: a digest of the
    recipe, its parameters and its data, so that only machines that agree on these meet."""
    rendezvous_timeout_s: int = Field(600, ge=1, le=86_400)
    """Seconds within which the required number of machines must have met."""
    last_call_s: int = Field(30, ge=1, le=3600)
    """Seconds to wait for more machines once compute.min_ranks are there (elastic jobs)."""
    heartbeat_s: int = Field(5, ge=1, le=3600)
    """Seconds between a machine's heartbeats; a machine is given up after three times this long without one."""
    min_ranks: int | None = Field(None, ge=1, le=4096)
    """Elastic job: least number of ranks with which training goes on when machines leave. None: all ranks are
    needed."""
    max_ranks: int | None = Field(None, ge=1, le=4096)
    """Elastic job: largest number of ranks that machines may join up to. None: compute.nodes x train.ranks."""
    max_restarts: int | None = Field(None, ge=0, le=10_000)
    """How often the ranks restart from the last checkpoint without help after a failure. None: 10 in an elastic job,
    else 0."""
    grace_s: int = Field(30, ge=1, le=3600)
    """Seconds that ranks have after SIGTERM to save a checkpoint and exit, before SIGKILL."""
    hang_timeout_s: float | None = Field(600.0, gt=0, le=86_400)
    """Seconds without progress (a step, or a batch of an evaluation) after which a training is ended as hung, with the
    stack traces of its ranks. None: never."""

    @model_validator(mode="after")
    def _ordered(self) -> "Launching":
        low, high = self.min_ranks, self.max_ranks
        if low is not None and high is not None and low > high:
            raise ValueError(f"min_ranks = {low} > max_ranks = {high}: no number of ranks is both")
        return self

    @property
    def elastic(self) -> bool:
        """Whether the number of ranks may change in the middle."""
        return self.min_ranks is not None or self.max_ranks is not None

    @property
    def restarts(self) -> int:
        """How often failed ranks start again."""
        return self.max_restarts if self.max_restarts is not None else 10 if self.elastic else 0
