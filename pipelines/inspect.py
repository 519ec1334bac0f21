"""What a person asks of a project: its recipes, parameters, zones and runs."""

import errno
import os
import socket
import sys
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute
from rich.console import Console
from rich.table import Table

from pipelines.ingest.stage import DUPLICATES, QUARANTINE, human_bytes
from pipelines.params import FILENAME, describe, load_params, suggestion
from pipelines.progress import progress, say
from pipelines.workspace import INTO_THE_PROJECT, Workspace, project_root
from pipelines.workspace import recipes as find_recipes
from storage.errors import DataError, DigestError, LakeError, ParamsError, ShardlineError
from storage.lake import ZONES

if TYPE_CHECKING:
    from storage.manifest import Manifest


_HIDDEN = ("key", "stats", "digest", "left_out")  # columns of manifests that tell a person nothing
_MOST = 10  # objects whose errors are shown


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _print(table: Table) -> None:
    Console(width=None if sys.stdout.isatty() else 200, markup=False).print(table)


def show_recipes() -> None:
    """One row a recipe. Raises ParamsError where there is none."""
    project = project_root()
    if not find_recipes(project):
        raise ParamsError(f"No recipes: {project} has neither {FILENAME} nor recipes/*/{FILENAME}. {INTO_THE_PROJECT}")
    table = _table("recipe", "sources", "model", "data", "promoted")
    for name, folder in find_recipes(project).items():
        try:
            ws = Workspace(folder, project, load_params(folder / FILENAME))
            shards = ws.zone("shards")
            version = shards.manifest().digest[:12] if shards.complete else "-"
        except ShardlineError as error:
            table.add_row(name, f"invalid: {str(error).splitlines()[:2][-1].strip()}")
            continue
        promoted = "yes" if ws.promotion.is_file() else "-"
        table.add_row(name, ", ".join(ws.params.ingest.listed), ws.params.model.name, version, promoted)
    _print(table)


def show_params(prefix: str | None) -> None:
    """One row a parameter."""
    rows = [row for row in describe() if row[0].startswith(prefix or "")]
    if not rows:
        raise ParamsError(f"No parameter starts with {prefix!r}{_near(str(prefix))}")
    table = _table("parameter", "type", "default", "meaning")
    for row in rows:
        table.add_row(*row)
    _print(table)


def _near(name: str) -> str:
    """The parameters of that name in some section, else the nearest one, else the sections."""
    names = [row[0].partition(" (")[0] for row in describe()]
    if same := [known for known in names if known.endswith(f".{name}")]:
        return f". Did you mean {' or '.join(dict.fromkeys(same))}?"
    sections = list(dict.fromkeys(known.partition(".")[0] for known in names))
    return suggestion(name, names, instead=sections)


def show_zone(ws: Workspace, name: str) -> None:
    """Version, lineage, splits and the first objects of a zone."""
    zone = ws.zone(name)
    if not zone.complete:
        raise DataError(f"{zone.folder}: no manifest yet. Run `shardline repro` first.")
    manifest = zone.manifest()
    say(f"zone      {name} at {zone.describe()}")
    say(f"version   {manifest.digest}")
    for parent, digest in manifest.header.get("parents", {}).items():
        say(f"from      {parent} {digest}")
    say(f"kind      {manifest.header['kind']}  {manifest.header.get('counts', {})}")
    say(f"objects   {manifest.table.num_rows}, {_sizes(manifest)}")
    for domain in manifest.domains:
        say(f"domain    {domain}: {_of_domain(manifest, domain)}")
    if (zone.folder / QUARANTINE).is_file():
        say(f"set aside {sum(1 for _ in (zone.folder / QUARANTINE).open())}, see {zone.folder / QUARANTINE}")
    if (zone.folder / DUPLICATES).is_file():
        say(f"left out duplicates, see {zone.folder / DUPLICATES}")
    shown = [name for name in manifest.table.column_names if name not in _HIDDEN]
    rows = manifest.table.slice(0, 10).select(shown).to_pylist()
    columns = [name for name in shown if any(row[name] for row in rows)]
    table = _table(*columns)
    for row in rows:
        table.add_row(*(str(row[column]) for column in columns))
    _print(table)
    if manifest.table.num_rows > 10:
        say(f"… and {manifest.table.num_rows - 10} more")


