"""A stream of settings by their names alone, so that a test may vary any one of them over what others set."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from pipelines.streaming import Stream
from pipelines.streaming.options import KINDS


def parts(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The keywords of a `Stream` that has these `settings`: fields of parts are put into their part."""
    left, found = dict(settings), {}
    for name, kind in KINDS.items():
        own = {field.name: left.pop(field.name) for field in fields(kind) if field.name in left}
        found |= {name: kind(**own)} if own else {}
    return left | found


def flat_stream(zone: Any, manifest: Any, **settings: Any) -> Stream:
    return Stream(zone, manifest, **parts(settings))
