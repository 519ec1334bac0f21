"""Each line of `--help`, of `shardline params` and of the flows' forms is understood by itself."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
import typer

from flows.tasks import parameters
from pipelines.cli import app
from pipelines.params import describe

#: What leans on a line above it: "Of so many.", "As of the node cache", "The same, as an option.", "… of so many".
LEANS = re.compile(
    r"^(Of|As|At|Its|Those|These|Whose|After|The same|Some of)\b|^…|…$|\bso (many|much|long)\b|\bas (of|above)\b"
)


def commands(command: Any, name: str = "shardline") -> Iterator[tuple[str, str]]:
    """(name, help) of a command, of its arguments and options, and of the commands below it."""
    yield name, command.help or ""
    for parameter in command.params:
        yield f"{name} {parameter.name}", getattr(parameter, "help", None) or ""
    for word, below in getattr(command, "commands", {}).items():
        yield from commands(below, f"{name} {word}")


HELP = list(commands(typer.main.get_command(app)))
PARAMETERS = [(name, text) for name, _, _, text in describe()]
FORMS = [(name, text) for name, text in vars(parameters).items() if re.match(r"_[A-Z]+$", name)]


@pytest.mark.parametrize("lines", [HELP, PARAMETERS, FORMS], ids=["help", "params", "forms"])
def test_each_line_is_understood_by_itself(lines: list[tuple[str, str]]) -> None:
    assert len(lines) > 5
    assert [(name, text) for name, text in lines if len(text.split()) < 3 or LEANS.search(text)] == []
