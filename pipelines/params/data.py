"""From sources to batches: lake, ingest, curate, shard, stream."""

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from pipelines.params.batch_ramp import Ramp, check_ramp
from pipelines.params.domains import Mixture, Sources
from pipelines.params.schema.registry import Named, Registry
from pipelines.params.schema.section import Section
from storage.redact import mask

#: What was meant as a URL and is none: s3//bucket, s3:/bucket.
_HALF_A_URL = re.compile(r"(s3a?|gs|gcs|az|abfss?|https?|memory)(?!://)[:/]+")


class Lake(Section):
    """Where the zones lie."""

    url: str | None = None
    """Root URL of the lake (s3://bucket/prefix, gs://…, a folder). None: beside the manifests, in data/."""
    zones: dict[Literal["raw", "curated", "shards"], str] = {}
    """A URL of its own for a zone (hybrid and multi-cloud), a line each: shards: s3://…"""

    @model_validator(mode="after")
    def _are_urls_or_folders(self) -> "Lake":
        for url in [self.url, *self.zones.values()]:
            if url and (scheme := _HALF_A_URL.match(url)):
                raise ValueError(
                    f"{mask(url)} would be a folder of this machine. A URL begins with {scheme[1]}://; the folder is "
                    f"named by ./{mask(url)}"
                )
        return self


class Ingest(Section):
    """sources → raw."""

    sources: Sources
    """fsspec URLs, globs or folders: data/**/*.csv, s3://bucket/prefix/*.jsonl, https://…, {python_stdlib}/**/*.py. Or
    such lists by the name of a domain, to be mixed by stream.mixture: {code: [src/**/*.py], prose: [books/*.txt]}."""
    exclude: list[str] = []
    """Globs on a source's name (its path below the glob's fixed part) to leave out: **/test/**."""
    links: Literal["inside", "anywhere"] = "inside"
    """Where links in a source's folder may lead. inside: within the folder; one that leads out of it is refused.
    anywhere: to whatever this machine's files are."""

    @property
    def listed(self) -> list[str]:
        """For people: without passwords."""
        named = [(f"{domain}: " if domain else "", part) for domain, part in self.by_domain]
        return [name + mask(source) for name, part in named for source in part]

    @property
    def by_domain(self) -> list[tuple[str | None, list[str]]]:
        """(domain, its sources); (None, all of them) where no domains are named."""
        return [*self.sources.items()] if isinstance(self.sources, dict) else [(None, self.sources)]


class Split(Section):
    """Shares of the samples; they must add up to 1."""

    train: float = Field(0.8, ge=0, le=1)
    """What the model learns from."""
    val: float = Field(0.1, ge=0, le=1)
    """What early stopping looks at."""
    test: float = Field(0.1, ge=0, le=1)
    """What the metrics are measured on."""

    @model_validator(mode="after")
    def _sums_to_one(self) -> "Split":
        if abs(self.train + self.val + self.test - 1) > 1e-9:
            raise ValueError(
                f"train + val + test = {self.train} + {self.val} + {self.test} = "
                f"{self.train + self.val + self.test:g}, but must be 1"
            )
        return self


READERS = Registry("curate.reader", "pipelines.ingest.readers.members", ("auto",))


class Curate(Section):
    """raw → curated: typed, validated, deduplicated, split."""

    reader: Annotated[str | Named, AfterValidator(READERS.check), READERS] = "auto"
    """What the raw files are. auto: by their suffix (text for source code and prose). Or an import path
    package.module:Class of a reader of your own, with its parameters: {name, args} (docs/your-own-data.md)."""
    text_field: str = "text"
    """The field of a JSONL line that holds a document."""
    label: str | None = None
    """The column of a table to predict: needed for csv and parquet."""
    features: list[str] | None = None
    """The numeric columns of a table that the model sees. None: all but the label."""
    target: Literal["class", "value"] = "class"
    """Whether the label is a class or a number to regress."""
    null_values: list[str] = ["NA", "N/A", "n/a", "#N/A", "NaN", "nan", "NULL", "null", "None", "<NA>"]
    """Labels that stand for no label; their rows are set aside. An empty one always does."""
    split: Split = Split()
    """Shares of train, val and test; a sample's split depends on its input (text, image or features) and the seed
    alone, so that equal ones share it."""
    deduplicate: bool = True
    """Keep one of several samples of which the files hold the same (whole rows, lines, files), in the whole dataset."""
    files_per_object: int = Field(64, ge=1, le=100_000)
    """How many raw files go into one curated object, on average."""
    max_pixels: int = Field(64_000_000, ge=1, le=178_956_970)
    """Pixels of an image; one with more is set aside before it is decoded: a small file may hold a huge one."""
    max_quarantined: int = Field(100, ge=0)
    """Up to this many undecodable files or rows are set aside in quarantine.jsonl; more are fatal."""
    max_unpacked_mb: float = Field(512, gt=0)
    """MiB of memory that the rows of a Parquet file may take, or 50 times its size where that is more; one that would
    take more is set aside before it is read."""


