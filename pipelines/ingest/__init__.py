"""The data side: sources → raw → curated → shards, each stage as plan / work / commit."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipelines.ingest.stage import DataStage
    from pipelines.workspace import Workspace

DATA_STAGES = ("ingest", "curate", "shard")


def data_stage(name: str, ws: "Workspace") -> "DataStage":
    """The data stage `name` of a recipe. Each imports only what it needs."""
    if name == "ingest":
        from pipelines.ingest.fetch import IngestStage

        return IngestStage.of(ws)
    if name == "curate":
        from pipelines.ingest.curate import CurateStage

        return CurateStage.of(ws)
    from pipelines.ingest.shard import ShardStage

    assert name == "shard", name
    return ShardStage.of(ws)
