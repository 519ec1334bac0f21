"""A stream that is looped over, left, saved, loaded and moved in any order is where a simple model of it is."""

import json
import pickle
from itertools import islice
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule
from support.flat_streams import flat_stream
from support.numbered_samples import publish

from pipelines.streaming import Stream
from storage.errors import FormatError, ParamsError
from storage.lake import Zone

STEPS, EPOCHS = 4, 4  # of an epoch; of those that the model knows


@pytest.fixture(scope="module", autouse=True)
def shards(tmp_path_factory: pytest.TempPathFactory) -> None:
    Moves.zone = Zone(tmp_path_factory.mktemp("shards"))
    publish(Moves.zone, 3, rows=5, width=2)


class Moves(RuleBasedStateMachine):
    """The model: `taken` batches lie before the place; `told` is whether a loop at the end begins anew."""

    zone: Zone
    states = Bundle("states")

    def make(self, epochs: int | None, prefetch: int) -> Stream:
        order = {"seed": 5, "window": 6, "epochs": epochs, "prefetch": prefetch}
        return flat_stream(self.zone, self.zone.manifest(), split="train", batch_size=4, **order)  # type: ignore[arg-type]

    @initialize(epochs=st.sampled_from([None, 1, 2]), prefetch=st.sampled_from([0, 1, 3]))
    def open(self, epochs: int | None, prefetch: int) -> None:
        with self.make(EPOCHS, 0) as whole:
            self.expected = [batch.ids() for batch in whole]
        self.stream, self.epochs, self.taken, self.told = self.make(epochs, prefetch), epochs, 0, True

    def teardown(self) -> None:
        if hasattr(self, "stream"):
            self.stream.close()

    @property
    def end(self) -> int | None:
        return None if self.epochs is None else self.epochs * STEPS

    def left(self, most: int) -> list[list[str]]:
        """What `most` further batches must be, which are taken; of an endless stream none beyond what is known."""
        stop = min(self.taken + most, self.end or len(self.expected))
        batches, self.taken = self.expected[self.taken : stop], stop
        return batches

    def begin(self) -> None:
        if self.taken == self.end and self.told:
            self.taken = 0

    @rule(count=st.integers(0, 5))
    def take(self, count: int) -> None:
        expected = self.left(count)
        assert [next(self.stream).ids() for _ in expected] == expected
        if len(expected) < count and self.end is not None:
            with pytest.raises(StopIteration):
                next(self.stream)
            self.told = True

    @rule(count=st.integers(1, 5))
    def loop_and_break(self, count: int) -> None:
        self.begin()
        expected = self.left(count)
        known = len(expected) if self.end is None else count
        assert [batch.ids() for batch in islice(self.stream, known)] == expected
        self.told = self.told or (self.end is not None and len(expected) < count)

    @rule()
    def loop_to_the_end(self) -> None:
        if self.end is not None:
            self.begin()
            assert [batch.ids() for batch in self.stream] == self.left(self.end)
            self.told = True

    @rule(target=states)
    def save(self) -> str:
        state = self.stream.state_dict()
        assert (state["epoch"], state["step"]) == divmod(self.taken, STEPS)
        return json.dumps(state)

    @rule(state=states)
    def load(self, state: str) -> None:
        values = json.loads(state)
        self.stream.load_state_dict(values)
        self.taken = values["epoch"] * STEPS + values["step"]
        self.told = self.taken != self.end

    @rule(state=states, change=st.sampled_from([{"step": STEPS}, {"step": -1}, {"epoch": -1}, {"epoch": 1.0}]))
    def load_what_cannot_be(self, state: str, change: dict[str, Any]) -> None:
        with pytest.raises((FormatError, ParamsError)):
            self.stream.load_state_dict({**json.loads(state), **change})

    @rule(epoch=st.integers(-1, EPOCHS - 1))
    def set_epoch(self, epoch: int) -> None:
        if 0 <= epoch < (self.epochs or EPOCHS):
            self.stream.set_epoch(epoch)
            self.taken, self.told = epoch * STEPS, True
        else:
            with pytest.raises(ParamsError):
                self.stream.set_epoch(epoch)

    @rule()
    def close(self) -> None:
        self.stream.close()

    @rule()
    def go_on_in_a_copy(self) -> None:
        copy = pickle.loads(pickle.dumps(self.stream))
        self.stream.close()
        self.stream = copy

    @rule(step=st.integers(0, STEPS - 1))
    def look_at_a_batch(self, step: int) -> None:
        now = 0 if self.taken == self.end else self.taken // STEPS
        if now < EPOCHS:
            assert self.stream.batch(step).ids() == self.expected[now * STEPS + step]

    @invariant()
    def is_where_the_model_is(self) -> None:
        if hasattr(self, "stream"):
            assert self.stream.position == divmod(self.taken, STEPS)
            assert len(self.stream) == (STEPS if self.told or self.taken != self.end else 0)
            assert self.stream.is_at_end() == (self.taken == self.end)


TestMoves = Moves.TestCase
TestMoves.settings = settings(max_examples=100, stateful_step_count=25, deadline=None)
