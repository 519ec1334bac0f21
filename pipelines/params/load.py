"""params.yaml → Params, or an error that names the parameter."""

import re
from pathlib import Path

import yaml
from pydantic import BaseModel, ValidationError

from pipelines.params.recipe import Params
from pipelines.params.schema.choice import choices, section_of
from pipelines.params.schema.names import suggestion
from pipelines.params.schema.section import FILENAME
from storage.errors import ParamsError

#: Parameters that were renamed: former name → present one. A file that has a former one is told so.
RENAMED = {"train.network": "train.communication"}


class _Loader(yaml.SafeLoader):
    """YAML 1.2's numbers, as DVC reads them: 1e-3 is a number, which YAML 1.1 takes for a string."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d[\d_]*)(\.[\d_]*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def load_params(file: Path = Path(FILENAME)) -> Params:
    """The parameters in `file`. Raises ParamsError that names the file, the parameter and what it may be."""
    try:
        values = yaml.load(file.read_text(), _Loader)  # noqa: S506 - a SafeLoader
    except FileNotFoundError:
        raise ParamsError(
            f"{file.resolve()}: no such file. Run shardline in a folder with a params.yaml, or name a recipe with "
            "--recipe (see `shardline recipes`)."
        ) from None
    except yaml.YAMLError as error:
        raise ParamsError(f"{file}: not valid YAML: {error}") from error
    if not isinstance(values, dict):
        raise ParamsError(f"{file}: expected sections such as `train:`, found {type(values).__name__}.")
    try:
        return Params.model_validate(values)
    except ValidationError as error:
        raise ParamsError(_explain(file, error)) from error


def _explain(file: Path, error: ValidationError) -> str:
    lines = [f"{file}: {error.error_count()} invalid parameter{'s' * (error.error_count() > 1)}"]
    for item in error.errors(include_url=False):
        place, option = _place(item["loc"])
        if item["type"] == "extra_forbidden" and place in RENAMED:
            lines.append(f"  {place}: is called {RENAMED[place]} now. Rename it; its values mean the same")
        elif item["type"] == "extra_forbidden":
            near = suggestion(str(item["loc"][-1]), _siblings(item["loc"]))
            lines.append(f"  {place}: unknown parameter{option and f' of {option}'}{near}")
        elif item["type"] == "union_tag_invalid":
            known = [name.strip("'") for name in item["ctx"]["expected_tags"].split(", ")]
            lines.append(f"  {place}: unknown name {item['ctx']['tag']!r}{suggestion(item['ctx']['tag'], known)}")
        elif item["type"] == "union_tag_not_found":
            lines.append(f"  {place}.name: missing. One of {', '.join(_choices(item['loc']))}")
        elif item["type"] == "missing":
            section = _section(item["loc"])
            hint = f"Add `{place}: {{}}` for its defaults" if section and _optional(section) else "It has no default"
            lines.append(f"  {place}: missing. {hint}. {_description(item['loc'])}".rstrip())
        else:
            message = item["msg"].removeprefix("Value error, ")
            given = "" if isinstance(item["input"], dict) else f" (given: {item['input']!r})"
            end = "" if message.endswith((".", "?")) else "."
            where = f"{place}: " if place and not message.startswith(place) else ""
            told = f"{where}{message}{given}{end} {_description(item['loc'])}".rstrip()
            lines.append("  " + told.replace("\n", "\n  "))
    lines.append("Run `shardline params` for all parameters with their defaults and ranges.")
    return "\n".join(lines)


def _place(location: tuple[int | str, ...]) -> tuple[str, str]:
    """The parameter's dotted name, and the option whose it is where it is one of several: pydantic puts that into the
    place, the file doesn't have it."""
    parts, option = list(location), ""
    for index in reversed(range(1, len(location))):
        if location[index] in _choices(location[:index]):
            option = str(parts.pop(index))
    return ".".join(str(part) for part in parts), option


def _choices(location: tuple[int | str, ...]) -> dict[str, type[BaseModel]]:
    section = _section(location[:-1])
    field = section.model_fields.get(str(location[-1])) if section else None
    return choices(field.annotation) if field else {}


def _section(location: tuple[int | str, ...]) -> type[BaseModel] | None:
    model: type[BaseModel] = Params
    options: dict[str, type[BaseModel]] = {}
    for part in location:
        if str(part) in options:
            model, options = options[str(part)], {}
            continue
        field = model.model_fields.get(str(part))
        annotation = field.annotation if field else None
        options = choices(annotation)
        if options:
            continue
        section = section_of(annotation)
        if section is None:
            return None
        model = section
    return model


def _optional(section: type[BaseModel]) -> bool:
    return not any(field.is_required() for field in section.model_fields.values())


def _siblings(location: tuple[int | str, ...]) -> list[str]:
    section = _section(location[:-1])
    return list(section.model_fields) if section else []


def _description(location: tuple[int | str, ...]) -> str:
    section = _section(location[:-1]) if location else None
    field = section.model_fields.get(str(location[-1])) if section else None
    return (field.description or "") if field else ""
