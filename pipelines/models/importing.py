"""A user's own code by its import path: whose may run, and what of it a file may name.

Only what params.yaml names is imported (docs/security.md). Files that hold results or data, such as a model's
config.json, may repeat such a name; they cannot bring in another one.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pipelines.params import Params
from pipelines.params.schema.importing import import_named, importable, refuse_data, refuse_loaded
from storage.errors import ParamsError

__all__ = ["NOBODY", "Own", "import_named", "importable", "refuse_data", "refuse_loaded"]


@dataclass(frozen=True)
class Own:
    """The user's code that a file may name: import paths, looked for in `folders` (none: the current one), then among
    the installed packages. `compare` is called with a model's import path and the files that it was trained with, path
    → digest, and raises ParamsError where its code has become another."""

    paths: tuple[str, ...] = ()
    folders: tuple[Path, ...] = ()
    compare: Callable[[str, Mapping[str, str]], None] | None = None

    @classmethod
    def of(
        cls, params: Params, *folders: Path, compare: Callable[[str, Mapping[str, str]], None] | None = None
    ) -> "Own":
        """What a recipe names: its model, and the earlier ones that it trusts."""
        return cls((params.model.name, *params.promote.trusted), folders, compare)

    def check(self, name: str, where: Path, trained: Mapping[str, str]) -> None:
        """Raises ParamsError when the file `where` names a model that is neither Shardline's own nor one of these, or
        one whose code isn't the files `trained` any more."""
        if ":" not in name:
            return
        if name in self.paths:
            if self.compare is not None:
                self.compare(name, trained)
            return
        named = [path for path in self.paths if ":" in path]
        raise ParamsError(
            f"{where} names the model {name!r}, which was not imported: code runs only where params.yaml names it, in "
            f"model.name or promote.trusted ({', '.join(named) or 'no code of your own there'}). If it is your own "
            "code, name it there; if not, find out who wrote that file."
        )


NOBODY = Own()
