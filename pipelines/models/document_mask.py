"""Documents that share a sequence of tokens: what a model is told of them, and which targets count.

With `stream.document_mask` a model answers for each document as if it stood alone in the sequence: its attention stays
inside the document, whose positions begin at 0. The contract of a model, ours or anybody's: its `forward` takes at
least one of these by keyword, and gets those that it names:

- `documents`, int32 [B, T]: the number of each token's document within its sequence, from 0, rising from left to right.
- `positions`, int64 [B, T]: the token's place in its document, from 0; in one that began before the sequence, its place
  in the sequence. So they are below seq_len, and a document begins wherever they are 0.

A target counts if it is of the same document as the token that it is predicted from. The separator counts always:
it stands before each document, so to the document before it is the mark of its end, the same whatever comes next, and a
model that never learnt it would not know when to stop. So in texts of which each begins with the separator every
target counts, with documents kept apart or not. What fills up a pack (separators after a separator) never counts.
"""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from storage.errors import ParamsError

NAMES = ("documents", "positions")
Arrays = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class DocumentMask:
    """How a dataset's sequences are read. apart: documents are kept apart; separator: the token before each document,
    or None; packed: sequences are packs filled up with separators; takes: what the model is given."""

    apart: bool
    separator: int | None
    packed: bool = False
    takes: tuple[str, ...] = NAMES

    def given_to(self, model: nn.Module) -> "DocumentMask":
        """The same for `model`. Raises ParamsError when its forward takes neither of the names."""
        plain = getattr(model, "_orig_mod", model)  # what torch.compile wraps in a forward that takes anything
        parameters = inspect.signature(plain.forward).parameters.values()
        anything = any(p.kind is p.VAR_KEYWORD for p in parameters)
        named = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
        takes = tuple(name for name in NAMES if anything or name in named)
        if self.apart and not takes:
            raise ParamsError(
                f"stream.document_mask=true, but {type(plain).__name__}.forward takes neither documents nor "
                "positions, so its attention would go on from one document to the next. Let it take one "
                "of them (docs/streaming.md), or set stream.document_mask to false."
            )
        return replace(self, takes=takes)

    def beside(self, arrays: Arrays, device: torch.device) -> dict[str, Tensor]:
        """What the model is given beside the tokens, by name, [n, T] each: of a batch with `documents` and `positions`,
        [n, T+1] each, as the stream gives them."""
        if not self.apart:
            return {}
        documents, positions = (torch.from_numpy(arrays[name][:, :-1]).to(device, non_blocking=True) for name in NAMES)
        before = torch.where(documents == 0, positions[:, :1], 0)  # what came before the sequence of its first document
        made = {"documents": documents, "positions": (positions - before).long()}
        return {name: made[name] for name in self.takes}

    def counts(self, arrays: Arrays) -> npt.NDArray[np.bool_]:
        """Which targets of a token batch [n, T+1] count, [n, T]."""
        counts = ~self.fills(arrays)
        if self.apart:
            documents = arrays["documents"]
            counts &= (documents[:, 1:] == documents[:, :-1]) | (arrays["tokens"][:, 1:] == self._separator)
        return counts

    def fills(self, arrays: Arrays) -> npt.NDArray[np.bool_]:
        """Which targets only fill up a pack, [n, T]; of the fill of a document, the first separator is its end."""
        tokens = arrays["tokens"]
        if not self.packed:
            return np.zeros((len(tokens), tokens.shape[1] - 1), np.bool_)
        filled: npt.NDArray[np.bool_] = (tokens[:, :-1] == self._separator) & (tokens[:, 1:] == self._separator)
        return filled

    @property
    def _separator(self) -> int:
        return -1 if self.separator is None else self.separator  # no token


def attention_mask(documents: Tensor) -> Tensor:
    """Which keys a query sees, bool [B, 1, T, T]: of `documents` [B, T], its own up to itself."""
    length = documents.shape[1]
    same = documents[:, None, :, None] == documents[:, None, None, :]
    return same & torch.ones(length, length, dtype=torch.bool, device=documents.device).tril()
