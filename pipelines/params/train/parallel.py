"""How a model and its batches are laid out over the ranks: train.parallel."""

from typing import Literal

from pydantic import Field, model_validator

from pipelines.params.schema.section import Section


class Parallel(Section):
    """data × shard × tensor × pipeline ranks. A layout changes rounding, not what is learnt (docs/parallelism.md)."""

    data: int | None = Field(None, ge=1, le=4096)
    """Copies of the model, each with its part of the batch (DDP). None: the ranks divided by shard × tensor ×
    pipeline."""
    shard: int = Field(1, ge=1, le=4096)
    """Ranks over which a copy's weights, gradients and optimiser state are sharded, each with its part of the batch
    (FSDP2). 1: not sharded."""
    tensor: int = Field(1, ge=1, le=256)
    """Ranks over which each matrix product is split (tensor parallelism; the model needs a tensor_plan). 1: not
    split."""
    pipeline: int = Field(1, ge=1, le=256)
    """Pipeline stages: groups of consecutive layers on ranks of their own (the model needs a keep_stage). 1: no
    pipeline."""
    zero: Literal[1, 2, 3] = 3
    """ZeRO stage: what the ranks of parallel.shard share out. 1: the optimiser state. 2: gradients too. 3: weights
    too."""
    schedule: Literal["1f1b", "gpipe"] = "1f1b"
    """Order of a pipeline's microbatches. 1f1b holds the activations of as many microbatches as there are stages, gpipe
    of all."""
    microbatches: int | None = Field(None, ge=1, le=4096)
    """Microbatches into which a rank's batch is cut for a pipeline. None: two per stage."""
    activation_checkpointing: bool = False
    """Keep only the input of each block in memory, and compute its activations again in the backward pass."""
    offload: bool = False
    """Keep the shards of weights and optimiser state in host memory (needs parallel.shard > 1)."""
    compile: bool = False
    """Compile the model's blocks with torch.compile. Takes a C++ compiler on CPU; the first steps take long."""

    @property
    def microbatch_count(self) -> int:
        """Microbatches of a step."""
        return self.microbatches or 2 * self.pipeline

    def data_for(self, ranks: int, name: str = "train.ranks") -> int:
        """The size of `data` on `ranks` ranks (an error calls them `name`). Raises ValueError with the equation."""
        rest = self.shard * self.tensor * self.pipeline
        data = self.data if self.data is not None else max(1, ranks // rest)
        if data * rest != ranks:
            setting = "train.ranks" if name == "train.ranks" else "train.ranks × compute.nodes"
            raise ValueError(
                f"data {data} × shard {self.shard} × tensor {self.tensor} × pipeline {self.pipeline} = {data * rest}, "
                f"but {name} = {ranks}: set {setting} to {data * rest}, or other sizes in train.parallel"
            )
        return data

    @model_validator(mode="after")
    def _sensible(self) -> "Parallel":
        if self.pipeline == 1 and self.microbatches is not None:
            raise ValueError(
                f"microbatches = {self.microbatches}, but pipeline = 1: they are a pipeline's; without one, "
                "train.accumulate cuts the batch"
            )
        if self.microbatch_count < self.pipeline:
            raise ValueError(
                f"microbatches {self.microbatch_count} < pipeline {self.pipeline}: some stages would never work. Raise "
                "train.parallel.microbatches"
            )
        if self.offload and self.shard == 1:
            raise ValueError("offload = true, but shard = 1: only shards are moved to the host. Set shard to 2 or more")
        return self
