"""Rules of the house that no tool knows: how much a function may be asked to hold, and by which names it is called."""

import ast
from collections.abc import Iterator

import pytest
from conftest import REPOSITORY

MOST = 8  # arguments; what takes more has parts

#: What takes more, and why it may.
MORE = {
    "pipelines/models/architectures/resnet.py: ResNet.__init__": "the model's public parameters, by model.args",
    "pipelines/models/architectures/transformer.py: Transformer.__init__": "the model's public parameters",
    "pipelines/models/architectures/vit.py: ViT.__init__": "the model's public parameters, by model.args",
    "pipelines/profiling/bottleneck.py: Figures": "figures of one window, told by --json under these names",
    "pipelines/streaming/meter.py: Times": "figures of one meter",
    "pipelines/training/state.py: TrainState": "what a checkpoint holds, under these names",
}
FILES = sorted(
    file.relative_to(REPOSITORY)
    for top in ("flows", "pipelines", "storage")
    for file in (REPOSITORY / top).rglob("*.py")
)


def counted(tree: ast.AST, within: str = "") -> Iterator[tuple[str, int]]:
    """(name, arguments) of each function and of each dataclass' constructor."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            yield f"{within}{node.name}", sum(one.arg not in ("self", "cls") for one in arguments)
        elif isinstance(node, ast.ClassDef) and any("dataclass" in ast.unparse(one) for one in node.decorator_list):
            fields = [one for one in node.body if isinstance(one, ast.AnnAssign)]
            yield f"{within}{node.name}", sum("init=False" not in ast.unparse(one) for one in fields)
        inner = f"{within}{node.name}." if isinstance(node, ast.ClassDef | ast.FunctionDef) else within
        yield from counted(node, inner)


def test_nothing_takes_more_arguments_than_can_be_told_apart() -> None:
    found = {
        f"{file}: {name}": count
        for file in FILES
        for name, count in counted(ast.parse((REPOSITORY / file).read_text()))
        if count > MOST
    }
    assert len(FILES) > 200
    assert {name: count for name, count in found.items() if name not in MORE} == {}
    assert set(MORE) == set(found), "an exception that is none any more"


@pytest.mark.parametrize("file", sorted((REPOSITORY / "pipelines" / "cli").glob("*.py")), ids=lambda file: file.stem)
def test_commands_call_functions_by_their_own_names(file) -> None:
    imports = [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.ImportFrom)]
    assert [ast.unparse(node) for node in imports if any(name.asname for name in node.names)] == []
