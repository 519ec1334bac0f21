"""What `repro` can tell of a recipe's params.yaml before any stage runs, and would else come after hours of work."""

import sys
from importlib.util import find_spec
from pathlib import Path

import yaml

from pipelines.own_code import import_paths
from pipelines.params import FILENAME
from pipelines.workspace import Workspace
from storage.errors import ParamsError
from storage.secret import mask


def check(ws: Workspace) -> None:
    """Raises ParamsError for text that DVC can't read, and for code of the user's that isn't there."""
    file = ws.root / FILENAME
    _refuse_bare_colons(file, file.read_text())
    for setting, path in import_paths(ws.params):
        _find(setting, path, ws.root)


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
