"""A stream's state: where it is, in which order of which data. The same on every rank, valid for any number of them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipelines.streaming.options import whole
from pipelines.streaming.order.epochs import Epochs
from storage.errors import DataError, FormatError, ParamsError

STATE_VERSION = 1
LAST_SAMPLE = 1 << 62  # no epoch begins after so many samples: orders count them in int64

_UNUSABLE = "Load what state_dict() gave, or start anew without the checkpoint."


@dataclass(frozen=True)
class State:
    """Batch `step` of `epoch` is the next one, of data `digest` in an `order` of such settings."""

    epoch: int
    step: int
    digest: str
    order: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        place = {"version": STATE_VERSION, "epoch": self.epoch, "step": self.step}
        return {**place, "digest": self.digest, "order": dict(self.order)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "State":
        """What `to_json` gave. Raises FormatError for an unknown version, and for fields that are missing, unknown or
        of another type."""
        if not isinstance(values, Mapping):
            raise FormatError(f"A stream state must be a mapping, and this is {values!r}. {_UNUSABLE}")
        version = values.get("version")
        if type(version) is not int or version != STATE_VERSION:
            raise FormatError(
                f"Stream state of version {version!r}, but this Shardline reads {STATE_VERSION} only. "
                "Use the Shardline that wrote it, or start anew without the checkpoint."
            )
        names = {"version", *cls.__dataclass_fields__}
        if wrong := sorted(map(str, names ^ set(values))):
            raise FormatError(f"Stream state with the fields {sorted(map(str, values))}: {wrong[0]} is "
                              f"{'missing' if wrong[0] in names else 'unknown'}. {_UNUSABLE}")  # fmt: skip
        for name, kind in (("digest", str), ("order", Mapping)):
            if not isinstance(values[name], kind):
                raise FormatError(f"Stream state: {name}={values[name]!r} must be a {kind.__name__}. {_UNUSABLE}")
        try:
            epoch, step = (whole(name, values[name], 0) for name in ("epoch", "step"))
        except ParamsError as error:
            raise FormatError(f"Stream state: {error} {_UNUSABLE}") from None
        return cls(epoch, step, values["digest"], values["order"])

    def check(self, digest: str, order: Mapping[str, Any]) -> None:
        """Raise DataError when it is of other data than `digest`, ParamsError when the order was another one."""
        if self.digest != digest:
            raise DataError(
                f"The stream state was taken on data version {self.digest}, but this is {digest}: "
                "the same step would be other samples. Check out that version of the data (git checkout and dvc "
                "checkout), or start anew without the checkpoint."
            )
        saved = self.order
        differing = [name for name in {**order, **saved} if saved.get(name) != order.get(name)]
        if differing:
            raise ParamsError(
                "The stream state was taken in another order, so that the same step would be other samples: "
                + ", ".join(f"{name} was {saved.get(name)!r} and is {order.get(name)!r}" for name in differing)
                + ". Set it back, or start anew without the checkpoint."
            )

    def check_place(self, epochs: Epochs, end: int | None) -> None:
        """Raise FormatError unless its step is one of its epoch's, ParamsError unless its epoch is one of a stream that
        ends before epoch `end`, or that end."""
        check_epoch(self.epoch, epochs)
        if end is not None and (self.epoch, self.step) > (end, 0):
            raise ParamsError(
                f"The stream state is of batch {self.step} of epoch {self.epoch}, but this stream ends after epochs="
                f"{end}. Raise epochs, or start anew without the checkpoint."
            )
        if self.step >= (steps := epochs.steps(self.epoch)):
            raise FormatError(
                f"Stream state: step={self.step}, but epoch {self.epoch} has the batches 0 to {steps - 1}. {_UNUSABLE}"
            )


def check_epoch(epoch: int, epochs: Epochs) -> None:
    """Raise ParamsError for an epoch so far away that its samples could not be counted."""
    if epochs.ramp.before(epochs.start(epoch + 1)) > LAST_SAMPLE:
        raise ParamsError(f"epoch={epoch}: must begin within the first {LAST_SAMPLE:,} samples.")
