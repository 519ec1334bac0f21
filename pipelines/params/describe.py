"""What `shardline params` lists."""

import re
from typing import Any

from pydantic import BaseModel

from pipelines.params.recipe import Params
from pipelines.params.schema.choice import choices, entry_of, section_of
from pipelines.params.schema.registry import Registry


def describe() -> list[tuple[str, str, str, str]]:
    """(name, type, default, description) of every parameter, in order."""
    rows: list[tuple[str, str, str, str]] = []
    families: dict[str, Registry] = {}

    def visit(model: type[BaseModel], prefix: str, of: str = "") -> None:
        for name, field in model.model_fields.items():
            annotation = field.annotation
            if of and name == "name":
                continue
            if isinstance(annotation, type) and issubclass(annotation, BaseModel):
                visit(annotation, f"{prefix}{name}.")
                continue
            options = choices(annotation)
            family = next((meta for meta in field.metadata if isinstance(meta, Registry)), None)
            if family:
                families[family.args] = family
            names = [*family.words, *family.members, family.own] if family else list(options)
            shown = " | ".join(names) or _type(annotation)
            limits = ", ".join(
                f"{sign} {getattr(meta, attribute)}"
                for meta in field.metadata
                for attribute, sign in (("ge", "≥"), ("gt", ">"), ("le", "≤"), ("lt", "<"))
                if hasattr(meta, attribute)
            )
            value: Any = None if field.is_required() else field.get_default(call_default_factory=False)
            default = "required" if field.is_required() else repr(value.name if options else value)
            rows.append((prefix + name + of, f"{shown} {limits}".strip(), default, field.description or ""))
            for option, section in options.items():
                visit(section, f"{prefix}{name}.", f" ({option})")
            if kept := families.pop(prefix + name, None) or families.pop(f"{prefix}{name}.args", None):
                for member, section in kept.members.items():
                    visit(section, f"{kept.args}.", f" ({member})")
            if entry := entry_of(annotation):
                visit(entry, f"{prefix}{name}.", " (each)")
            if inner := section_of(annotation):
                visit(inner, f"{prefix}{name}.")

    visit(Params, "")
    return rows


def _type(annotation: Any) -> str:
    """As a person writes it: without limits of elements and without modules."""
    if section := section_of(annotation):
        return f"{section.__name__} | None"
    shown = annotation.__name__ if isinstance(annotation, type) else str(annotation)
    shown = re.sub(r"[\w.]*Annotated\[(\w+), FieldInfo\(.*?\]\)\]", r"\1", shown)
    return re.sub(r"\b[a-z_]\w*\.(?:[a-z_]\w*\.)*(?=\w)", "", shown).replace("NoneType", "None")
