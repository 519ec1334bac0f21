"""From sources to batches: lake, ingest, curate, shard, stream."""

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from pipelines.params.batch_ramp import Ramp, check_ramp
from pipelines.params.domains import Mixture, Sources, shown
from pipelines.params.schema.registry import Named, Registry
from pipelines.params.schema.section import Section
from storage.redact import mask

#: What was meant as a URL and is none: s3//bucket, s3:/bucket.
_HALF_A_URL = re.compile(r"(s3a?|gs|gcs|az|abfss?|https?|memory)(?!://)[:/]+")


class Lake(Section):
    """Where the zones lie."""

    url: str | None = None
    """Root URL of the lake, where the zones keep their objects: s3://bucket/prefix, gs://…, or a folder. None: in data/
    of the recipe, beside the manifests."""
    zones: dict[Literal["raw", "curated", "shards"], str] = {}
    """URLs of zones that lie elsewhere than lake.url (hybrid and multi-cloud), one zone per line, e.g. shards:
    s3://bucket/shards."""

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
    """Where the raw data comes from: fsspec URLs, globs or folders (data/**/*.csv, s3://bucket/prefix/*.jsonl,
    https://…, {python_stdlib}/**/*.py), or a source of your own: {name: package.module:Class, args}
    (docs/your-own-data.md). One list, or a list per domain, to be weighted by stream.mixture: {code: [src/**/*.py],
    prose: [books/*.txt]}."""
    exclude: list[str] = []
    """Globs of source files to leave out, e.g. **/test/**. They match a file's path below the fixed part of its
    source's glob."""
    links: Literal["inside", "anywhere"] = "inside"
    """Where symbolic links in a source's folder may lead. inside: within that folder; a link that leads out of it is
    refused. anywhere: to any file of this machine."""

    @property
    def listed(self) -> list[str]:
        """For people: without passwords."""
        named = [(f"{domain}: " if domain else "", part) for domain, part in self.by_domain]
        return [name + shown(source) for name, part in named for source in part]

    @property
    def each(self) -> list[tuple[str | None, str | Named]]:
        """(domain, source) of every source."""
        return [(domain, source) for domain, part in self.by_domain for source in part]

    @property
    def by_domain(self) -> list[tuple[str | None, list[str | Named]]]:
        """(domain, its sources); (None, all of them) where no domains are named."""
        return [*self.sources.items()] if isinstance(self.sources, dict) else [(None, self.sources)]


class Split(Section):
    """Shares of the samples; they must add up to 1."""

    train: float = Field(0.8, ge=0, le=1)
    """Share of the samples that the model is trained on, from 0 to 1; train, val and test add up to 1."""
    val: float = Field(0.1, ge=0, le=1)
    """Share of the samples for the evaluations during training, on which early stopping and the best checkpoints
    depend."""
    test: float = Field(0.1, ge=0, le=1)
    """Share of the samples held out from training, on which evaluate measures the model."""

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
    """Format of the raw files. auto: chosen by their suffixes (source code and prose are text). Or an import path
    package.module:Class of a reader of your own, with its parameters: {name, args} (docs/your-own-data.md)."""
    text_field: str = "text"
    """Field of a JSONL line that holds the text of the document."""
    label: str | None = None
    """Column of a table that the model predicts; required for CSV and Parquet."""
    features: list[str] | None = None
    """Numeric columns of a table that the model gets as inputs. None: all columns but the label."""
    target: Literal["class", "value"] = "class"
    """What the label is. class: a category to classify. value: a number to regress."""
    null_values: list[str] = ["NA", "N/A", "n/a", "#N/A", "NaN", "nan", "NULL", "null", "None", "<NA>"]
    """Label texts that mean "no label": rows with such a label are set aside in quarantine.jsonl, as rows with an empty
    label always are."""
    split: Split = Split()
    """Shares of train, val and test. A sample's split depends only on its input (text, image or features) and the seed,
    so equal inputs are in the same split."""
    deduplicate: bool = True
    """Keep only the first of several samples whose sources are equal (whole rows, JSONL lines or files), over the whole
    dataset."""
    files_per_object: int = Field(64, ge=1, le=100_000)
    """Raw files that go into one curated object, on average."""
    max_pixels: int = Field(64_000_000, ge=1, le=178_956_970)
    """Largest number of pixels of an image. A larger image is set aside in quarantine.jsonl before it is decoded: a
    small file may hold a huge image."""
    max_quarantined: int = Field(100, ge=0)
    """Largest number of unusable files or rows that are set aside in quarantine.jsonl; with more, curate fails."""
    max_unpacked_mb: float = Field(512, gt=0)
    """MiB of memory that the rows of a Parquet file may take. A file that would take more, and more than 50 times its
    own size, is set aside in quarantine.jsonl before it is read."""


