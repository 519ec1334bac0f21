"""`python -m benchmarks [NAME]`: list the benchmarks, or run one, or all."""

import argparse
import json
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks import results
from benchmarks.catalogue import SENTENCES, question
from benchmarks.setting import Setting


def main() -> int:
    """List without a name; else run, print the table, and with --json one JSON object on the last line."""
    arguments = _parse()
    if arguments.name is None:
        return _list()
    if arguments.name == "document":
        results.write_document()
        return 0
    setting = Setting(arguments.data.resolve(), arguments.quick, arguments.tiny, arguments.peers)
    if arguments.name == "all":
        return _run_all(setting, arguments)
    result = _run(arguments.name, setting, arguments)
    if arguments.json:
        print(json.dumps(result))
    return 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Benchmarks, peers side by side.")
    names = [*SENTENCES, "all", "document"]
    parser.add_argument(
        "name", nargs="?", choices=names, metavar="NAME", help="which one; `all`; `document` (docs/benchmarks.md anew)"
    )
    parser.add_argument("--quick", action="store_true", help="a look, within 60 s once data is made")
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line")
    parser.add_argument("--plot", action="store_true", help="draw docs/benchmarks/NAME.png")
    parser.add_argument(
        "--save", action="store_true", help="keep the result and its plot, and show them in docs/benchmarks.md"
    )
    parser.add_argument("--data", type=Path, default=Setting.data, help="where data is kept (%(default)s)")
    parser.add_argument("--no-peers", dest="peers", action="store_false", help="without the peers' environment")
    parser.add_argument("--tiny", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def _list() -> int:
    console = Console()
    for name, sentence in SENTENCES.items():
        console.print(f"  [bold]{name:<14}[/bold] {sentence}", highlight=False, soft_wrap=True)
    return 0


def _run(name: str, setting: Setting, arguments: argparse.Namespace) -> dict[str, Any]:
    begun = time.perf_counter()
    outcome = question(name)(setting)
    outcome.show()
    result = outcome.to_json(setting) | {"took_seconds": round(time.perf_counter() - begun, 1)}
    if arguments.save:
        results.save(result)
        results.write_document()
    elif arguments.plot:
        results.plot(result)
    return result


def _run_all(setting: Setting, arguments: argparse.Namespace) -> int:
    """Every benchmark, one after the other; one that breaks doesn't stop the others, but the exit code says it."""
    found, broken = {}, []
    for name in SENTENCES:
        try:
            found[name] = _run(name, setting, arguments)
        except Exception:
            traceback.print_exc()
            broken.append(name)
    Console().print(results.summary(found))
    if broken:
        print(f"broken: {', '.join(broken)}", file=sys.stderr)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
