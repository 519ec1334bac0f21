"""Files that are whole or absent, and what is left of processes that were killed."""

import os
import re
import time
from pathlib import Path

import pytest

from storage.atomic import sweep_temporaries, temporary_file

ANY = re.compile(r".*\.tmp")


@pytest.mark.parametrize(("age", "swept"), [(86400, 1), (-86400, 1), (-60, 0)])
def test_what_the_dead_left_is_removed_also_when_the_clock_was_set_back(tmp_path: Path, age: int, swept: int) -> None:
    """What was made since this process began may be another's that hasn't locked it yet."""
    left = tmp_path / "left.tmp"
    left.touch()
    os.utime(left, (time.time() - age,) * 2)
    assert sweep_temporaries(tmp_path, ANY) == swept
    assert left.exists() == (not swept)


def test_what_a_living_process_writes_stays(tmp_path: Path) -> None:
    with temporary_file(tmp_path, "x") as temporary:
        os.utime(temporary, (0, 0))
        assert sweep_temporaries(tmp_path, ANY) == 0
        assert temporary.exists()
