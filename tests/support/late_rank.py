"""A model of text whose last rank comes late in each training step: the others wait for what it sends."""

import os
from threading import Event

from torch import Tensor, nn

LATE = 0.2  # seconds


class Model(nn.Module):
    def __init__(self, *, vocab_size: int, dim: int = 8) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, dim)
        self.head = nn.Linear(dim, vocab_size)
        self.late = LATE if int(os.environ.get("RANK", "0")) > 0 else 0.0

    def forward(self, x: Tensor) -> Tensor:
        answers: Tensor = self.head(self.embedding(x)).clone()  # FSDP2 warns of a view
        if self.training:
            Event().wait(self.late)
        return answers
