"""What language models and compressors are charged for held-out documents, and what that comes to for each byte."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import exp, log
from typing import Any

from pipelines.evaluation.baselines import COMPRESSED_LIMIT, Counts, bigram_bits, compressed_bits, xz_9e, zlib_9
from pipelines.progress import track

FIRST_TOKEN_BITS = 8.0


@dataclass
class Charges:
    """Of one model on a split, or on a domain of it.

    `pairs` [vocabulary, vocabulary]: the tokens charged, each with the one before it; `nats` that the model spent on
    them; `firsts`: tokens that nothing predicts; of the documents their number, their `size` in bytes without
    separators, and the bytes that were `cut` off before.
    """

    pairs: Counts
    nats: float = 0.0
    firsts: int = 0
    documents: int = 0
    size: int = 0
    cut: int = 0

    def __add__(self, other: "Charges") -> "Charges":
        return Charges(*(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__))

    def take(self, documents: Sequence[bytes], cut: int) -> None:
        """Count documents, of which `cut` bytes are left out."""
        self.documents += len(documents)
        self.size += sum(map(len, documents))
        self.cut += cut

    def metrics(self, train: Counts) -> dict[str, Any]:
        """The model's figures, and the bits per byte of the bigram model of `train` on the same tokens."""
        size, alone = max(1, self.size), FIRST_TOKEN_BITS * self.firsts
        loss = self.nats / max(1, int(self.pairs.sum()))
        return {
            "bits_per_byte": (self.nats / log(2) + alone) / size,
            "loss": loss,
            "perplexity": exp(min(loss, 700.0)),
            "documents": self.documents,
            "bytes": size,
            "baseline": {"bigram": {"bits_per_byte": (bigram_bits(train, self.pairs) + alone) / size}},
        }


@dataclass
class Compressed:
    """What zlib and xz make of documents; past a limit of the first of them, as `bytes` then says."""

    documents: list[bytes] = field(default_factory=list)
    size: int = 0

    def take(self, documents: Sequence[bytes]) -> None:
        """Keep those for which there is room."""
        for document in documents:
            if document and self.size + len(document) <= COMPRESSED_LIMIT:
                self.documents.append(document)
                self.size += len(document)

    def metrics(self) -> dict[str, dict[str, float]]:
        """By compressor; none where there was nothing to compress."""
        if not self.documents:
            return {}
        compressors = (("zlib", zlib_9), ("xz", xz_9e))
        return {
            name: compressed_bits(compress, self.documents) | {"bytes": self.size}
            for name, compress in track(compressors, "compress", len(compressors), "compressors")
        }