def _of_domain(manifest: "Manifest", domain: str) -> str:
    """Objects and rows, in each split where the zone has them."""
    table = manifest.table.filter(pa.compute.equal(manifest.table["domain"], domain))
    if "split" not in table.column_names:
        return f"{table.num_rows} files"
    rows = {split: pa.compute.sum(manifest.select(split, domain)["rows"]).as_py() or 0 for split in manifest.splits}
    return f"{table.num_rows} objects, " + ", ".join(f"{split} {count}" for split, count in rows.items())


def _sizes(manifest: "Manifest") -> str:
    """What the objects take in the lake and, where some are compressed at rest, once decompressed."""
    names = [name for name in ("bytes", "plain_bytes") if name in manifest.table.column_names]
    stored, *plain = (int(pa.compute.sum(manifest.table[name]).as_py() or 0) for name in names)
    more = f" ({human_bytes(plain[0])} plain)" if plain and plain[0] != stored else ""
    return human_bytes(stored) + more


def verify_zones(ws: Workspace, name: str | None) -> None:
    """Re-read every object; raises DataError that lists the damaged ones."""
    damaged: list[str] = []
    for zone_name in [name] if name else ZONES:
        zone = ws.zone(zone_name)
        if not zone.complete:
            say(f"{zone_name}: no manifest yet")
            continue
        manifest = zone.manifest()
        bad = 0
        with progress(f"verify {zone_name}", manifest.table.num_rows, "objects") as advance:
            for record in manifest.table.select(["path", "digest"]).to_pylist():
                try:
                    zone.verify(record["path"], record["digest"])
                except (DigestError, LakeError) as error:
                    bad += 1
                    damaged.append(str(error))
                advance()
        say(f"{zone_name}: {manifest.table.num_rows - bad} objects as the manifest says, {bad} not")
    if damaged:
        more = f"\n… and {len(damaged) - _MOST} more" if len(damaged) > _MOST else ""
        raise DataError("\n".join(damaged[:_MOST]) + more)


def open_ui(host: str, port: int) -> None:
    """Become `mlflow ui` over the project's store. Raises ParamsError for a folder without a project, and for a port
    on which something listens."""
    project = project_root()
    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{project}/.shardline/mlflow/mlflow.db"
    if uri.startswith(("http://", "https://")):
        say("The runs are on the server that MLFLOW_TRACKING_URI names: open its address in a browser.")
        return
    if not (os.environ.get("MLFLOW_TRACKING_URI") or find_recipes(project)):  # a typo's empty store would be left
        raise ParamsError(f"No runs: {project} is no project. {INTO_THE_PROJECT}")
    _ask_for(host, port)
    # One worker is up in a fraction of the time of mlflow's four, and a person alone keeps none of them busy.
    command = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", uri, "--host", host, "--port", str(port)]
    command += ["--workers", "1"]
    os.environ.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")  # more processes, for judges of answers
    os.environ.setdefault("PYTHONWARNINGS", "ignore")  # of MLflow's own code about its libraries
    say(f"http://{host}:{port} shows the runs of {uri}; Ctrl-C ends it.")
    os.execv(sys.executable, command)


def _ask_for(host: str, port: int) -> None:
    """Raises ParamsError where one cannot listen: MLflow's server would say so among its lines, and leave with 0."""
    try:
        family, kind, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # of a UI that has just ended
            listener.bind(address)
    except OSError as error:
        taken = " Another program (another `make ui`?) listens there." if error.errno == errno.EADDRINUSE else ""
        other = port % 65535 + 1
        raise ParamsError(
            f"The UI cannot listen on {host}, port {port}: {error.strerror or error}.{taken} Choose another place with "
            f"--port or --host: `shardline ui --port {other}`, `make ui ARGS='--port {other}'`."
        ) from error
