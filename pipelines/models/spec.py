"""What the spec of data may say: that of a shards manifest, which a model's config.json repeats."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import AfterValidator, Field, ValidationError, model_validator

from pipelines.params import Shard, suggestion
from pipelines.params.schema.section import Section

_SHOWN = 80  # characters of a value
_Images = Shard.model_fields["image_mode"].annotation


def _number_type(name: str) -> str:
    try:
        known = np.dtype(name).kind in "iuf"
    except TypeError:
        known = False
    if not known:
        raise ValueError("no type of numbers")
    return name


DType = Annotated[str, AfterValidator(_number_type)]
Size = Annotated[int, Field(ge=1)]
Number = Annotated[float, Field(allow_inf_nan=False)]


class Column(Section):
    """Inputs, as shards hold them."""

    dtype: DType
    shape: list[Size] | None
    codec: Literal["raw", "bytes", "image"] = "raw"


class Target(Section):
    """The column to predict; mean and std of a regression's."""

    name: str
    dtype: DType
    shape: list[Size] | None = None
    mean: Number = 0.0
    std: Annotated[Number, Field(ge=0)] = 1.0


class TokensSpec(Section):
    """Data of tokens."""

    vocab_size: Size
    dtype: DType = "uint16"
    separator: Annotated[int, Field(ge=0)] | None = None
    encoding: str | None = None
    pack_len: Size | None = None

    @model_validator(mode="after")
    def _fits(self) -> "TokensSpec":
        if self.separator is not None and self.separator >= self.vocab_size:
            raise ValueError(f"separator={self.separator} is none of vocab_size={self.vocab_size} tokens")
        if np.dtype(self.dtype).kind in "iu" and self.vocab_size > np.iinfo(self.dtype).max + 1:
            raise ValueError(f"vocab_size={self.vocab_size} is more than dtype={self.dtype!r} can tell apart")
        return self


class SamplesSpec(Section):
    """Data of samples; mean and std are of the inputs' last axis."""

    inputs: dict[str, Column]
    target: Target | None = None
    classes: list[str] | None = None
    features: list[str] | None = None
    image_mode: _Images | None = None  # type: ignore[valid-type]
    mean: list[Number] | None = None
    std: list[Annotated[Number, Field(ge=0)]] | None = None

    @model_validator(mode="after")
    def _fits(self) -> "SamplesSpec":
        shape = self.inputs["x"].shape if "x" in self.inputs else None
        for name, values in (("mean", self.mean), ("std", self.std)):
            if values is not None and shape and len(values) not in (1, shape[-1]):
                raise ValueError(f"{name} has {len(values)} numbers for inputs of shape {shape}")
        return self


def why_malformed(spec: Mapping[str, Any]) -> str | None:
    """Each key of `spec` that is unknown, missing, of another type or out of range, with its value; None where all is
    well."""
    kind = TokensSpec if "vocab_size" in spec else SamplesSpec
    try:
        kind.model_validate(dict(spec))
    except ValidationError as error:
        return explained(error, "spec", list(kind.model_fields))
    return None


def explained(error: ValidationError, within: str = "", known: Sequence[str] = ()) -> str:
    """What pydantic found, each with its key `within` what was checked; beside an unknown key, the nearest `known`."""
    return "; ".join(_fault(one, within, known) for one in error.errors(include_url=False))


def _fault(error: Any, within: str, known: Sequence[str]) -> str:
    place = ".".join(map(str, (*([within] if within else []), *error["loc"])))
    if error["type"] == "missing":
        return f"{place}: missing"
    if error["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        return f"{place}: unknown{suggestion(place.rpartition('.')[2], known).rstrip('.') if known else ''}"
    message = error["msg"].removeprefix("Value error, ")
    given = "" if isinstance(error["input"], dict) else f" (given: {error['input']!r:.{_SHOWN}})"
    return f"{place}: {message}{given}"
