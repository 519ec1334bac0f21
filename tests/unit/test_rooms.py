"""The house stays in order: rooms of few and short files, described where they stand, and no former word in a name."""

import ast
import re
import subprocess
import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import PurePosixPath

import pytest
from conftest import REPOSITORY

PACKAGES = ("pipelines", "storage", "flows", "benchmarks")
MODULES_OF_A_PACKAGE = 12
LINES_OF_A_FILE = 400

#: Words that gave way to the field's (docs/decisions/0056): former → present.
FORMER = {
    "arrange": "parallelize", "charges": "token cost", "chosen": "custom metrics", "collector": "gc tuning",
    "direct": "S3 reads", "entry": "pyfunc", "exchange": "gradient sync", "handoff": "trainer job",
    "identity": "fingerprint", "interface": "signature", "largest": "batch size finder", "leash": "supervisor",
    "leftovers": "process sweep", "lifeline": "parent death", "logged": "logged model", "network": "communication",
    "pieces": "microbatches", "pulse": "heartbeat", "secret": "redact", "served": "predictor", "shelf": "retention",
    "speaks": "owns_loss", "spending": "run cost", "staged": "pipeline parallel", "verdict": "bottleneck",
    "watch": "deadline", "window": "lookahead", "wire": "traffic",
}  # fmt: skip

#: Former words that are everyday ones, too: functions and arguments may have them, modules and classes may not.
EVERYDAY = {"chosen", "direct", "entry", "largest", "network", "pieces", "secret", "staged", "watch", "window"}

#: Modules, classes and parameters that have such a name for another thing.
OTHERS = {
    "pipelines/params/data.py window",  # of a lane
    "pipelines/cli/entry.py entry",  # the entry point of the command
    "pipelines/experiments/comparison/contest.py Entry",  # in a contest
    "pipelines/streaming/order/layout.py _Pieces",  # of shards in a lane
    "pipelines/training/parallelism/runner.py Direct",  # a model that no pipeline divides
    "tests/numerics/test_communication.py Watch",  # over what a test sees
}


def python_files() -> list[PurePosixPath]:
    """All that git knows or would, from the repository's root."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.py"]
    listed = subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True, text=True).stdout.splitlines()
    return sorted({PurePosixPath(name) for name in listed if (REPOSITORY / name).exists()})


def rooms() -> list[str]:
    """As the contract has them, from the top down."""
    contracts = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    [layers] = [contract["layers"] for contract in contracts if contract.get("containers") == ["pipelines"]]
    return list(layers)


def test_every_module_of_pipelines_stands_in_a_room() -> None:
    beside = {file.name for file in python_files() if file.parent == PurePosixPath("pipelines")}
    assert beside == {"__init__.py", "workspace.py"}


def test_a_package_has_few_modules() -> None:
    counts = Counter(str(file.parent) for file in python_files() if file.parts[0] in PACKAGES)
    assert {package: count for package, count in counts.items() if count > MODULES_OF_A_PACKAGE} == {}


def test_files_are_short() -> None:
    lengths = {str(file): len((REPOSITORY / file).read_text().splitlines()) for file in python_files()}
    assert {file: length for file, length in lengths.items() if length > LINES_OF_A_FILE} == {}


def test_the_architecture_lists_the_rooms_in_the_order_of_the_contract() -> None:
    page = (REPOSITORY / "docs" / "architecture.md").read_text()
    [table] = re.findall(r"(?s)\| room \|.*?\n\n", page)
    assert [room.rstrip("/").removesuffix(".py") for room in re.findall(r"(?m)^\| `([^`]+)` \|", table)] == rooms()


def test_the_way_of_the_data_comes_through_each_room_once() -> None:
    page = (REPOSITORY / "docs" / "architecture.md").read_text()
    way = page[page.index("## From a source file to the loss") : page.index("## Layers")]
    named = Counter(re.findall(r"`pipelines/(\w+)", way))
    assert named == Counter(rooms())


def names_in(file: PurePosixPath) -> Iterator[tuple[str, bool]]:
    """Names of a file's folders, of itself, its classes, their fields, functions and arguments; and whether an everyday
    word may not be one: that of a module, a class, or a parameter in params.yaml."""
    described = file.is_relative_to("pipelines/params")
    yield from ((part, True) for part in (*file.parent.parts, file.stem.removeprefix("test_")))
    for node in ast.walk(ast.parse((REPOSITORY / file).read_text())):
        if isinstance(node, ast.ClassDef):
            yield node.name, True
            for field in node.body:
                if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                    yield field.target.id, described
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, False
        elif isinstance(node, ast.arg):
            yield node.arg, False


def is_former(name: str, *, strict: bool) -> bool:
    word = name.lower().strip("_")
    return word in FORMER and (strict or word not in EVERYDAY)


@pytest.mark.parametrize("root", [*PACKAGES, "tests", "examples"])
def test_no_former_word_comes_back_as_a_name(root: str) -> None:
    files = [file for file in python_files() if file.parts[0] == root]
    found = {f"{file} {name}" for file in files for name, strict in names_in(file) if is_former(name, strict=strict)}
    assert found - OTHERS == set(), "the present words stand in FORMER, above"
    gone = {other for other in OTHERS if other.startswith(f"{root}/")} - found
    assert gone == set(), "these exceptions are not needed any more"
