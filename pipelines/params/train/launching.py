"""What starts the ranks, on which machines, and what happens when one of them fails. Nothing here changes a result."""

from typing import Literal

from pydantic import Field, model_validator

from pipelines.params.schema.section import Section


class Launching(Section):
    """The part of `compute` that concerns the ranks of a training (docs/launching.md)."""

    launcher: Literal["auto", "in_process", "torchrun", "ray", "external"] = "auto"
    """What starts the ranks. external: they are started by somebody else, RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT
    say which this is. auto: external where these are set, else torchrun for several ranks, in_process for one."""
    nodes: int = Field(1, ge=1, le=4096)
    """Machines that train together, with train.ranks each; the same command is started on every one of them."""
    rendezvous: str | None = None
    """HOST[:PORT] where the machines meet: an address of one of them, which hosts the meeting. ${NAME} stands for that
    environment variable. Needed for several nodes."""
    rendezvous_id: str | None = None
    """Of the job, the same on all of its machines; ${NAME} as above. None: a digest of the recipe, its parameters and
    its data, so that machines that have others never meet."""
    rendezvous_timeout_s: int = Field(600, ge=1, le=86_400)
    """Seconds within which enough machines must have met."""
    last_call_s: int = Field(30, ge=1, le=3600)
    """Seconds to wait for more machines once there are enough (elastic jobs)."""
    heartbeat_s: int = Field(5, ge=1, le=3600)
    """Seconds between a machine's signs of life; one that was silent for three times as long is given up."""
    min_ranks: int | None = Field(None, ge=1, le=4096)
    """Elastic: go on with so many ranks when machines leave. None: with all only."""
    max_ranks: int | None = Field(None, ge=1, le=4096)
    """Elastic: machines may join up to so many ranks. None: nodes x train.ranks."""
    max_restarts: int | None = Field(None, ge=0, le=10_000)
    """How often failed ranks start again from the last checkpoint by themselves. None: 10 in an elastic job, else 0."""
    grace_s: int = Field(30, ge=1, le=3600)
    """Seconds that ranks have to save and leave after SIGTERM, before SIGKILL."""
    hang_timeout_s: float | None = Field(600.0, gt=0, le=86_400)
    """Seconds without a step (or a batch of an evaluation) after which a training is given up as hung, with the stacks
    of its ranks. None: never."""

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
