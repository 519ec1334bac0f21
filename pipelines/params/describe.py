"""What `shardline params` lists."""

from pydantic import BaseModel

from pipelines.params.recipe import Params


def describe() -> list[tuple[str, str, str, str]]:
    """(name, type, default, description) of every parameter, in order."""
    rows: list[tuple[str, str, str, str]] = []

    def visit(model: type[BaseModel], prefix: str) -> None:
        for name, field in model.model_fields.items():
            annotation = field.annotation
            if isinstance(annotation, type) and issubclass(annotation, BaseModel):
                visit(annotation, f"{prefix}{name}.")
                continue
            shown = getattr(annotation, "__name__", "") if isinstance(annotation, type) else str(annotation)
            shown = shown.replace("typing.", "").replace("NoneType", "None")
            limits = ", ".join(
                f"{sign} {getattr(meta, attribute)}"
                for meta in field.metadata
                for attribute, sign in (("ge", "≥"), ("gt", ">"), ("le", "≤"), ("lt", "<"))
                if hasattr(meta, attribute)
            )
            default = "required" if field.is_required() else repr(field.get_default(call_default_factory=False))
            rows.append((prefix + name, f"{shown} {limits}".strip(), default, field.description or ""))

    visit(Params, "")
    return rows
