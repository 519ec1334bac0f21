"""How a benchmark runs: where the data lies, how long, and against whom."""

import os
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Setting:
    """`data` keeps what is made once. `quick` is for a look, `tiny` for tests (small data, a moment), `peers` whether
    the peers run too."""

    data: Path = ROOT / ".benchmarks"
    quick: bool = False
    tiny: bool = False
    peers: bool = True

    @property
    def rounds(self) -> int:
        return 1 if self.tiny else 3

    @property
    def seconds(self) -> float:
        """Of a round."""
        return 0.05 if self.tiny else 0.5 if self.quick else 3.0

    @property
    def peers_python(self) -> Path:
        """The interpreter of the peers' environment; a missing one is said, with what makes it."""
        python = Path(os.environ.get("SHARDLINE_PEERS", ROOT / ".venv-peers")) / "bin/python"
        if not python.exists():
            raise SystemExit(f"{python} is missing: make the peers' environment by `make bench-setup`, or --no-peers.")
        return python

    def module(self, name: str) -> str:
        """The full name of contender `name`'s module: those that are named after a peer are in its room."""
        return f"benchmarks.{'peers' if name.startswith('with_') else 'contenders'}.{name}"

    def python(self, module: str) -> str:
        """The interpreter for contender `module`: the peers' for those that are named after one."""
        return str(self.peers_python) if module.startswith("with_") else sys.executable