class Shard(Section):
    """curated → shards."""

    target_mb: float = Field(64.0, gt=0, le=4096)
    """MiB of a shard."""
    compression: Literal["auto", "none", "zstd"] = "auto"
    """At rest, where the zone is remote. auto: zstd for each shard of which it saves 10 % or more."""
    shuffle_objects: int = Field(64, ge=1, le=10_000)
    """How many curated objects are mixed into one group of shards, on average (memory: their size)."""
    images: Literal["pixels", "encoded"] = "pixels"
    """What shards hold of images. pixels: decoded, uint8. encoded: the JPEG or PNG files, decoded when streaming."""
    image_size: list[Annotated[int, Field(ge=1, le=65_536)]] | None = Field(None, min_length=2, max_length=2)
    """[height, width] in pixels to which images are resized. None: all images must have one size."""
    pack_len: int | None = Field(None, ge=2)
    """Tokens of a pack of whole documents, so that none is cut that fits in; stream.seq_len must be the same. None:
    documents lie end to end, and any seq_len cuts them where it falls (docs/streaming.md)."""
    image_mode: Literal["L", "RGB"] = "RGB"
    """Grey scale (one channel) or colour (three)."""


class Stream(Section):
    """shards → batches."""

    batch_size: int = Field(64, ge=1)
    """Samples of the global batch, over all ranks."""
    batch_ramp: Ramp = None
    """A global batch that grows. Step: samples from there on, beginning at step 0 and ending at batch_size, each a
    multiple of the first: {0: 16, 500: 32, 2000: 64}. None: batch_size at all steps."""
    seq_len: int = Field(256, ge=2)
    """Tokens that the model sees at once (token datasets)."""
    samples: Literal["windows", "documents"] = "windows"
    """Of text: windows of seq_len tokens out of all documents end to end, or whole documents, each cut to seq_len."""
    bucket_batches: int = Field(64, ge=1, le=4096)
    """Batches of documents whose samples are sorted into them by length, so that little is padding; 1: unsorted."""
    pad_multiple: int = Field(16, ge=1, le=65_536)
    """A batch of documents is padded to its longest, rounded up to a multiple of so many tokens (fewer shapes)."""
    documents: bool = False
    """Keep documents that share a window apart: attention, positions and loss (token datasets; docs/streaming.md)."""
    lanes: int | None = Field(None, ge=1)
    """Disjoint stripes of an epoch that are read side by side; must divide batch_size. None: chosen."""
    window: int = Field(65_536, ge=1)
    """Samples of a lane within which they are shuffled."""
    first_window: int | None = Field(None, ge=1)
    """Samples of an epoch's first windows, which then double up to window. None: about those of a shard."""
    keep_lanes: bool = False
    """Keep each shard on its lane in all epochs, so that the caches of many nodes stay warm."""
    mixture: Mixture = None
    """Weights of the domains of ingest.sources in each batch, or step: weight, linear between these steps:
    {code: 0.7, prose: {0: 0.1, 1000: 0.3}}. 0 leaves a domain out. None: all samples alike."""

    @property
    def first_batch(self) -> int:
        """Samples of the smallest global batch."""
        return min(self.batch_ramp.values()) if self.batch_ramp else self.batch_size

    @model_validator(mode="after")
    def _ramps_to_its_batch(self) -> "Stream":
        if self.batch_ramp is None:
            return self
        check_ramp(self.batch_ramp, self.batch_size)
        if self.samples == "documents" and self.bucket_batches > 1:
            raise ValueError(
                f"bucket_batches = {self.bucket_batches} sorts batches of one size, but batch_ramp makes them grow: "
                "set stream.bucket_batches to 1, or leave stream.batch_ramp out"
            )
        if self.lanes is not None and self.first_batch % self.lanes:
            raise ValueError(
                f"lanes = {self.lanes} does not divide {self.first_batch}, with which batch_ramp begins: leave "
                "stream.lanes out, or set it to a divisor"
            )
        return self

    @model_validator(mode="after")
    def _documents_share_windows(self) -> "Stream":
        if self.documents and self.samples == "documents":
            raise ValueError(
                "documents = true keeps documents of a window apart, but with samples = documents each is a sample of "
                "its own: leave stream.documents out"
            )
        return self
