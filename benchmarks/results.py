"""Results that are kept: a JSON file and a plot a benchmark in docs/benchmarks, and docs/benchmarks.md made of them."""

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.catalogue import SENTENCES
from benchmarks.chart import draw
from benchmarks.setting import ROOT

FOLDER = ROOT / "docs" / "benchmarks"
DOCUMENT = ROOT / "docs" / "benchmarks.md"
BEGIN, END = "<!-- results: begin, made by `python -m benchmarks document` -->", "<!-- results: end -->"


def plot(result: dict[str, Any], folder: Path = FOLDER) -> Path:
    """Draw the result into `folder`."""
    file = folder / f"{result['name']}.png"
    draw(result, file)
    return file


def save(result: dict[str, Any], folder: Path = FOLDER) -> None:
    """Keep the result and its plot in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{result['name']}.json").write_text(json.dumps(result, indent=1) + "\n")
    plot(result, folder)


def kept(folder: Path = FOLDER) -> dict[str, dict[str, Any]]:
    """The results in `folder` by name, in the catalogue's order."""
    files = {name: folder / f"{name}.json" for name in SENTENCES}
    return {name: json.loads(file.read_text()) for name, file in files.items() if file.is_file()}


def summary(results: dict[str, dict[str, Any]]) -> Table:
    """One line a bar: what had to be reached, what was found."""
    table = Table(title="benchmarks", title_justify="left")
    for place, column in enumerate(["", "bar", "must be", "found", ""]):
        table.add_column(column, justify="right" if place in (2, 3) else "left")
    for name, result in results.items():
        for place, bar in enumerate(result["bars"]):
            bottleneck = "[green]reached[/green]" if bar["reached"] else "[red]missed[/red]"
            table.add_row(name if not place else "", bar["what"], _wanted(bar), f"{bar['found']:.3g}", bottleneck)
    return table


def write_document(folder: Path = FOLDER, document: Path = DOCUMENT) -> None:
    """Put the kept results between the marks of docs/benchmarks.md; the words around them are a person's."""
    text = document.read_text()
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    results = kept(folder)
    document.write_text(before + BEGIN + "\n\n" + _markdown(results) + "\n" + END + after)
    Console(stderr=True).print(f"{document}: {len(results)} results")


def _markdown(results: dict[str, dict[str, Any]]) -> str:
    lines = ["| benchmark | bar | must be | found | |", "| --- | --- | --- | --- | --- |"]
    for name, result in results.items():
        for place, bar in enumerate(result["bars"]):
            link = f"[{name}](#{name})" if not place else ""
            bottleneck = "reached" if bar["reached"] else "**missed**"
            lines.append(f"| {link} | {bar['what']} | {_wanted(bar)} | {bar['found']:.3g} | {bottleneck} |")
    for name, result in results.items():
        lines += ["", f"### {name}", "", SENTENCES[name], ""]
        lines += [_row(result["columns"]), _row(["---"] * len(result["columns"]))]
        lines += [_row(row) for row in result["table"]]
        lines += ["", f"![{name}](benchmarks/{name}.png)", "", _origin(result)]
    return "\n".join(lines) + "\n"


def _origin(result: dict[str, Any]) -> str:
    machine, versions = (
        result["machine"],
        ", ".join(f"{name} {version}" for name, version in result["versions"].items()),
    )
    quick = ", with --quick" if result["quick"] else ""
    return (
        f"{result['date']}{quick}, {machine['processor']}, {machine['cores']} cores, {machine['memory_gib']} GiB, "
        f"{machine['system']}, load {machine['load']} at the end; {versions}."
    )


def _wanted(bar: dict[str, Any]) -> str:
    return f"{'≤' if bar['most'] else '≥'} {bar['wanted']:g}"


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"
