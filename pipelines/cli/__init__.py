"""The `shardline` command, a file a group of commands: nothing but parsing, calling, printing.

Nothing heavy is imported here: `--help` answers at once, each command imports its own.
"""

from pipelines.cli import use, stages, look, dvc, caches, compare  # noqa: I001 - the order of `--help`
from pipelines.cli.app import app
from pipelines.cli.entry import main

__all__ = ["app", "caches", "compare", "dvc", "look", "main", "stages", "use"]
