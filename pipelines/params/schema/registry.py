"""A parameter that names one of a family, such as `curate.reader`: one of ours, or a class of the user's own.

    reader: csv

    reader:
      name: own_reader:FixedWidth
      args: {widths: [8, 3]}

Or by two parameters, such as `model.name` and `model.args`.

A member is a `Section` whose fields are its own parameters (`args`) and whose methods do the work. Ours lie in a
folder, a module each, and are found there: a new one is a new file. Its module imports nothing heavy, so that
parameters can be checked and listed; methods import what they need. One of the user's own is imported by the stage that
uses it, and by nobody else.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any, TypeVar

from pydantic import ValidationError, ValidationInfo

from pipelines.params.schema.names import suggestion
from pipelines.params.schema.section import Section
from storage.errors import ParamsError

SectionT = TypeVar("SectionT", bound=Section)


class Named(Section):
    """A member with parameters of its own."""

    name: str
    """One of ours, or an import path package.module:Class."""
    args: dict[str, Any] = {}
    """Its own parameters."""


@dataclass(frozen=True)
class Registry:
    """A family: `setting` is the parameter that names a member, `package` the folder with ours, `words` what the
    parameter may say besides, `apart` the parameter that holds a member's own where that isn't args beside the name,
    `own` what an import path names."""

    setting: str
    package: str
    words: tuple[str, ...] = ()
    apart: str = ""
    own: str = "package.module:Class"

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
        named = {getattr(member, "name", None): member for member in found}
        return {name: named[name] for name in sorted(filter(None, named))}

    @property
    def args(self) -> str:
        """The parameter that holds a member's own."""
        return self.apart or f"{self.setting}.args"

    @staticmethod
    def name_of(value: str | Named) -> str:
        """The name in the parameter's value."""
        return value if isinstance(value, str) else value.name

    def check_name(self, name: str) -> str:
        """`name`, for pydantic. Raises ValueError where it names nobody. What is the user's own is not imported."""
        return self._known(name, self.words)

    def check_args(self, beside: str) -> Callable[[dict[str, Any], ValidationInfo], dict[str, Any]]:
        """For pydantic: takes a member's own parameters, whose name is in the field `beside`, before them. Raises
        ValueError where the member is one of ours and they are wrong."""

        def check(args: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
            name = info.data.get(beside, ":")  # none: refused already
            if name in self.members:
                self._made(self.members[name], args)
            elif args and ":" not in name:
                raise ValueError(f"{self.setting}={name} takes none")
            return args

        return check

    def check(self, value: str | Named) -> str | Named:
        """`value`, for pydantic. Raises ValueError where it names nobody, or one of ours with wrong parameters. What is
        the user's own is not imported."""
        name = self._known(self.name_of(value), self.words if isinstance(value, str) else ())
        if name in self.members:
            self._made(self.members[name], self._args_of(value))
        return value

    def find(self, name: str, folders: Sequence[Path] = ()) -> Any:
        """The member `name`, or what an import path names: looked for in `folders` first. Raises ParamsError."""
        if ":" in name:
            from pipelines.params.schema.importing import import_named

            return import_named(name, self.setting, folders)
        try:
            return self.members[self._known(name, ())]
        except ValueError as error:
            raise ParamsError(f"{self.setting}={name!r}: {error}") from error

    def make(self, value: str | Named, base: type[Any], folders: Sequence[Path]) -> Any:
        """The member that `value` names, of class `base`; one of the user's own is looked for in `folders` first.
        Raises ParamsError."""
        name = self.name_of(value)
        member = self.find(name, folders)
        if not (isinstance(member, type) and issubclass(member, base)):
            raise ParamsError(
                f"{self.setting}={name!r} is no class that derives from {base.__module__}.{base.__name__}"
            )
        return self.with_args(member, self._args_of(value))

    def with_args(self, member: type[SectionT], args: Mapping[str, Any]) -> SectionT:
        """`member` with parameters of its own. Raises ParamsError."""
        try:
            return self._made(member, args)
        except ValueError as error:
            raise ParamsError(str(error)) from error

    @staticmethod
    def _args_of(value: str | Named) -> dict[str, Any]:
        return {} if isinstance(value, str) else value.args

    def _known(self, name: str, words: tuple[str, ...]) -> str:
        if ":" not in name and name not in words and name not in self.members:
            known = [*self.words, *self.members]
            raise ValueError(f"no such name{suggestion(name, known)} One of your own is named {self.own}")
        return name

    def _made(self, member: type[SectionT], args: Mapping[str, Any]) -> SectionT:
        try:
            return member.model_validate(args)
        except ValidationError as error:
            raise ValueError("\n".join(self._why(member, item) for item in error.errors(include_url=False))) from error

    def _why(self, member: type[Section], item: Any) -> str:
        place = ".".join(map(str, (self.args, *item["loc"])))
        if item["type"] == "extra_forbidden":
            fields = list(member.model_fields)
            near = suggestion(str(item["loc"][-1]), fields) if fields else ". It has none."
            return f"{place}: unknown parameter of {member.__name__}{near}"
        whole = item["type"] == "missing" or not item["loc"]
        given = "" if whole else f" (given: {item['input']!r})"
        return f"{place}: {item['msg'].removeprefix('Value error, ')}{given}"
