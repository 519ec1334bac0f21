"""Names that stand for code: ours, or an import path. A wrong one is refused before the data stages have worked."""

from typing import Annotated

from pydantic import AfterValidator, Field

from pipelines.params.schema.suggestion import suggestion

MODELS = ("transformer", "mlp", "cnn", "resnet", "vit")
LOSSES = ("auto", "cross_entropy", "focal", "squared", "absolute", "huber")


def _known(name: str, what: str, known: tuple[str, ...], own: str) -> str:
    """`name`, where it is one of `known` or an import path. Raises ValueError with the nearest one."""
    if name not in known and ":" not in name:
        raise ValueError(f"no such {what}{suggestion(name, known)} One of your own is named by its import path, {own}")
    return name


ModelName = Annotated[str, AfterValidator(lambda name: _known(name, "model", MODELS, "package.module:Class"))]
LossName = Annotated[str, AfterValidator(lambda name: _known(name, "loss", LOSSES, "package.module:function"))]
ImportPath = Annotated[str, Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")]
