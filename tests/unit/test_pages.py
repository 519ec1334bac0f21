"""What the pages say exists: parameters, options, links, and YAML that DVC can read."""

import re
from pathlib import Path

import pytest
import typer
from conftest import REPOSITORY
from ruamel.yaml import YAML

from pipelines.cli import app
from pipelines.params import describe

PAGES = [
    *(REPOSITORY / f"{name}.md" for name in ("README", "CONTRIBUTING", "SECURITY")),
    *sorted(REPOSITORY.glob("docs/**/*.md")),
]
NAMES = {row[0].partition(" (")[0] for row in describe()}
SECTIONS = {name.partition(".")[0] for name in NAMES}
OPEN = ("model.args", "train.args", "train.loss_args", "stream.mixture", "lake.zones")  # whose keys are the user's


def known(name: str) -> bool:
    return name.startswith(OPEN) or any(name == one or one.startswith(f"{name}.") for one in NAMES)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_parameters_of_a_page_exist(page: Path) -> None:
    found = re.findall(rf"`((?:{'|'.join(SECTIONS)})(?:\.[a-z_0-9]+)+)(?=[`:= ])", page.read_text())
    others = {name for name in found if name.endswith((".py", ".yaml", ".safetensors", ".b3", ".md", "package.module"))}
    assert [name for name in found if not known(name) and name not in others] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_yaml_of_a_page_is_read_as_dvc_reads_it(page: Path) -> None:
    indented = rf"^ {{4}}(?:{'|'.join(SECTIONS)}):[ \n].*\n(?: {{4}}.*\n)*"
    for block in re.findall(rf"```yaml\n(?s:.*?)```|{indented}", page.read_text(), re.MULTILINE):
        assert YAML(typ="safe").load(block.removeprefix("```yaml").removesuffix("```").replace("…", "a: 1"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_options_of_a_page_exist(page: Path) -> None:
    for words in re.findall(r"(?:^ {4}(?:\$ )?|`)shardline ([^`#\n]+)", page.read_text(), re.MULTILINE):
        command = typer.main.get_command(app)
        for word in words.split():
            command = getattr(command, "commands", {}).get(word, command)
        options = {"--help"}.union(*(parameter.opts for parameter in command.params))
        assert set(re.findall(r"(?<!\S)--?[a-z][\w-]*", words)) <= options, words


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_of_a_page_lead_somewhere(page: Path) -> None:
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]+))?\)", page.read_text()):
        other = page.parent / target if target else page
        assert other.exists(), target
        if anchor:
            heads = re.findall(r"^#+ (.+)$", other.read_text(), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", head).lower().replace(" ", "-") for head in heads}, anchor
