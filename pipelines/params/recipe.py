"""A recipe: all sections."""

import os

from pydantic import Field, model_validator

from pipelines.params.data import Curate, Ingest, Lake, Shard, Stream
from pipelines.params.domains import check_names
from pipelines.params.release import Evaluate, Package, Promote
from pipelines.params.running import Cache, Compute
from pipelines.params.schema.section import NAME, Section
from pipelines.params.train.training import Model, Train

#: With these in the environment, a cluster says how many ranks there are, whatever the parameters say.
COUNTED_ELSEWHERE = ("PET_NNODES", "PET_NPROC_PER_NODE", "WORLD_SIZE")


class Params(Section):
    """A recipe. Each section that dvc.yaml lists must stand in the file, as DVC looks for it: `lake: {}` at least."""

    recipe: str = Field(pattern=NAME)
    """Name of the recipe: of its MLflow experiment, its registered model and its folder in a shared lake."""
    seed: int = Field(ge=0, lt=2**63)
    """Seed of all randomness: splits, sample orders, initial weights and dropout."""
    lake: Lake
    ingest: Ingest
    curate: Curate
    shard: Shard
    stream: Stream
    model: Model
    train: Train
    evaluate: Evaluate
    package: Package
    promote: Promote
    compute: Compute = Compute()
    cache: Cache = Cache()

    @model_validator(mode="after")
    def _mixes_its_domains(self) -> "Params":
        """Said before hours of ingest, not when training begins."""
        if self.stream.mixture is not None:
            check_names(self.stream.mixture, [name for name, _ in self.ingest.by_domain if name is not None])
        return self

    @model_validator(mode="after")
    def _reads_its_packs(self) -> "Params":
        """The same."""
        packs, seq_len = self.shard.pack_len, self.stream.seq_len
        if packs is None:
            return self
        for section in ("stream", "evaluate"):
            if getattr(self, section).samples == "documents":
                raise ValueError(
                    f"shard.pack_len = {packs} lays documents out in sequences, but {section}.samples = documents "
                    f"takes each by itself: set shard.pack_len to null, or {section}.samples to sequences"
                )
        if packs != seq_len:
            raise ValueError(
                f"shard.pack_len = {packs}, but stream.seq_len = {seq_len}: packs are the sequences that the model "
                f"sees, so set both to one number, or shard.pack_len to null"
            )
        return self

    @model_validator(mode="after")
    def _lays_out_its_ranks(self) -> "Params":
        """Those of all machines; of an elastic job, some number of them that may train."""
        if any(name in os.environ for name in COUNTED_ELSEWHERE):
            return self
        ranks, compute = self.train.ranks, self.compute
        wanted = ranks * compute.nodes
        low, high = compute.min_ranks or wanted, compute.max_ranks or wanted
        name = "train.ranks" if compute.nodes == 1 and not compute.elastic else "train.ranks × compute.nodes"
        failed: ValueError | None = None
        for world in [one for one in range(ranks, high + 1, ranks) if one >= low] or [wanted]:
            try:
                self.train.parallel.data_for(world, name)
                self._gives_each_a_sample(world)
                return self
            except ValueError as error:
                failed = error
        raise ValueError(f"train.parallel: {failed}")

    def _gives_each_a_sample(self, world: int) -> None:
        """Said before so many ranks have started. Raises ValueError."""
        layout, first = self.train.parallel, self.stream.first_batch
        together = layout.tensor * layout.pipeline  # ranks that see the same samples
        if world // together > first:
            setting = "batch_ramp" if self.stream.batch_ramp else "batch_size"
            raise ValueError(
                f"batches of {first} samples (stream.{setting}) for {world // together} × {together} ranks, so that "
                f"some would never get one: lower train.ranks to {first * together} in all, or raise the batch"
            )
