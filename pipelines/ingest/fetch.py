"""ingest: sources → raw. An item is a source file; its object is the file as it is."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from pipelines.ingest.domains import mark, salt
from pipelines.ingest.sources.gather import list_sources, source_of
from pipelines.ingest.stage import Item, Result
from pipelines.params import Ingest
from pipelines.runtime.own_code import digests
from pipelines.workspace import Workspace
from storage.digest import digest_json
from storage.errors import ShardlineError, SourceError
from storage.lake import Zone
from storage.manifest import Manifest
from storage.objects.compression import is_compressed
from storage.redact import mask

VERSION = 1  # of what `work` makes; raise it when the same input gives another object


@dataclass(frozen=True)
class IngestStage:
    """Copies what changed, byte for byte, and knows each file by name and fingerprint."""

    params: Ingest
    root: Path
    state: Path
    zone: Zone
    name: str = "ingest"
    max_quarantined: int = 0
    code: tuple[str, ...] = ()
    """Digests of the files of sources of the user's own."""

    @classmethod
    def of(cls, ws: Workspace) -> "IngestStage":
        own = any(not isinstance(source, str) for _, source in ws.params.ingest.each)
        code = tuple(digests(ws, "ingest")) if own else ()
        return cls(ws.params.ingest, ws.root, ws.state, ws.zone("raw"), code=code)

    def plan(self) -> list[Item]:
        """One item a file. Lists the sources; reads no content beyond the fingerprints."""
        return [
            Item(
                key=_key(file.name, file.fingerprint, file.domain, () if file.source is None else self.code),
                label=file.name,
                bytes=file.bytes,
                payload={
                    "name": file.name, "url": file.url, "digest": file.digest, **mark(file.domain),
                    **({} if file.source is None else {"source": file.source}),
                },
            )
            for file in list_sources(self.params, self.root, self.state)
        ]  # fmt: skip

    def work(self, item: Item) -> Result:
        """Copy one file into the zone in bounded memory."""
        name, url, domain = item.payload["name"], item.payload["url"], item.payload.get("domain")
        position = item.payload.get("source")
        source = source_of(url if position is None else self.params.each[position][1], self.root)
        try:
            suffix = "" if _odd(name) else PurePosixPath(name).suffix.lower()
            stored = self.zone.publish_stream(lambda: source.open(url), suffix)
        except ShardlineError:
            raise
        except Exception as error:
            raise SourceError(
                mask(f"{url}: cannot be read: {type(error).__name__}: {error}. ")
                + "What was fetched is kept: mend the source, or leave the file out with ingest.exclude, and run the "
                "same command again."
            ) from error
        record: dict[str, Any] = {
            "path": stored.path,
            "digest": stored.digest,
            "bytes": stored.bytes,
            "rows": 1,
        }
        planned = item.payload["digest"]
        if planned is not None and planned != stored.digest:  # changed since the plan: known by what it is now
            record["key"] = _key(name, stored.digest, domain)
        return Result(item.key, [{**record, "name": name, **mark(domain)}])

    def build(self, items: Sequence[Item], results: Sequence[Result]) -> tuple[Manifest, list[dict[str, Any]]]:
        """The raw manifest, a row a file, by name."""
        records = [{"key": result.key, **record} for result in results for record in result.records]
        return Manifest.build("raw", records, kind="files", counts={"files": len(records)}), []


def _key(name: str, fingerprint: str, domain: str | None, code: Sequence[str] = ()) -> str:
    """The key of a file with this content, which `code` of the user's own may make."""
    return digest_json(["ingest", VERSION, name, fingerprint, *salt(domain), *_odd(name), *code])


def _odd(name: str) -> list[str]:
    """What a key says of a file whose object must not have its suffix: by `.zst` the lake knows objects that it has
    compressed itself."""
    return ["no suffix"] if is_compressed(name.lower()) else []


def changed_sources(ws: Workspace) -> list[str]:
    """Names of the files that came, went or changed since the raw zone was written; empty where it is up to date.

    DVC can't watch globs and object stores, so `shardline repro` asks this before it runs `dvc repro`.
    """
    zone = ws.zone("raw")
    if not zone.complete:
        return []
    now = {item.key: item.label for item in IngestStage.of(ws).plan()}
    table = zone.manifest().table
    then = dict(zip(table["key"].to_pylist(), table["name"].to_pylist(), strict=True))
    return sorted({name for key, name in (now | then).items() if (key in now) != (key in then)})
