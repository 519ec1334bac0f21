"""Parameters that name environment variables, so that one params.yaml serves every machine."""

import os
import re
from collections.abc import Mapping

from storage.errors import ParamsError


def expand(name: str, text: str | None, environment: Mapping[str, str] = os.environ) -> str | None:
    """`text` with ${NAME} replaced from the environment. Raises ParamsError for one that isn't there."""

    def value(match: re.Match[str]) -> str:
        if match[1] not in environment:
            raise ParamsError(f"{name}={text!r}: the environment has no {match[1]}. Set it, or write the value.")
        return environment[match[1]]

    return None if text is None else re.sub(r"\$\{(\w+)\}", value, text)
