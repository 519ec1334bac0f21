"""A stream as torch's DataLoader: what is left of an epoch, in this process or in workers, each batch once."""

import gc
import os
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from support import shared_memory
from support.flat_streams import flat_stream
from support.numbered_samples import publish
from torch.utils.data import DataLoader

from pipelines.streaming import Batch, Stream
from pipelines.training.data.stream_loader import StreamLoader
from storage.errors import FormatError, ParamsError
from storage.lake import Zone

STEPS, EPOCHS = 5, 3

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
METHODS = pytest.mark.parametrize("method", [None, "fork"])
WITH_SPAWN = pytest.mark.parametrize("method", [None, "fork", pytest.param("spawn", marks=pytest.mark.long)])


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Stream]]:
    zone, made = Zone(tmp_path), []
    manifest = publish(zone, 3, rows=6, width=2)

    def stream(**settings: Any) -> Stream:
        made.append(flat_stream(zone, manifest, **{"split": "train", "batch_size": 4, "seed": 3, **settings}))
        return made[-1]

    yield stream
    for one in made:
        one.close()


@pytest.fixture
def expected(make: Callable[..., Stream]) -> list[list[str]]:
    """The names of the samples of each batch of the first epochs."""
    return [batch.ids() for batch in make(epochs=EPOCHS)]


@pytest.fixture(autouse=True)
def nothing_is_left_in_shared_memory() -> Iterator[None]:
    with shared_memory.none_is_left():
        yield
        gc.collect()  # a traceback holds the workers' queues


def ids(batches: Any) -> list[list[str]]:
    return [batch.ids() for batch in batches]


def workers(method: str | None, **options: Any) -> dict[str, Any]:
    if method is None:
        return {}
    return {"num_workers": 2, "timeout": 60, "multiprocessing_context": method, **options}


@WITH_SPAWN
@pytest.mark.parametrize("persistent", [False, True])
def test_it_goes_on_from_a_state_and_then_into_the_next_epochs(
    make: Callable[..., Stream], expected: list[list[str]], method: str | None, persistent: bool
) -> None:
    options = workers(method, persistent_workers=persistent)
    first = StreamLoader(make(), **options)
    head = list(islice(first, 2))  # broken off, with more batches under way
    state = first.state_dict()
    assert (state["epoch"], state["step"]) == (0, 2)
    second = StreamLoader(make(), **options)
    second.load_state_dict(state)
    assert ids(head) + ids(second) == expected[:STEPS]
    for epoch in range(1, EPOCHS):
        assert second.stream.position == (epoch, 0)
        batches = list(second)
        assert ids(batches) == expected[STEPS * epoch : STEPS * (epoch + 1)]
        assert [(batch.epoch, batch.step) for batch in batches] == [(epoch, step) for step in range(STEPS)]
        assert all(isinstance(batch, Batch) and isinstance(batch["x"], torch.Tensor) for batch in batches)
    second.set_epoch(1)
    assert ids(second) == expected[STEPS : 2 * STEPS]


@METHODS
def test_its_state_is_of_what_was_handed_out_at_every_step(
    make: Callable[..., Stream], expected: list[list[str]], method: str | None
) -> None:
    """Not of what workers have prepared."""
    loader, stream = StreamLoader(make(), **workers(method, prefetch_factor=4)), make()
    for step, _ in enumerate(loader, 1):
        stream.load_state_dict(loader.state_dict())
        assert next(stream).ids() == expected[step]


@METHODS
def test_a_stream_that_ends_is_gone_through_anew(
    make: Callable[..., Stream], expected: list[list[str]], method: str | None
) -> None:
    loader = StreamLoader(make(epochs=1), **workers(method))
    end = None
    for _ in range(2):
        assert len(loader) == STEPS
        assert ids(loader) == expected[:STEPS]
        end = loader.state_dict()
    loader.load_state_dict(end)
    assert (len(loader), list(loader)) == (0, [])
    assert ids(loader) == expected[:STEPS]


def test_the_streams_own_loop_and_the_loader_follow_one_another(
    make: Callable[..., Stream], expected: list[list[str]]
) -> None:
    loader = StreamLoader(make())
    taken = [next(loader.stream).ids(), *ids(islice(loader, 2)), next(loader.stream).ids(), *ids(loader)]
    assert [*taken, next(loader.stream).ids()] == expected[: STEPS + 1]


def _fail_once(batch: Batch) -> list[str]:
    if batch.step == 2 and not (flag := Path(os.environ["FAILED"])).exists():
        flag.touch()
        raise ArithmeticError("the collate_fn failed")
    return batch.ids()


@pytest.mark.parametrize("method", [None, pytest.param("fork", marks=pytest.mark.long)])  # torch takes 10 s to give up
def test_a_batch_that_could_not_be_made_comes_again(
    make: Callable[..., Stream],
    expected: list[list[str]],
    method: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever `collate_fn` makes of a batch, its place is known."""
    monkeypatch.setenv("FAILED", str(tmp_path / "failed"))
    loader, taken = StreamLoader(make(), collate_fn=_fail_once, **workers(method)), list[Any]()
    with pytest.raises(ArithmeticError, match="the collate_fn failed"):
        taken.extend(loader)
    assert taken == expected[:2]
    assert [*taken, *loader] == expected[:STEPS]


def test_options_that_the_stream_decides_are_refused(make: Callable[..., Stream]) -> None:
    for name in ("batch_size", "shuffle", "sampler", "batch_sampler", "drop_last", "in_order"):
        with pytest.raises(ParamsError, match=rf"StreamLoader: {name} cannot be given.*batch_size, order=Ordering"):
            StreamLoader(make(), **{name: None})
    with pytest.raises(FormatError, match="step=-1"):
        StreamLoader(make()).load_state_dict({**make().state_dict(), "step": -1})


def test_torchs_own_loader_refuses_a_stream_and_says_what_to_write(make: Callable[..., Stream]) -> None:
    loader: Any = DataLoader(make(), batch_size=None)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"A stream is no list.*write StreamLoader"):
        next(iter(loader))


@METHODS
def test_of_two_iterations_at_once_one_is_told_and_no_batch_comes_twice(
    make: Callable[..., Stream], expected: list[list[str]], method: str | None
) -> None:
    loader = StreamLoader(make(), **workers(method))
    one, other = iter(loader), iter(loader)
    assert ids([next(one), next(other)]) == expected[:2]
    with pytest.raises(ParamsError, match="Batch 1 of epoch 0 is due in this iteration, but batch 2 of epoch 0"):
        next(one)
    assert ids(other) == expected[2:STEPS]


def test_a_state_loaded_within_an_iteration_is_not_undone_by_it(
    make: Callable[..., Stream], expected: list[list[str]]
) -> None:
    loader = StreamLoader(make())
    batches = iter(loader)
    start = loader.state_dict()
    ids(islice(batches, 3))
    loader.load_state_dict(start)
    with pytest.raises(ParamsError, match="Begin a new iteration"):
        next(batches)
    assert ids(islice(loader, 2)) == expected[:2]
