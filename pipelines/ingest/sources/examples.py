"""Data that every machine has: `{name}` in a source stands for a folder, made at first use.

{python_stdlib}           the standard library of the running interpreter
{sklearn_digits}          1,797 scanned digits, 8 x 8 grey PNG files in a folder for each class
{sklearn_breast_cancer}   breast_cancer.csv, 569 rows, 30 features and the column `target`
"""

import re
import sysconfig
from collections.abc import Callable
from pathlib import Path

from pipelines.params import suggestion
from storage.atomic import temporary_folder
from storage.errors import SourceError


def expand(source: str, state: Path) -> str:
    """Replace `{name}` by its folder. Raises SourceError for a name that isn't known."""

    def folder(match: re.Match[str]) -> str:
        name = match[1]
        if name not in _MAKERS:
            raise SourceError(f"ingest.sources: unknown sample data {{{name}}}{suggestion(name, list(_MAKERS))}")
        return str(_MAKERS[name](state / "samples" / name))

    return re.sub(r"\{(\w+)\}", folder, source)


def _python_stdlib(_: Path) -> Path:
    return Path(sysconfig.get_path("stdlib"))


def _once(make: Callable[[Path], None]) -> Callable[[Path], Path]:
    """Make a folder in a temporary place and rename it, so that it is whole or absent."""

    def folder(target: Path) -> Path:
        if not target.is_dir():
            target.parent.mkdir(parents=True, exist_ok=True)
            with temporary_folder(target.parent, f".{target.name}.") as temporary:
                make(temporary)
                temporary.rename(target)
        return target

    return folder


def _digits(folder: Path) -> None:
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    for index, (image, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        file = folder / str(label) / f"{index:04d}.png"
        file.parent.mkdir(exist_ok=True)
        Image.fromarray((image * 255 / 16).round().astype("uint8")).save(file)  # 0…16 → 0…255


def _breast_cancer(folder: Path) -> None:
    from sklearn.datasets import load_breast_cancer

    load_breast_cancer(as_frame=True).frame.to_csv(folder / "breast_cancer.csv", index=False)


_MAKERS: dict[str, Callable[[Path], Path]] = {
    "python_stdlib": _python_stdlib,
    "sklearn_digits": _once(_digits),
    "sklearn_breast_cancer": _once(_breast_cancer),
}
