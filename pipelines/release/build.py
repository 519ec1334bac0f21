"""The package stage: data/model → data/package, a folder that MLflow loads and serves, with its model card.

It holds no pickle and needs no checkout: weights (safetensors), configuration (JSON), and the code that runs them.
"""

import ast
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib.machinery import PathFinder
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.console.formats import human_bytes
from pipelines.console.progress import say, stepping
from pipelines.params.schema.flat import numbers
from pipelines.release.fingerprint import METADATA, OWN_CODE, Fingerprint, evaluation
from pipelines.release.logged_model import log_package
from pipelines.runtime.locks import exclusive
from pipelines.tracking import Run, lineage_tags, open_run, recorded_run_id
from pipelines.tracking.names import check_folder
from pipelines.workspace import Workspace
from storage.atomic import storage_errors, temporary_folder
from storage.errors import ParamsError

if TYPE_CHECKING:
    from pipelines.models.saved import ModelConfig
    from pipelines.release.signature import Signature

#: What of Shardline a package carries, below the repository's root.
CODE = (
    "pipelines/__init__.py", "pipelines/params", "pipelines/models",
    "pipelines/release/__init__.py", "pipelines/models/predictor.py",
    "storage/__init__.py", "storage/errors.py", "storage/atomic.py", "storage/digest.py", "storage/images.py",
    "storage/mapped.py", "storage/number_text.py", "storage/redact.py",
)  # fmt: skip
Begin = Callable[[str], None]
SOURCE = Path(__file__).resolve().parents[2]
ENTRY = Path(__file__).with_name("pyfunc.py")


def build_package(ws: Workspace) -> dict[str, Any]:
    """Write data/package and log it to the run of data/model. Returns {"folder", "model_id", "run_id"}.

    Without MLflow the folder is written all the same, and `promote` logs it later. Raises FormatError without a model
    or its metrics, DigestError for damaged weights, ParamsError when the model is not the recipe's, was trained with
    other code than today's, its folder is none for MLflow, or what was packaged does not answer its own input example.
    """
    from pipelines.models import Own
    from pipelines.models.saved import check_weights, load_config
    from pipelines.runtime.own_code import AGAIN, comparison

    check_folder(ws)
    compare = comparison(ws, f"The model in {ws.model}", AGAIN)
    config = load_config(ws.model, Own.of(ws.params, ws.root, ws.project, compare=compare))
    check_weights(ws.model)
    metrics = evaluation(ws)
    run = open_run(ws, run_id=recorded_run_id(ws))
    one = exclusive(ws.state / "package.lock", ws.package)
    with one, stepping("package", 4) as begin, run, _fresh_folder(ws) as folder:
        _fill(ws, folder, config, metrics, run, begin)
        begin("log it to the run")
        model_id = log_package(ws, run, folder)
        _put_in_place(folder, ws.package)
    where = f"logged to the run ({run.url})" if model_id else "not logged: MLflow was away; `promote` does it later"
    say(f"package: {ws.package.relative_to(ws.root)}, {_size(ws.package)}, {where}.")
    return {"folder": str(ws.package), "model_id": model_id, "run_id": run.id}


def _fill(
    ws: Workspace, folder: Path, config: "ModelConfig", metrics: dict[str, float], run: Run, begin: Begin
) -> None:
    from pipelines.models.predictor import kind_of
    from pipelines.release.model_card import Facts, Lineage, Measured, Trained, write_card
    from pipelines.release.signature import signature_of

    signature = signature_of(config.spec)
    fingerprint = Fingerprint.of(ws.model, metrics, ws.params.package.model_dump() | {"recipe": ws.params.recipe})
    facts = {
        "task": config.task,
        "inputs": kind_of(config.spec),
        "manifest": config.manifest,
        "split": ws.params.evaluate.split,
        "metrics": metrics,
    }
    facts |= fingerprint.tags() | ({OWN_CODE: config.code} if config.code else {})
    begin("save the model")
    _save(ws, folder, config, signature, facts)
    begin("ask it its input example")
    parameters, example = _try_out(folder, signature)
    begin("model card")
    train = ws.metrics("train")
    card = Facts(
        params=ws.params,
        task=config.task,
        kind=kind_of(config.spec),
        parameters=parameters,
        data=Trained(manifest=config.manifest, counts=_counts(ws, config), spec=config.spec, seq_len=config.seq_len),
        measured=Measured(
            metrics=metrics, train_metrics=numbers(json.loads(train.read_text())) if train.is_file() else {}
        ),
        lineage=Lineage(run=f"`{run.id}` ({run.url})" if run.id else "none (MLflow was away)", tags=lineage_tags(ws)),
        example=example,
    )
    write_card(folder, card)


def _save(ws: Workspace, folder: Path, config: "ModelConfig", signature: "Signature", facts: Mapping[str, Any]) -> None:
    """The MLflow model, with `facts` in its metadata."""
    import mlflow.pyfunc

    from pipelines.release.signature import requirements

    with tempfile.TemporaryDirectory() as code, tempfile.TemporaryDirectory() as own:
        entry = shutil.copyfile(ENTRY, Path(own) / ENTRY.name)  # MLflow copies permissions too: these are the umask's
        needed = _copy_code(ws, config.model["name"], Path(code))
        with storage_errors(folder):
            mlflow.pyfunc.save_model(
                path=str(folder),
                python_model=str(entry),
                artifacts=_artifacts(ws.model),
                code_paths=sorted(str(path) for path in Path(code).iterdir()),
                signature=signature.signature,
                input_example=signature.example,
                pip_requirements=requirements(needed),
                metadata={METADATA: dict(facts)},
            )
            _scrub(folder)


