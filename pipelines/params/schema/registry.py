"""A parameter that names one of a family, such as `curate.reader`: one of ours, or a class of the user's own.

    reader: csv

    reader:
      name: own_reader:FixedWidth
      args: {widths: [8, 3]}

A member is a `Section` whose fields are its own parameters (`args`) and whose methods do the work. Ours lie in a
folder, a module each, and are found there: a new one is a new file. Its module imports nothing heavy, so that
parameters can be checked and listed; methods import what they need. One of the user's own is imported by the stage that
uses it, and by nobody else.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

from pydantic import ValidationError

from pipelines.params.schema.names import suggestion
from pipelines.params.schema.section import Section
from storage.errors import ParamsError


class Named(Section):
    """A member with parameters of its own."""

    name: str
    """One of ours, or an import path package.module:Class."""
    args: dict[str, Any] = {}
    """Its own parameters."""


@dataclass(frozen=True)
class Registry:
    """A family: `setting` is the parameter that names a member, `package` the folder with ours, `words` what the
    parameter may say besides."""

    setting: str
    package: str
    words: tuple[str, ...] = ()

    @cached_property
    def members(self) -> dict[str, type[Section]]:
        """Ours, by `name`: of each module in the folder the class that is defined there and has one."""
        folder = import_module(self.package).__path__
        modules = [import_module(f"{self.package}.{module.name}") for module in iter_modules(folder)]
        classes = [(module.__name__, value) for module in modules for value in vars(module).values()]
        found = [
            value for module, value in classes
            if isinstance(value, type) and issubclass(value, Section) and value.__module__ == module
        ]  # fmt: skip
        return {member.name: member for member in sorted(found, key=lambda member: member.name)}  # type: ignore[attr-defined]

    @staticmethod
    def name_of(value: str | Named) -> str:
        """The name in the parameter's value."""
        return value if isinstance(value, str) else value.name

    def check(self, value: str | Named) -> str | Named:
        """`value`, for pydantic. Raises ValueError where it names nobody, or one of ours with wrong parameters. What is
        the user's own is not imported."""
        name = self.name_of(value)
        if ":" in name or (name in self.words and isinstance(value, str)):
            return value
        known = [*self.words, *self.members]
        if name not in self.members:
            raise ValueError(f"no such name{suggestion(name, known)} One of your own is named package.module:Class")
        self._made(self.members[name], value)
        return value

    def make(self, value: str | Named, base: type[Any], folders: Sequence[Path]) -> Any:
        """The member that `value` names, of class `base`; one of the user's own is looked for in `folders` first.
        Raises ParamsError."""
        name = self.name_of(value)
        if ":" in name:
            from pipelines.params.schema.importing import import_named

            member = import_named(name, self.setting, folders)
        else:
            member = self.members[name]
        if not (isinstance(member, type) and issubclass(member, base)):
            raise ParamsError(
                f"{self.setting}={name!r} is no class that derives from {base.__module__}.{base.__name__}"
            )
        try:
            return self._made(member, value)
        except ValueError as error:
            raise ParamsError(str(error)) from error

    def _made(self, member: type[Section], value: str | Named) -> Section:
        args = {} if isinstance(value, str) else value.args
        try:
            return member.model_validate(args)
        except ValidationError as error:
            raise ValueError("\n".join(self._why(member, item) for item in error.errors(include_url=False))) from error

    def _why(self, member: type[Section], item: Any) -> str:
        place = ".".join(map(str, (self.setting, "args", *item["loc"])))
        if item["type"] == "extra_forbidden":
            fields = list(member.model_fields)
            near = suggestion(str(item["loc"][-1]), fields) if fields else ". It has none."
            return f"{place}: unknown parameter of {member.__name__}{near}"
        given = "" if item["type"] == "missing" else f" (given: {item['input']!r})"
        return f"{place}: {item['msg'].removeprefix('Value error, ')}{given}"
