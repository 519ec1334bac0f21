"""Where a rank stands: arithmetic on sizes, without torch."""

from dataclasses import dataclass
from math import prod

from pipelines.params import Params
from storage.errors import ParamsError

#: Of the mesh, the outermost first: a tensor group's ranks are neighbours, since they speak most often.
DIMENSIONS = ("pipeline", "data", "shard", "tensor")


@dataclass(frozen=True)
class Layout:
    """`sizes` of DIMENSIONS, and the `rank` of this process: their row-major index."""

    sizes: tuple[int, int, int, int] = (1, 1, 1, 1)
    rank: int = 0

    @classmethod
    def of(cls, params: Params, world: int, rank: int) -> "Layout":
        """The layout of `train.parallel` on `world` ranks. Raises ParamsError with the equation that fails."""
        parallel, batch = params.train.parallel, params.stream.first_batch
        named = "stream.batch_size" if params.stream.batch_ramp is None else "stream.batch_ramp at step 0"
        try:
            data = parallel.data_for(world, "the number of ranks")
        except ValueError as error:
            raise ParamsError(f"train.parallel: {error}.") from error
        if data * parallel.shard > batch:
            raise ParamsError(
                f"train.parallel: data {data} × shard {parallel.shard} = {data * parallel.shard} > {named} = "
                f"{batch}: some ranks would never get a sample. Raise {named}, or lower one of the sizes."
            )
        most = -(-batch // (data * parallel.shard))
        if parallel.pipeline > 1 and parallel.microbatch_count > most:
            raise ParamsError(
                f"train.parallel: microbatches {parallel.microbatch_count} > {named} / (data × shard) = {batch} / "
                f"{data * parallel.shard} = {most} samples of a rank: some would be empty. Raise {named}, "
                "or lower train.parallel.microbatches."
            )
        return cls((parallel.pipeline, data, parallel.shard, parallel.tensor), rank)

    @property
    def world(self) -> int:
        """Ranks in all."""
        return prod(self.sizes)

    def size(self, dimension: str) -> int:
        return self.sizes[DIMENSIONS.index(dimension)]

    def place(self, dimension: str) -> int:
        """This rank's coordinate."""
        index = DIMENSIONS.index(dimension)
        return self.rank // prod(self.sizes[index + 1 :]) % self.sizes[index]

    @property
    def data_world(self) -> int:
        """Into how many parts the global batch is split."""
        return self.size("data") * self.size("shard")

    @property
    def data_rank(self) -> int:
        """Which of these parts this rank reads, with all others of its tensor and pipeline groups."""
        return self.place("data") * self.size("shard") + self.place("shard")

    @property
    def owns_loss(self) -> bool:
        """Whether this rank's losses count: of a tensor group the first does, of a pipeline the last stage."""
        return self.place("tensor") == 0 and self.place("pipeline") == self.size("pipeline") - 1

    @property
    def rng_stream(self) -> int:
        """Which randomness (dropout) a rank draws: that of its part of the batch and its stage. A tensor group shares
        one, since what its ranks hold in common must stay the same."""
        return self.data_rank * self.size("pipeline") + self.place("pipeline")

    def __str__(self) -> str:
        return " × ".join(f"{name} {self.size(name)}" for name in ("data", "shard", "tensor", "pipeline"))
