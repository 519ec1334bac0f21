"""A stream's state: where it is, in which order of which data. The same on every rank, valid for any number of them."""

from collections.abc import Mapping
from typing import Any

from storage.errors import DataError, FormatError, ParamsError

STATE_VERSION = 1


def state_at(epoch: int, step: int, digest: str, order: Mapping[str, Any]) -> dict[str, Any]:
    """The state of a stream whose next batch is `step` of `epoch`, of data `digest` in an `order` of such settings."""
    return {"version": STATE_VERSION, "epoch": epoch, "step": step, "digest": digest, "order": dict(order)}


def place_in(state: Mapping[str, Any], digest: str, order: Mapping[str, Any]) -> tuple[int, int]:
    """(epoch, step) of a state, for a stream of data `digest` in `order`.

    Raises FormatError for a state of an unknown version, DataError when it is of other data, ParamsError when the order
    was another one.
    """
    if state.get("version") != STATE_VERSION:
        raise FormatError(
            f"Stream state of version {state.get('version')!r}, but this Shardline reads {STATE_VERSION} only. "
            "Use the Shardline that wrote it, or start anew without the checkpoint."
        )
    if state["digest"] != digest:
        raise DataError(
            f"The stream state was taken on data version {state['digest']}, but this is {digest}: "
            "the same step would be other samples. Check out that version of the data (git checkout and dvc "
            "checkout), or start anew without the checkpoint."
        )
    saved = state["order"]
    differing = [name for name in {**order, **saved} if saved.get(name) != order.get(name)]
    if differing:
        raise ParamsError(
            "The stream state was taken in another order, so that the same step would be other samples: "
            + ", ".join(f"{name} was {saved.get(name)!r} and is {order.get(name)!r}" for name in differing)
            + ". Set it back, or start anew without the checkpoint."
        )
    return int(state["epoch"]), int(state["step"])
