"""`shardline generate`: text from a registered language model, as it is written."""

import codecs
import sys
from collections.abc import Iterator

from pipelines.release.registry import load_version, resolve_model

TASKS = ("language",)


def print_text(
    recipe: str | None,
    prompt: str,
    alias: str,
    *,
    tokens: int,
    temperature: float,
    top_k: int | None,
    seed: int,
    changed_code: bool = False,
) -> None:
    """Print `prompt` and up to `tokens` tokens after it. The same arguments and version print the same text.

    Raises ParamsError when there is no such model or version, or its own code has changed since (unless
    `changed_code`), TrackingError when MLflow cannot be reached.
    """
    model = resolve_model(recipe, TASKS)
    predictor, version = load_version(model, alias, changed_code=changed_code)
    written = predictor.write(predictor.encode(prompt), tokens=tokens, temperature=temperature, top_k=top_k, seed=seed)
    print(f"{model.name} version {version.version}, seed {seed}", file=sys.stderr)
    print(prompt, end="", flush=True)
    for piece in decode(written):
        print(piece, end="", flush=True)
    print()


def decode(tokens: Iterator[int]) -> Iterator[str]:
    """Text of byte tokens as soon as each character is whole; bytes that are no UTF-8 become U+FFFD."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    for token in tokens:
        if piece := decoder.decode(bytes([token])):
            yield piece
    yield decoder.decode(b"", final=True)
