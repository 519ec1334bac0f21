"""Parameters that are one of several sections, told apart by their `name`: `optimizer: {name: sgd, momentum: 0.9}`."""

from types import UnionType
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel, BeforeValidator


def _by_name(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


#: In an annotation: `sgd` alone is short for `{name: sgd}`.
SHORT = BeforeValidator(_by_name)


def choices(annotation: Any) -> dict[str, type[BaseModel]]:
    """Name → section of a field's annotation; empty where it is no such choice."""
    parts = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else ()
    parts = tuple(part for part in parts if part is not type(None))
    sections = [part for part in parts if isinstance(part, type) and issubclass(part, BaseModel)]
    if not sections or sections != [*parts] or not all("name" in section.model_fields for section in sections):
        return {}
    return {section.model_fields["name"].default: section for section in sections}


def section_of(annotation: Any) -> type[BaseModel] | None:
    """The section of an annotation `Section` or `Section | None`; None for any other."""
    parts = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    rest = [part for part in parts if part is not type(None)]
    if len(rest) == 1 and isinstance(rest[0], type) and issubclass(rest[0], BaseModel):
        return rest[0]
    return None


def entry_of(annotation: Any) -> type[BaseModel] | None:
    """The section that an entry of a list may be, `list[str | Section]`; None for any other annotation."""
    (entry,) = get_args(annotation) if get_origin(annotation) is list else (None,)
    parts = get_args(entry) if get_origin(entry) in (Union, UnionType) else (entry,)
    return next((part for part in parts if isinstance(part, type) and issubclass(part, BaseModel)), None)
