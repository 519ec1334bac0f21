"""The model registry: which registered model a command means, its versions, and their files."""

import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from pipelines.params import FILENAME
from pipelines.release.fingerprint import ARTIFACTS
from pipelines.runtime.own_code import comparison
from pipelines.tracking import Store, connect
from pipelines.tracking.store import cause, patient
from pipelines.workspace import Workspace, project_root, recipe_folder, recipes
from storage.errors import ParamsError, TrackingError
from storage.redact import without_login

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

    from pipelines.models import Own
    from pipelines.models.predictor import Predictor

CANDIDATE, CHAMPION = "candidate", "champion"
TASK, INPUTS = "task", "inputs"  # tags of a registered model
COMMIT = "git.commit"  # of a version


@dataclass(frozen=True)
class Registered:
    """A registered model, and the recipe's name for commands in messages."""

    store: Store
    name: str
    task: str
    recipe: str | None = None
    inputs: str | None = None  # text, table, image or array


def resolve_model(
    recipe: str | None, tasks: Collection[str], project: Path | None = None, *, inputs: str | None = None
) -> Registered:
    """The registered model that a command for `tasks` means, on `inputs` of this kind where it matters.

    That of `recipe` when one is given; else that of the current folder's recipe, if its task fits; else the most
    recent one that fits. Raises ParamsError listing what there is, TrackingError when MLflow cannot be reached.
    """
    project = project or project_root()
    if recipe is not None:
        return _of_recipe(Workspace.open(recipe_folder(project, recipe)), tasks)
    ws = _nearest(project)
    store = _connect(ws)
    models = [_describe(store, found) for found in _search_models(store)]
    fitting = [model for model in models if model.task in tasks and inputs in (None, model.inputs)]
    for model in fitting:
        if model.name == ws.registered_model:
            return model
    if fitting:
        return fitting[0]
    wanted = _either(tasks) + (f" of {inputs} inputs" if inputs else "")
    raise ParamsError(
        f"No registered model for {wanted} at {without_login(store.uri)}. {_listing(models)} "
        "Run `make repro RECIPE=NAME` first, with one of `shardline recipes` that makes such a model."
    )


def _of_recipe(ws: Workspace, tasks: Collection[str]) -> Registered:
    store, name = _connect(ws), ws.registered_model
    models = [_describe(store, found) for found in _search_models(store)]
    found = next((model for model in models if model.name == name), None)
    if found is None:
        raise ParamsError(f"No registered model {name!r} at {without_login(store.uri)}. {_make(ws)}")
    if found.task not in tasks:
        fitting = [model for model in models if model.task in tasks]
        choice = f"{_listing(fitting)} Choose with --recipe." if fitting else "None is registered yet."
        raise ParamsError(f"Model {name!r} is for {found.task}; this command needs one for {_either(tasks)}. {choice}")
    return found


def _nearest(project: Path) -> Workspace:
    """The current folder's workspace, else the project's first recipe: they share one store."""
    known = recipes(project)
    here = Path.cwd().resolve()
    if here not in known.values() and not (here / "params.yaml").is_file() and known:
        here = next(iter(known.values()))
    return Workspace.open(here)


def _connect(ws: Workspace) -> Store:
    """Without making an empty store where there is none."""
    file = Path(ws.tracking_uri.removeprefix("sqlite:///"))
    if ws.tracking_uri.startswith("sqlite:///") and not file.is_file():
        raise ParamsError(f"No registered model: {file} does not exist yet. {_make(ws)}")
    return connect(ws)


def _make(ws: Workspace) -> str:
    recipe = ws.params.recipe
    if ws.package.is_dir():
        return f"{ws.package} is not registered there: run `shardline promote` in {ws.root}."
    return f"Run `make repro RECIPE={recipe}` first."


def _search_models(store: Store) -> list[Any]:
    """Registered models, the one changed last first."""
    found: list[Any] = []
    token = None
    with registry_errors(store):
        while True:
            page = store.client.search_registered_models(max_results=1000, page_token=token)
            found += page
            if not (token := page.token):
                break
    return sorted(found, key=lambda model: -(model.last_updated_timestamp or 0))


def _describe(store: Store, model: Any) -> Registered:
    tags = model.tags
    return Registered(store, model.name, tags.get(TASK, "unknown"), tags.get("recipe"), tags.get(INPUTS))


