"""Where things lie: a recipe's folder, its zones, outs and state, and the project around it."""

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from pipelines.params import FILENAME, Params, load_params, suggestion
from storage.errors import ParamsError
from storage.lake import Zone, open_zone

STATE = ".shardline"
DEFAULT_RECIPE = "python_lm"
INTO_THE_PROJECT = "Change to the folder of your checkout (the one with dvc.yaml), or below it."


def project_root(start: Path | None = None) -> Path:
    """The folder above `start` (the current one by default) that holds `.dvc`; `start` itself where there is none.

    A DVC experiment that runs in a temporary copy (`.dvc/tmp/exps/…`) belongs to the project around it.
    """
    start = (start or Path.cwd()).resolve()
    for folder in (start, *start.parents):
        if (folder / ".dvc").is_dir():
            text = str(folder)
            marker = f"{os.sep}.dvc{os.sep}tmp{os.sep}exps{os.sep}"
            return Path(text.split(marker)[0]) if marker in text else folder
    return start


def recipe_folder(project: Path, recipe: str | None) -> Path:
    """The folder of a recipe: the project's own for the default one, else recipes/NAME. Raises ParamsError."""
    if recipe is None or recipe == DEFAULT_RECIPE:
        return project
    folder = project / "recipes" / recipe
    if not (folder / FILENAME).is_file():
        near = suggestion(recipe, list(recipes(project)))
        raise ParamsError(f"No recipe {recipe!r}: {folder / FILENAME} does not exist{near} See `shardline recipes`.")
    return folder


def recipes(project: Path) -> dict[str, Path]:
    """Name → folder of every recipe of the project, the default one first."""
    found = {DEFAULT_RECIPE: project} if (project / FILENAME).is_file() else {}
    return found | {file.parent.name: file.parent for file in sorted(project.glob(f"recipes/*/{FILENAME}"))}


@dataclass(frozen=True)
class Workspace:
    """A recipe on disk: `root` is its folder, `project` the repository around it."""

    root: Path
    project: Path
    params: Params

    @classmethod
    def open(cls, root: Path | None = None) -> "Workspace":
        """The workspace whose params.yaml lies in `root` (the current folder by default)."""
        root = (root or Path.cwd()).resolve()
        return cls(root, project_root(root), load_params(root / FILENAME))

    def zone(self, name: str) -> Zone:
        """Zone raw, curated or shards."""
        lake = self.params.lake
        urls = {str(zone): url for zone, url in lake.zones.items()}
        return open_zone(self.root, name, lake.url, urls, self.params.recipe, self.params.compute.lake_timeout)

    @property
    def state(self) -> Path:
        """Journals, checkpoints and caches: never a DVC out."""
        return self.root / STATE

    @property
    def model(self) -> Path:
        """Out of train: model.safetensors and its digest, config.json, run.json."""
        return self.root / "data" / "model"

    @property
    def package(self) -> Path:
        """Out of package: an MLflow model folder."""
        return self.root / "data" / "package"

    @property
    def promotion(self) -> Path:
        """Out of promote."""
        return self.root / "data" / "promotion.json"

    def metrics(self, stage: str) -> Path:
        """metrics/<stage>.json."""
        return self.root / "metrics" / f"{stage}.json"

    def plots(self, name: str) -> Path:
        """plots/<name>."""
        return self.root / "plots" / name

    @cached_property
    def tracking_uri(self) -> str:
        """MLFLOW_TRACKING_URI where it is set, else a SQLite file in the project."""
        file = self.project / STATE / "mlflow" / "mlflow.db"
        return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{file}"

    @property
    def artifact_root(self) -> str | None:
        """Artifacts of the embedded store lie beside it; a server chooses its own."""
        if os.environ.get("MLFLOW_TRACKING_URI"):
            return None
        return (self.project / STATE / "mlflow" / "artifacts").as_uri()

    @property
    def registered_model(self) -> str:
        return self.params.promote.model or self.params.recipe


@dataclass(frozen=True)
class Aside(Workspace):
    """A workspace whose outs and state lie elsewhere than those of `of`, whose data it reads."""

    of: Workspace | None = None

    def zone(self, name: str) -> Zone:
        assert self.of is not None
        return self.of.zone(name)
