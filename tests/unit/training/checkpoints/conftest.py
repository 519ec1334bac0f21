"""A model in training, and its checkpoints."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.checkpoint_case import Case


@pytest.fixture
def case(tmp_path: Path) -> Iterator[Case]:
    case = Case(tmp_path / "key")
    yield case
    case.saver.close()
