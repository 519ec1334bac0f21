"""What language models and compressors are charged for held-out documents, and what that comes to for each byte, or for
each token where nobody knows the bytes."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import exp, log
from typing import Any

import numpy as np

from pipelines.console.progress import track
from pipelines.evaluation.baselines import (
    COMPRESSED_LIMIT,
    Counts,
    compressed_bits,
    table_bits,
    table_name,
    xz_9e,
    zlib_9,
)
from pipelines.evaluation.data import Array

FIRST_TOKEN_BITS = 8.0


@dataclass
class TokenCost:
    """Of one model on a split, or on a domain of it.

    `tokens`: those charged, as `baselines.token_counts` has them; `nats` that the model spent on them; `firsts`: tokens
    that nothing predicts; of the documents their number, their `size` in tokens without separators (which are bytes
    where the data's tokens are), and those that were `cut` off before.
    """

    tokens: Counts
    nats: float = 0.0
    firsts: int = 0
    documents: int = 0
    size: int = 0
    cut: int = 0

    def __add__(self, other: "TokenCost") -> "TokenCost":
        return TokenCost(*(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__))

    def take(self, documents: Sequence[Array], cut: int) -> None:
        """Count documents, of which `cut` tokens are left out."""
        self.documents += len(documents)
        self.size += sum(map(len, documents))
        self.cut += cut

    def by_byte(self, train: Counts) -> dict[str, Any]:
        """The model's figures, and the bits per byte of the model that the counts of `train` make, on the same
        tokens. Only where these are bytes."""
        size, alone = max(1, self.size), FIRST_TOKEN_BITS * self.firsts
        table = {"bits_per_byte": (table_bits(train, self.tokens) + alone) / size}
        figures = {"bits_per_byte": (self.nats / log(2) + alone) / size} | self._by_token()
        return figures | {"bytes": size, "baseline": {table_name(train): table}}

    def by_token(self, train: Counts) -> dict[str, Any]:
        """The model's figures, and the loss of the model that the counts of `train` make, on the same tokens."""
        table = {"loss": table_bits(train, self.tokens) * log(2) / self._charged}
        return self._by_token() | {"tokens": self.size, "baseline": {table_name(train): table}}

    def _by_token(self) -> dict[str, Any]:
        loss = self.nats / self._charged
        return {"loss": loss, "perplexity": exp(min(loss, 700.0)), "documents": self.documents}

    @property
    def _charged(self) -> int:
        return max(1, int(self.tokens.sum()))


@dataclass
class Compressed:
    """What zlib and xz make of documents; past a limit of the first of them, as `bytes` then says."""

    documents: list[bytes] = field(default_factory=list)
    size: int = 0

    def take(self, documents: Sequence[Array]) -> None:
        """Keep those for which there is room. Their tokens must be bytes."""
        for document in documents:
            if len(document) and self.size + len(document) <= COMPRESSED_LIMIT:
                self.documents.append(document.astype(np.uint8).tobytes())
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
