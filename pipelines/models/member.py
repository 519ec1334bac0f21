"""What a model and a loss with typed parameters of their own are, ours or anybody's. Nothing heavy is imported here,
since parameters are checked by them."""

from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field, model_validator

from pipelines.params.schema.section import Section

if TYPE_CHECKING:
    from torch import nn

    from pipelines.models.tasks import Criterion

#: What a model's constructor may ask for by name (`registry.data_facts`). `model.args` may set them, too.
FACTS = (
    "vocab_size", "seq_len", "input_shape", "in_features", "num_classes", "mean", "std", "target_mean", "target_std",
)  # fmt: skip

Width = Annotated[int, Field(ge=1)]
"""Of a layer, in an architecture's lists."""


class Architecture(Section):
    """A model. Its fields are its own parameters, `model.args`; facts of the data among these are its module's."""

    name: ClassVar[str] = ""
    """By which `model.name` knows it; an own one is known by its import path."""

    @model_validator(mode="before")
    @classmethod
    def _without_facts(cls, args: Any) -> Any:
        return {key: value for key, value in args.items() if key not in FACTS} if isinstance(args, dict) else args

    def module(self) -> "type[nn.Module]":
        """The class whose constructor takes these parameters and facts of the data, all by keyword
        (`models.registry`)."""
        raise NotImplementedError


class Loss(Section):
    """A loss. Its fields are its own parameters, `train.loss_args`."""

    name: ClassVar[str] = ""
    """By which `train.loss` knows it; an own one is known by its import path."""
    tasks: ClassVar[tuple[str, ...]] = ("language", "classification", "regression")
    """That it is for."""

    def criterion(self) -> "Criterion":
        """The function of answers and targets that gives the sum over the targets (`models.losses`)."""
        raise NotImplementedError