class Shard(Section):
    """curated → shards."""

    target_mb: float = Field(64.0, gt=0, le=4096)
    """Size of a shard in MiB, approximately."""
    compression: Literal["auto", "none", "zstd"] = "auto"
    """Compression of shards in a remote zone (local shards are never compressed). auto: zstd for each shard of which it
    saves 10 % or more. none: no shard. zstd: every shard."""
    shuffle_objects: int = Field(64, ge=1, le=10_000)
    """Curated objects whose samples are shuffled together into one group of shards, on average. Takes memory for the
    size of all of them."""
    images: Literal["pixels", "encoded"] = "pixels"
    """What shards hold of images. pixels: decoded to uint8. encoded: the JPEG or PNG files, decoded during training."""
    image_size: list[Annotated[int, Field(ge=1, le=65_536)]] | None = Field(None, min_length=2, max_length=2)
    """[height, width] in pixels to which images are resized. None: not resized; all images must have one size."""
    pack_len: int | None = Field(None, ge=2)
    """Tokens in a pack of whole documents; a document that fits into a pack is never cut. stream.seq_len must be the
    same number. None: documents are concatenated, and cut wherever a sequence of stream.seq_len ends
    (docs/streaming.md)."""
    image_mode: Literal["L", "RGB"] = "RGB"
    """Colours of images. L: greyscale, one channel. RGB: colour, three channels."""


class Stream(Section):
    """shards → batches."""

    batch_size: int = Field(64, ge=1)
    """Samples in the global batch, over all ranks together."""
    batch_ramp: Ramp = None
    """A global batch that grows, as step: samples from that step on, e.g. {0: 16, 500: 32, 2000: 64}. Begins at step 0
    and ends at batch_size; each size is a multiple of the first. None: batch_size at all steps."""
    seq_len: int = Field(256, ge=2)
    """Sequence length: tokens that the model sees at once (token datasets)."""
    samples: Literal["windows", "documents"] = "windows"
    """What a sample of a token dataset is. windows: a sequence of seq_len tokens, cut from all documents end to end.
    documents: a whole document, truncated to seq_len."""
    bucket_batches: int = Field(64, ge=1, le=4096)
    """Consecutive batches among which samples of varying length (samples: documents) are sorted by length, so that
    batches need little padding. 1: not sorted."""
    pad_multiple: int = Field(16, ge=1, le=65_536)
    """Batches of whole documents are padded to the length of their longest, rounded up to a multiple of this number of
    tokens. A larger number makes fewer different shapes."""
    documents: bool = False
    """Document mask: keep apart documents that share a sequence, in attention, positions and loss (token datasets;
    docs/streaming.md)."""
    lanes: int | None = Field(None, ge=1)
    """Number of lanes: disjoint stripes of an epoch that are read side by side. Must divide batch_size. None: chosen
    from the size of the dataset, at most 16."""
    window: int = Field(65_536, ge=1)
    """Samples in a shuffle window: the stretch of a lane within which samples are shuffled."""
    first_window: int | None = Field(None, ge=1)
    """Samples in a lane's first shuffle window of an epoch; each further one doubles, up to stream.window. None: about
    the samples of a shard, so that the first batch needs few shards."""
    keep_lanes: bool = False
    """Keep each shard in the same lane in all epochs, so that the node caches of many nodes stay useful. false: shards
    change lanes from epoch to epoch."""
    mixture: Mixture = None
    """Weight of each domain of ingest.sources in every batch: a number, or numbers by step, linear between these steps:
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
