"""What can be told before any stage runs (`check`) and before training (`check_shards`), and would else come after
hours of work."""

import re
import sys
from importlib.util import find_spec
from pathlib import Path, PurePosixPath

import yaml

from pipelines.evaluation.metrics.names import TASKS, TaskName, check_gate, check_metric_names
from pipelines.evaluation.splits import check_split
from pipelines.params import FILENAME, Params
from pipelines.params.data import READERS
from pipelines.runtime.own_code import code_of, import_paths
from pipelines.tracking.names import check_folder
from pipelines.workspace import Workspace
from storage.errors import ParamsError
from storage.redact import mask


def check(ws: Workspace) -> None:
    """Raises ParamsError for a folder that MLflow can't read, for text that DVC can't, for code of the user's that
    isn't there, and for figures and splits that later stages would ask for in vain."""
    check_folder(ws)
    file, params = ws.root / FILENAME, ws.params
    _refuse_bare_colons(file, file.read_text())
    for setting, path in import_paths(ws.params):
        _find(setting, path, ws.root)
    _refuse_data(ws)
    _check_shares(params)
    check_metric_names(params)
    check_gate(params, _likely_tasks(params), None, [name for name, _ in params.ingest.by_domain if name is not None])


def check_shards(ws: Workspace) -> None:
    """Of the shards that are to be trained on. Raises DataError where the evaluation would have no samples, ParamsError
    for a gate or a metric that doesn't fit them; FormatError without shards."""
    manifest, params = ws.zone("shards").manifest(), ws.params
    check_split(manifest, params.evaluate.split)
    if params.train.checkpoints.keep_best and "val" not in manifest.splits:
        raise _vain(f"train.checkpoints.keep_best={params.train.checkpoints.keep_best}", "the shards have none")
    from pipelines.evaluation.domains import domains_of
    from pipelines.evaluation.metrics.custom import try_out
    from pipelines.models import ModelConfig, task_of

    spec = manifest.header["spec"]
    task = task_of(spec).name
    domains = [name for name in domains_of(manifest, params.evaluate.split) if name is not None]
    check_gate(params, [task], spec, domains)
    try_out(params, ModelConfig(params.model.model_dump(), spec, None, task, manifest.digest))


def _check_shares(params: Params) -> None:
    """Raises ParamsError for a split that is needed and gets no share of the samples."""
    shares, train = params.curate.split, params.train
    if not shares.train:
        raise ParamsError("curate.split.train=0: there would be nothing to learn from. Raise it.")
    if not getattr(shares, params.evaluate.split):
        raise ParamsError(
            f"evaluate.split={params.evaluate.split}, but curate.split.{params.evaluate.split}=0: there would be "
            "nothing to measure the model on. Raise that share, or set evaluate.split to the other split."
        )
    for setting, value in (("patience", train.patience), ("checkpoints.keep_best", train.checkpoints.keep_best)):
        if value and not shares.val:
            raise _vain(f"train.{setting}={value}", "curate.split.val=0")


def _vain(setting: str, why: str) -> ParamsError:
    return ParamsError(f"{setting} needs a val split, but {why}: raise curate.split.val, or leave that setting out.")


def _likely_tasks(params: Params) -> tuple[TaskName, ...]:
    """What the data will set as a task, by the reader or by the sources' suffixes; all where these don't say."""
    reader = READERS.name_of(params.curate.reader)
    if ":" in reader:
        return TASKS
    if reader == "auto":
        sources = [source for _, source in params.ingest.each]
        names = [PurePosixPath(source) for source in sources if isinstance(source, str)]
        if len(names) < len(sources) or any(
            not re.fullmatch(r"\.\w+", name.suffix) or "::" in str(name) for name in names
        ):
            return TASKS
        from pipelines.ingest.readers import detect

        reader = detect(map(str, names))
    if READERS.members[reader].kind == "text":  # type: ignore[attr-defined]
        return ("language",)
    return ("classification",) if params.curate.target == "class" else ("regression",)


def _refuse_bare_colons(file: Path, text: str) -> None:
    """DVC's parser takes a colon inside {} or [] for a key's end, where ours and YAML 1.2 know what s3://… means."""
    depth = 0
    for token in yaml.scan(text, yaml.SafeLoader):
        depth += isinstance(token, yaml.FlowMappingStartToken | yaml.FlowSequenceStartToken)
        depth -= isinstance(token, yaml.FlowMappingEndToken | yaml.FlowSequenceEndToken)
        if depth and isinstance(token, yaml.ScalarToken) and token.plain and ":" in token.value:
            raise ParamsError(
                f"{file}, line {token.start_mark.line + 1}: DVC cannot read {mask(token.value)} between braces or "
                "brackets, because of the colon. Write it on a line of its own: `name: value`, in a list `- value`."
            )


def _refuse_data(ws: Workspace) -> None:
    """Own code below data/, which its stage would refuse to import (a model), or which is imported by such code."""
    files = {file for files in code_of(ws).values() for file in files if "data" in Path(file).parts}
    if files:
        from pipelines.models.importing import refuse_data

        for file in sorted(files):
            refuse_data(ws.root / file, "your own code", (ws.root, ws.project))


def _find(setting: str, path: str, folder: Path) -> None:
    """Without importing it: that takes seconds, and may need what only a training's machine has."""
    module, colon, _ = path.partition(":")
    package = module.partition(".")[0]
    if not colon or package in sys.modules:
        return
    sys.path.insert(0, str(folder))
    try:
        found = find_spec(package)
    finally:
        sys.path.remove(str(folder))
    if found is None:
        raise ParamsError(
            f"{setting}={path!r}: no module {package!r} in {folder} or among the installed packages. Check the "
            f"spelling; a file {package}.py beside {FILENAME} is found."
        )
