"""`python -m benchmarks [NAME]`: list the benchmarks, or run one."""

import argparse
import json
import sys
from pathlib import Path

from rich.console import Console

from benchmarks.catalogue import SENTENCES, question
from benchmarks.setting import Setting


def main() -> int:
    """List without a name; else run, print the table, and with --json one JSON object on the last line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Benchmarks, peers side by side.")
    parser.add_argument("name", nargs="?", choices=[*SENTENCES], metavar="NAME", help="which one; none lists them")
    parser.add_argument("--quick", action="store_true", help="a look, within 60 s once data is made")
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line")
    parser.add_argument("--data", type=Path, default=Setting.data, help="where data is kept (%(default)s)")
    parser.add_argument("--no-peers", dest="peers", action="store_false", help="without the peers' environment")
    parser.add_argument("--tiny", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.name is None:
        console = Console()
        for name, sentence in SENTENCES.items():
            console.print(f"  [bold]{name:<14}[/bold] {sentence}", highlight=False, soft_wrap=True)
        return 0
    setting = Setting(arguments.data.resolve(), arguments.quick, arguments.tiny, arguments.peers)
    outcome = question(arguments.name)(setting)
    outcome.show()
    if arguments.json:
        print(json.dumps(outcome.to_json(setting)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