def _listing(models: list[Registered]) -> str:
    if not models:
        return "There is none."
    return f"There is: {', '.join(f'{model.name} ({model.task})' for model in models)}."


def _either(tasks: Collection[str]) -> str:
    return " or ".join(sorted(tasks))


def find_version(store: Store, name: str, alias: str) -> "ModelVersion | None":
    """The version of model `name` with this alias or number; None when there is none."""
    from mlflow.exceptions import MlflowException

    with registry_errors(store):
        try:
            if alias.isdigit():
                return store.client.get_model_version(name, alias)
            return store.client.get_model_version_by_alias(name, alias)
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE", "NOT_FOUND"):
                return None
            raise


def get_version(model: Registered, alias: str) -> "ModelVersion":
    """As `find_version`; raises ParamsError naming the aliases that there are."""
    found = find_version(model.store, model.name, alias)
    if found is not None:
        return found
    with registry_errors(model.store):
        aliases = model.store.client.get_registered_model(model.name).aliases
    known = ", ".join(f"{name} (version {version})" for name, version in sorted(aliases.items())) or "none"
    hint = "" if CHAMPION in aliases else " No version has passed the gate of `promote` yet."
    raise ParamsError(f"Model {model.name!r} has no version {alias!r}. Aliases: {known}; set --alias.{hint}")


def load_version(model: Registered, alias: str, *, changed_code: bool = False) -> "tuple[Predictor, ModelVersion]":
    """A version, ready to answer. A model of the user's own is imported where the recipe of this checkout names it, and
    where its code is what the version was trained with; with `changed_code` also where it isn't."""
    from pipelines.models import Own
    from pipelines.models.predictor import Predictor

    version = get_version(model, alias)
    project = project_root()
    recipe = recipes(project).get(model.recipe or "", project)
    own = Own()
    if (recipe / FILENAME).is_file():
        hint = f"{_go_back(version)}, train again (`shardline repro`), or take today's all the same: --changed-code."
        ws = Workspace.open(recipe)
        compare = comparison(ws, _called(version), hint, changed=changed_code)
        own = Own.of(ws.params, ws.root, ws.project, compare=compare)
    with version_files(model.store, version) as folder:
        return Predictor.load(folder / ARTIFACTS, own=own), version


def own_of_champion(ws: Workspace, version: "ModelVersion") -> "Own":
    """The recipe's code, for a version that is to be measured with it."""
    from pipelines.models import Own

    hint = (
        f"{_go_back(version)}; or keep such a class as it is in a file of its own, begin new ones in another, and name "
        "the old one in promote.trusted, so that it can be measured."
    )
    return Own.of(ws.params, ws.root, ws.project, compare=comparison(ws, _called(version), hint))


def _called(version: "ModelVersion") -> str:
    return f"{version.name} version {version.version}"


def _go_back(version: "ModelVersion") -> str:
    commit = version.tags.get(COMMIT)
    return f"Go back to that code (`git checkout {commit[:12]}`)" if commit else "Go back to that code"


@contextmanager
def version_files(store: Store, version: "ModelVersion") -> Iterator[Path]:
    """The package of a version as a local folder: where it lies, or a copy for as long as the block lasts."""
    with registry_errors(store):
        source = store.client.get_model_version_download_uri(version.name, version.version)
    if source.startswith("file:"):
        yield Path(unquote(urlsplit(source).path))
        return
    with tempfile.TemporaryDirectory(prefix="shardline-model-") as folder:
        yield _download(store, version, source, folder)


def _download(store: Store, version: "ModelVersion", source: str, folder: str) -> Path:
    """Only the weights and the configuration: nothing else of a package is needed, or run."""
    from mlflow.artifacts import download_artifacts

    with registry_errors(store), patient():
        uri = f"{source.rstrip('/')}/{ARTIFACTS}"
        download_artifacts(artifact_uri=uri, dst_path=folder, tracking_uri=store.uri)
    return Path(folder)


@contextmanager
def registry_errors(store: Store) -> Iterator[None]:
    """Turns what MLflow raises into TrackingError with the likely cause and the setting."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except (MlflowException, OSError) as error:
        raise TrackingError(
            f"The model registry at {without_login(store.uri)} failed: {cause(error)}. What was finished is kept; "
            "when it works again, run the same command again (setting: MLFLOW_TRACKING_URI)."
        ) from error
