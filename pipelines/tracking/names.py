"""Names as MLflow takes them. Those of metrics hold what data calls its classes: `<=50K`, `C++`, `n/a`."""

import re
from posixpath import normpath

LENGTH = 250  # characters that MLflow allows
_REFUSED = re.compile(r"[^/\w.\- :]")  # all but letters, digits and these


def mlflow_name(name: str) -> str:
    """`name` with a code for each character that MLflow refuses: test.f1.<=50K → test.f1._3c_3d50K. As it is, where
    MLflow takes it. One refused name would take all that is sent with it along."""
    clean = _REFUSED.sub(_code, name)[:LENGTH]
    if normpath(clean) != clean or clean.startswith(("/", "..")):  # it must be a path, and no detour
        clean = clean.replace("/", "_2f")[:LENGTH]
    return "_2e" + clean[1 : LENGTH - 2] if clean in ("", ".") or clean.startswith("..") else clean


def _code(found: re.Match[str]) -> str:
    return f"_{ord(found[0]):x}"
