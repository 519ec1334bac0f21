"""What each copy of a model has for itself, through a checkpoint to any number of copies."""

from pathlib import Path

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from pipelines.params import Checkpoints as Rules
from pipelines.training.checkpoints import Extra, Saver
from pipelines.training.checkpoints.chunks import Chunk, row, rows_for, taken
from pipelines.training.process.process_group import Ranks
from storage.lake import Zone

COUNTS = st.integers(1, 9)


def read_back(rows: Tensor, copies: int) -> Tensor:
    """What each of `copies` has of `rows`."""
    read = []
    for copy in range(copies):
        chunk = rows_for(tuple(rows.shape), rows.dtype, copy, copies)
        first = chunk.offsets[0]
        chunk.data.copy_(rows[first : first + chunk.sizes[0]])
        read.append(taken(chunk, copies))
    return torch.stack(read)


@given(COUNTS, COUNTS)
def test_the_mean_over_the_copies_stays(before: int, after: int) -> None:
    rows = torch.randn(before, 2, 3, dtype=torch.float64)
    torch.testing.assert_close(read_back(rows, after).mean(0), rows.mean(0))


@given(COUNTS)
def test_on_the_same_number_each_has_its_own(copies: int) -> None:
    rows = torch.randn(copies, 2, 3)
    assert read_back(rows, copies).equal(rows)


def test_a_checkpoint_gives_a_rank_its_rows_and_all_of_what_has_a_shape_of_its_own(tmp_path: Path) -> None:
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    saver = Saver(Zone(tmp_path), Rules(), Ranks(), None, model, optimizer)
    errors, factor = torch.randn(4, 2, 3), torch.randn(3, 1)
    alone = row(errors[3], 3, 4)
    assert (alone.offsets, alone.shape) == ((3, 0, 0), (4, 2, 3))
    saver.save(1, Extra({"error/weight": Chunk.of(errors), "factor/weight": Chunk.of(factor)}), wait=True)
    found = saver.restore(None, (1, 2))
    saver.close()
    assert found is not None
    assert found.chunks["error/weight"].data.equal(errors[2:])
    assert taken(found.chunks["error/weight"], 2).equal(errors[2:].sum(0) / 2)
    assert found.chunks["factor/weight"].data.equal(factor)
