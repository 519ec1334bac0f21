"""Names as MLflow takes them, and in the groups that its UI makes of them: by what stands before the last slash.

Files (plots/train.csv, metrics/evaluate.json) keep their own names, which parameters and gates refer to.
"""

import re
from collections.abc import Mapping
from posixpath import normpath
from urllib.parse import unquote

from pipelines.workspace import Workspace
from storage.errors import ParamsError

LENGTH = 250  # characters that MLflow allows
_REFUSED = re.compile(r"[^/\w.\- :]")  # all but letters, digits and these
#: Curves by what they tell of: train_loss → train/loss.
_GROUPS = {
    re.compile(r"(train|val|stream)_(.+)"): r"\1/\2",
    re.compile(r"(lr|gradient_norm|batch_size)"): r"train/\1",
    re.compile(r"(padding|cut)_share"): r"stream/\1_share",
    re.compile(r"(\w+_per_second|wait_share)"): r"speed/\1",
    re.compile(r"communication_share|sent_mb_per_step"): r"communication/\g<0>",
    re.compile(r"(seconds|cost|energy_kwh)"): r"spent/\1",
}


def grouped(name: str) -> str:
    """The name of a curve, in its group; any other name as it is."""
    for pattern, target in _GROUPS.items():
        if found := pattern.fullmatch(name):
            return found.expand(target)
    return name


def result_name(split: str, name: str) -> str:
    """A figure of metrics/evaluate.json: accuracy → test/accuracy, domains.code.loss → test/domains/code/loss."""
    return f"{split}/{name.replace('.', '/')}"


def results(metrics: Mapping[str, float]) -> dict[str, float]:
    """Those of an evaluation's flat figures that say how good the model is. The others, baselines and counts, are the
    same for every model of a data version: they make tags, not charts of one bar."""
    return {name: value for name, value in metrics.items() if isinstance(value, float) and not _is_baseline(name)}


def constants(metrics: Mapping[str, float]) -> dict[str, str]:
    """The others, as tags; domains' and classes' are left to metrics/evaluate.json."""
    of_model = results(metrics)
    own = {name: value for name, value in metrics.items() if name not in of_model and not name.startswith("domains.")}
    return {name: f"{value:.6g}" if isinstance(value, float) else str(value) for name, value in own.items()}


def _is_baseline(name: str) -> bool:
    return "baseline" in name.split(".")


def mlflow_name(name: str) -> str:
    """`name` with a code for each character that MLflow refuses: test.f1.<=50K → test.f1._3c_3d50K. As it is, where
    MLflow takes it. One refused name would take all that is sent with it along."""
    clean = _REFUSED.sub(_code, name)[:LENGTH]
    if normpath(clean) != clean or clean.startswith(("/", "..")):  # it must be a path, and no detour
        clean = clean.replace("/", "_2f")[:LENGTH]
    return "_2e" + clean[1 : LENGTH - 2] if clean in ("", ".") or clean.startswith("..") else clean


def _code(found: re.Match[str]) -> str:
    return f"_{ord(found[0]):x}"


def check_folder(ws: Workspace) -> None:
    """Raises ParamsError for a folder whose packages MLflow could neither make nor load: it decodes a path as if it
    were a URL, and doesn't take the URL either."""
    if escape := re.search("%[0-9A-Fa-f]{2}", str(ws.root)):
        folder = next(part for part in (*reversed(ws.root.parents), ws.root) if escape[0] in part.name)
        raise ParamsError(
            f"{folder}: MLflow takes {escape[0]!r} in a folder's name for the character {unquote(escape[0])!r}, and "
            "would not find the packaged model in it. Rename that folder."
        )
