"""What MLflow runs to load a packaged model ("models from code"): no pickle, only this file, JSON and safetensors."""

import codecs
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel, PythonModelContext  # type: ignore[attr-defined]

from pipelines.models.importing import Own, refuse_loaded
from pipelines.models.predictor import Predictor


class ShardlineModel(PythonModel):
    """Text: column `prompt` → `text`. Images: column `image` (the file's bytes) → label, probability, probabilities.
    Tables: the features' columns → the same, or `value`. Arrays: [n, *shape] → the same."""

    def load_context(self, context: PythonModelContext) -> None:
        folder = Path(context.artifacts["weights"]).parent
        # The folder `code` lies in the same package as this file and the configuration: who runs one trusts the others.
        name = json.loads((folder / "config.json").read_text())["model"]["name"]
        code = folder.parent / "code"
        refuse_loaded(code)
        self.predictor = Predictor.load(folder, own=Own((name,), (code,)))

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        predictor, given = self.predictor, params or {}
        if predictor.kind == "text":
            return pd.DataFrame({"text": [self._write(prompt, given) for prompt in model_input["prompt"]]})
        if predictor.kind == "image":
            images = [predictor.pixels(data, f"image {i}") for i, data in enumerate(model_input["image"])]
            return pd.DataFrame(predictor.answer(np.stack(images)))
        if predictor.kind == "table":
            columns = {str(name): model_input[name].tolist() for name in model_input.columns}
            return pd.DataFrame(predictor.answer(predictor.rows(columns, "input")))
        return pd.DataFrame(predictor.answer(np.asarray(model_input)))

    def _write(self, prompt: str, params: dict[str, Any]) -> str:
        tokens = self.predictor.write(
            self.predictor.encode(prompt),
            tokens=int(params.get("tokens", 100)),
            temperature=float(params.get("temperature", 0.8)),
            top_k=int(params.get("top_k", 40)) or None,
            seed=int(params.get("seed", 0)),
        )
        return codecs.decode(bytes(tokens), "utf-8", "replace")


set_model(ShardlineModel())
