"""params.yaml → Params, or an error that names the parameter."""

import re
from pathlib import Path

import yaml
from pydantic import BaseModel, ValidationError

from pipelines.params.recipe import Params
from pipelines.params.suggestion import suggestion
from storage.errors import ParamsError

FILENAME = "params.yaml"


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
        place = ".".join(str(part) for part in item["loc"])
        if item["type"] == "extra_forbidden":
            lines.append(f"  {place}: unknown parameter{suggestion(str(item['loc'][-1]), _siblings(item['loc']))}")
        elif item["type"] == "missing":
            section = _section(item["loc"])
            hint = f"Add `{place}: {{}}` for its defaults" if section and _optional(section) else "It has no default"
            lines.append(f"  {place}: missing. {hint}. {_description(item['loc'])}".rstrip())
        else:
            message = item["msg"].removeprefix("Value error, ")
            given = "" if isinstance(item["input"], dict) else f" (given: {item['input']!r})"
            lines.append(f"  {place}: {message}{given}. {_description(item['loc'])}".rstrip())
    lines.append("Run `shardline params` for all parameters with their defaults and ranges.")
    return "\n".join(lines)


def _section(location: tuple[int | str, ...]) -> type[BaseModel] | None:
    model: type[BaseModel] = Params
    for part in location:
        field = model.model_fields.get(str(part))
        annotation = field.annotation if field else None
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return None
        model = annotation
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
