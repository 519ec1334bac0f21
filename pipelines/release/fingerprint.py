"""What a package is: its digests, its metrics, and the tags that carry both into the registry."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.params.schema.flat import numbers
from pipelines.workspace import Workspace
from storage.digest import digest_file, digest_json
from storage.errors import FormatError

#: Where a package keeps model.safetensors and config.json, and what its MLmodel's metadata is filed under.
ARTIFACTS, METADATA = "artifacts", "shardline"
#: Of the files of the user's own that the model was trained with.
OWN_CODE = "code"
#: Tags of LoggedModels and of the registry's versions.
WEIGHTS, MODEL, PACKAGE = "weights", "model", "package"


@dataclass(frozen=True)
class Fingerprint:
    """Digests that tell packages apart: of the weights; of weights and configuration (the model); of all that the
    package states."""

    weights: str
    model: str
    package: str

    @classmethod
    def of(cls, model: Path, metrics: Mapping[str, float], stated: Any) -> "Fingerprint":
        weights = digest_file(model / "model.safetensors")
        config = json.loads((model / "config.json").read_text())
        config.pop("manifest", None)
        both = digest_json({"weights": weights, "config": config})
        return cls(weights, both, digest_json({"model": both, "metrics": metrics, "stated": stated}))

    def tags(self) -> dict[str, str]:
        return {WEIGHTS: self.weights, MODEL: self.model, PACKAGE: self.package}


def evaluation(ws: Workspace) -> dict[str, float]:
    """metrics/evaluate.json, flat. Raises FormatError when it is missing."""
    file = ws.metrics("evaluate")
    if not file.is_file():
        raise FormatError(f"{file}: missing. Run the evaluate stage: `dvc repro evaluate`.")
    return numbers(json.loads(file.read_text()))
