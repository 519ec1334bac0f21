"""A registered model at work: predictions, and text. Importing this imports neither torch nor MLflow."""

from collections.abc import Sequence
from pathlib import Path

__all__ = ["generate", "predict"]


def generate(
    recipe: str | None, prompt: str, *, tokens: int = 300, temperature: float = 0.8, top_k: int | None = 40,
    seed: int = 0, alias: str = "champion", changed_code: bool = False,
) -> None:  # fmt: skip
    """Print `prompt` and what a registered language model writes after it. See `print_text`."""
    from pipelines.serving.generation import print_text

    print_text(
        recipe, prompt, alias, tokens=tokens, temperature=temperature, top_k=top_k, seed=seed, changed_code=changed_code
    )


def predict(
    recipe: str | None, files: Sequence[Path], *, alias: str = "champion", changed_code: bool = False,
    as_json: bool = False,
) -> None:  # fmt: skip
    """Print a registered model's answer for each file, or row of a CSV file. See `print_predictions`."""
    from pipelines.serving.prediction import print_predictions

    print_predictions(recipe, files, alias, changed_code=changed_code, as_json=as_json)
