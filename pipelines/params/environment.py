"""Parameters that name environment variables, so that one params.yaml serves every machine."""

import os
import re
from collections.abc import Mapping
from typing import overload

from storage.errors import ParamsError
from storage.redact import mask


@overload
def expand(name: str, text: str, environment: Mapping[str, str] = os.environ) -> str: ...
@overload
def expand(name: str, text: None, environment: Mapping[str, str] = os.environ) -> None: ...
@overload
def expand(name: str, text: str | None, environment: Mapping[str, str] = os.environ) -> str | None: ...
def expand(name: str, text: str | None, environment: Mapping[str, str] = os.environ) -> str | None:
    """`text` of the parameter `name` with ${NAME} replaced from the environment. Raises ParamsError for one that isn't
    there."""

    def value(match: re.Match[str]) -> str:
        if match[1] in environment:
            return environment[match[1]]
        shown = mask(text or "")
        raise ParamsError(f"{name}={shown!r}: the environment has no {match[1]}. Set it, or write the value.")

    return None if text is None else re.sub(r"\$\{(\w+)\}", value, text)
