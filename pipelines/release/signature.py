"""A model's interface as MLflow states it: signature, input example, and what it needs installed."""

import io
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from pipelines.models.predictor import kind_of

if TYPE_CHECKING:
    from mlflow.models import ModelSignature

#: What a packaged model imports, besides its own code (the folder `code`).
REQUIREMENTS = [
    "blake3", "mlflow", "numpy", "opencv-python-headless", "pandas", "pillow", "pyarrow", "pydantic", "pyyaml",
    "safetensors", "simplejpeg", "torch", "typing-extensions"
]  # fmt: skip
#: Parameters of a call for text: name → (MLflow type, default); top_k 0: all tokens.
TEXT_PARAMS = {
    "tokens": ("long", 100),
    "temperature": ("double", 0.8),
    "top_k": ("long", 40),
    "seed": ("long", 0),
}
EXAMPLE_TEXT, EXAMPLE_TOKENS = "The ", 16


@dataclass(frozen=True)
class Signature:
    """`example` is a table or array, for text with parameters beside it."""

    signature: "ModelSignature"
    example: Any

    @property
    def example_input(self) -> Any:
        return self.example[0] if isinstance(self.example, tuple) else self.example

    @property
    def example_params(self) -> dict[str, Any] | None:
        return self.example[1] if isinstance(self.example, tuple) else None


def signature_of(spec: Mapping[str, Any]) -> Signature:
    """Of a model for data of `spec` (the shards manifest's)."""
    import numpy as np
    import pandas as pd
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema, TensorSpec

    kind = kind_of(spec)
    if kind == "text":
        params = ParamSchema([ParamSpec(name, kind, default) for name, (kind, default) in TEXT_PARAMS.items()])
        signature = ModelSignature(Schema([ColSpec("string", "prompt")]), Schema([ColSpec("string", "text")]), params)
        return Signature(signature, (pd.DataFrame({"prompt": [EXAMPLE_TEXT]}), {"tokens": EXAMPLE_TOKENS}))
    shape, dtype = spec["inputs"]["x"]["shape"], np.dtype(spec["inputs"]["x"]["dtype"])
    typical = np.broadcast_to(np.asarray(spec.get("mean") or 0.0), shape)  # per feature or channel
    example: Any
    if kind == "image":
        inputs, example = Schema([ColSpec("binary", "image")]), pd.DataFrame({"image": [_png(typical)]})
    elif kind == "table":
        inputs = Schema([ColSpec("double", name) for name in spec["features"]])
        example = pd.DataFrame([typical.astype(np.float64)], columns=spec["features"])
    else:
        inputs, example = Schema([TensorSpec(dtype, (-1, *shape))]), typical.astype(dtype)[None]
    return Signature(ModelSignature(inputs, _outputs(spec)), example)


def _outputs(spec: Mapping[str, Any]) -> Any:
    from mlflow.types import ColSpec, Schema
    from mlflow.types.schema import Array, DataType

    if not spec.get("classes"):
        return Schema([ColSpec("double", "value")])
    probabilities = ColSpec(Array(DataType.double), "probabilities")
    return Schema([ColSpec("string", "label"), ColSpec("double", "probability"), probabilities])


def _png(pixels: Any) -> bytes:
    """An image of float values [height, width, channels] in 0 … 255 as a PNG file."""
    from PIL import Image

    array = pixels.round().clip(0, 255).astype("uint8")
    file = io.BytesIO()
    Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array).save(file, "PNG")
    return file.getvalue()


def requirements(extra: list[str]) -> list[str]:
    """Pinned, without local versions (2.13.0+cpu): those are builds of one machine."""
    return [f"{name}=={version(name).split('+')[0]}" for name in sorted({*REQUIREMENTS, *extra})]
