"""Release: from a trained model to one that serves. package → promote → generate, predict.

The functions import what they need when they are called: this package is part of every packaged model.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipelines.workspace import Workspace

__all__ = ["generate", "package", "predict", "promote"]


def package(ws: "Workspace") -> dict[str, Any]:
    """Write data/package, an MLflow model folder, and log it to the model's run. See `build_package`."""
    from pipelines.release.build import build_package

    return build_package(ws)


def promote(ws: "Workspace") -> dict[str, Any]:
    """Register data/package, and move the aliases that the gate allows. See `promote_package`."""
    from pipelines.release.promotion import promote_package

    return promote_package(ws)


def generate(
    recipe: str | None, prompt: str, *, tokens: int = 300, temperature: float = 0.8, top_k: int | None = 40,
    seed: int = 0, alias: str = "champion", changed_code: bool = False,
) -> None:  # fmt: skip
    """Print `prompt` and what a registered language model writes after it. See `print_text`."""
    from pipelines.serving.generate import print_text

    print_text(
        recipe, prompt, alias, tokens=tokens, temperature=temperature, top_k=top_k, seed=seed, changed_code=changed_code
    )


def predict(
    recipe: str | None, files: Sequence[Path], *, alias: str = "champion", changed_code: bool = False,
    as_json: bool = False,
) -> None:  # fmt: skip
    """Print a registered model's answer for each file, or row of a CSV file. See `print_predictions`."""
    from pipelines.serving.predict import print_predictions

    print_predictions(recipe, files, alias, changed_code=changed_code, as_json=as_json)