def _artifacts(model: Path) -> dict[str, str]:
    """Name → URL of the model's files: MLflow would take a % in a path for one."""
    from pipelines.models.saved import CONFIG, DIGEST, WEIGHTS

    files = {"weights": model / WEIGHTS, "config": model / CONFIG, "digest": model / DIGEST}
    return {name: file.as_uri() for name, file in files.items() if file.is_file()}


def _scrub(folder: Path) -> None:
    """Take this machine's paths out of MLmodel; loading needs only the names."""
    from mlflow.models import Model

    described = Model.load(str(folder))
    flavor = described.flavors["python_function"]
    flavor["model_code_path"] = ENTRY.name
    for artifact in flavor["artifacts"].values():
        artifact["uri"] = artifact["path"]
    described.save(str(folder / "MLmodel"))


def _copy_code(ws: Workspace, model: str, target: Path) -> list[str]:
    """Copy Shardline's own code and the user's model into `target`; returns distributions to be installed for it."""
    for name in CODE:
        _copy_python(SOURCE / name, target / name)
    if ":" not in model:
        return []
    top = model.partition(":")[0].partition(".")[0]
    if installed := _installed().get(top, []):
        return list(installed)
    if _source_of(top, ws) is None:
        raise ParamsError(f"model.name={model!r}: no module {top!r} in {ws.root} or among the installed packages.")
    needed: set[str] = set()
    waiting, seen = [top], {"pipelines", "storage"}
    while waiting:
        name = waiting.pop()
        seen.add(name)
        source = _source_of(name, ws)
        if source is not None:
            _copy_python(source, target / source.name)
            needed.update(imported_distributions(target / source.name))
            waiting += imported_names(target / source.name) - seen
    return sorted(needed)


@cache
def _installed() -> Mapping[str, list[str]]:
    """Top-level module → the distributions that have it."""
    return packages_distributions()


def _source_of(name: str, ws: Workspace) -> Path | None:
    """The file or folder of a module of the user's own, which nobody can install: in the current folder, the recipe's,
    or on Python's path. None for others."""
    if name in sys.stdlib_module_names or name in _installed():
        return None
    spec = PathFinder.find_spec(name, [os.getcwd(), str(ws.root), *sys.path])
    if spec is None or not (spec.origin or spec.submodule_search_locations):
        return None
    return Path(next(iter(spec.submodule_search_locations or []), None) or str(spec.origin))


def imported_distributions(code: Path) -> list[str]:
    """The installed distributions that a Python file, or those of a folder, import anywhere in them."""
    found = {distribution.lower() for name in imported_names(code) for distribution in _installed().get(name, [])}
    return sorted(found - {"shardline"})  # its code is in the package


def imported_names(code: Path) -> set[str]:
    """The top-level modules that a Python file, or those of a folder, import anywhere in them."""
    names: set[str] = set()
    for file in [code] if code.is_file() else code.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names.add(node.module)
    return {name.partition(".")[0] for name in names}


def _copy_python(source: Path, target: Path) -> None:
    """A Python file, or the Python files of a folder."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_file():
        shutil.copyfile(source, target)
        return
    for file in sorted(source.rglob("*.py")):
        (target / file.relative_to(source)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target / file.relative_to(source))


def _try_out(folder: Path, signature: "Signature") -> tuple[int, str]:
    """Load the package as a server would and ask its input example: (parameters of the model, the answer as text)."""
    import mlflow.pyfunc

    path = list(sys.path)
    try:
        loaded = mlflow.pyfunc.load_model(str(folder))
        answer = loaded.predict(signature.example_input, params=signature.example_params)
        parameters = loaded.unwrap_python_model().predictor.parameters
    except Exception as error:
        raise ParamsError(
            f"The packaged model does not answer its own input example: {type(error).__name__}: {error}. "
            "Nothing was written. If the model is your own code, see that it needs nothing but its package and "
            "installed ones."
        ) from error
    finally:
        sys.path[:] = path
        for cache in folder.rglob("__pycache__"):
            shutil.rmtree(cache, ignore_errors=True)
    return parameters, answer.to_string(index=False, max_colwidth=200)


def _counts(ws: Workspace, config: "ModelConfig") -> dict[str, Any]:
    """What the shards manifest counts, if it is the one that the model learnt from."""
    zone = ws.zone("shards")
    manifest = zone.manifest() if zone.complete else None
    return dict(manifest.header.get("counts", {})) if manifest and manifest.digest == config.manifest else {}


@contextmanager
def _fresh_folder(ws: Workspace) -> Iterator[Path]:
    """An empty folder beside the package's place, and so on its file system, whatever is linked to where; what killed
    stages left there is removed."""
    beside = ws.package.parent
    beside.mkdir(parents=True, exist_ok=True)
    for stale in beside.glob(f".{ws.package.name}.*"):
        shutil.rmtree(stale, ignore_errors=True)
    with temporary_folder(beside, f".{ws.package.name}.") as folder:
        yield folder


def _put_in_place(folder: Path, target: Path) -> None:
    """Rename `folder` to `target`, whose old content goes to where `folder` was."""
    with storage_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists():
            target.rename(folder.with_name(f"{folder.name}.old"))
        folder.rename(target)
        shutil.rmtree(folder.with_name(f"{folder.name}.old"), ignore_errors=True)


def _size(folder: Path) -> str:
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    return human_bytes(size)
