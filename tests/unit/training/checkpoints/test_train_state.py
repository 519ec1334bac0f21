"""What a training knows of itself, as checkpoints have it."""

import json

from pipelines.training.state import TrainState


def test_the_state_of_a_moment_costs_no_copy_of_its_curves() -> None:
    """A long training has a hundred thousand points, and waits for this at each checkpoint."""
    state = TrainState()
    for step in range(3):
        state.add_step(2.0 + step, 4, 4)
        state.close_point(0.1, 1.0)
    state.add_validation({"loss": 0.5})
    values = state.to_json()
    assert all(ours is theirs for ours, theirs in zip(values["train_curve"], state.train_curve, strict=True))
    text = json.dumps(values)
    state.add_step(1.0, 4, 4)
    state.close_point(0.1, 1.0)
    state.add_validation({"loss": 0.4})
    assert json.dumps(values) == text, "it stays what it was"
    back = TrainState.from_json(json.loads(text))
    assert (back.step, back.best_step, len(back.train_curve), len(back.val_curve)) == (3, 3, 3, 1)
    assert back.to_json() == json.loads(text)
