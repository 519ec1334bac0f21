"""What a person asks of a project: its recipes, parameters, zones and runs."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute

from pipelines.console.formats import human_bytes
from pipelines.console.progress import progress, say
from pipelines.console.tables import print_table
from pipelines.ingest.stage import DUPLICATES, QUARANTINE
from pipelines.params import FILENAME, describe, load_params, suggestion
from pipelines.reproduce.parents import tell_of_other_parents
from pipelines.workspace import INTO_THE_PROJECT, Workspace, project_root
from pipelines.workspace import recipes as find_recipes
from storage.errors import DataError, DigestError, LakeError, ParamsError, ShardlineError
from storage.lake import ZONES

if TYPE_CHECKING:
    from storage.manifest import Manifest


_HIDDEN = ("key", "stats", "digest", "left_out")  # columns of manifests that tell a person nothing
_MOST = 10  # objects whose errors are shown
_PARAMETER = ("parameter", "type", "default", "meaning")
_SIZES = ("bytes", "plain_bytes")  # in the lake, and decompressed


def list_recipes() -> list[dict[str, Any]]:
    """What `show_recipes` shows; `invalid` says what is wrong with a recipe. Raises ParamsError where there is none."""
    project = project_root()
    if not find_recipes(project):
        raise ParamsError(f"No recipes: {project} has neither {FILENAME} nor recipes/*/{FILENAME}. {INTO_THE_PROJECT}")
    return [_recipe(name, folder, project) for name, folder in find_recipes(project).items()]


def _recipe(name: str, folder: Path, project: Path) -> dict[str, Any]:
    try:
        ws = Workspace(folder, project, load_params(folder / FILENAME))
        shards = ws.zone("shards")
        version = shards.manifest().digest if shards.complete else None
    except ShardlineError as error:
        return {"recipe": name, "invalid": str(error)}
    about = {"recipe": name, "sources": ws.params.ingest.listed, "model": ws.params.model.name}
    return about | {"data": version, "promoted": ws.promotion.is_file()}


def show_recipes() -> None:
    """One row a recipe."""
    rows = []
    for one in list_recipes():
        if "invalid" in one:
            rows.append([one["recipe"], f"invalid: {one['invalid'].splitlines()[:2][-1].strip()}"])
            continue
        sources, promoted = ", ".join(one["sources"]), "yes" if one["promoted"] else "-"
        rows.append([one["recipe"], sources, one["model"], (one["data"] or "-")[:12], promoted])
    print_table(["recipe", "sources", "model", "data", "promoted"], rows)


def list_params(prefix: str | None) -> list[dict[str, str]]:
    """The parameters whose names start so. Raises ParamsError where none does."""
    rows = [row for row in describe() if row[0].startswith(prefix or "")]
    if not rows:
        raise ParamsError(f"No parameter starts with {prefix!r}{_near(str(prefix))}")
    return [dict(zip(_PARAMETER, row, strict=True)) for row in rows]


def show_params(prefix: str | None) -> None:
    """One row a parameter."""
    print_table(_PARAMETER, [list(row.values()) for row in list_params(prefix)])


def _near(name: str) -> str:
    """The parameters of that name in some section, else the nearest one, else the sections."""
    names = [row[0].partition(" (")[0] for row in describe()]
    if same := [known for known in names if known.endswith(f".{name}")]:
        return f". Did you mean {' or '.join(dict.fromkeys(same))}?"
    sections = list(dict.fromkeys(known.partition(".")[0] for known in names))
    return suggestion(name, names, instead=sections)


def describe_zone(ws: Workspace, name: str) -> dict[str, Any]:
    """What a zone holds, for programs. Raises DataError where it has no manifest."""
    manifest = _manifest(ws, name)
    table, header = manifest.table, manifest.header
    splits = manifest.splits if "split" in table.column_names else []
    sizes = {column: pa.compute.sum(table[column]).as_py() or 0 for column in _SIZES if column in table.column_names}
    return {
        "zone": name, "where": ws.zone(name).describe(), "version": manifest.digest, "kind": header["kind"],
        "parents": header.get("parents", {}), "counts": header.get("counts", {}), "objects": table.num_rows, **sizes,
        "rows": {split: pa.compute.sum(manifest.select(split)["rows"]).as_py() or 0 for split in splits},
        "domains": list(manifest.domains),
    }  # fmt: skip


def _manifest(ws: Workspace, name: str) -> "Manifest":
    zone = ws.zone(name)
    if not zone.complete:
        raise DataError(f"{zone.folder}: no manifest yet. Run `shardline repro` first.")
    return zone.manifest()


def show_zone(ws: Workspace, name: str) -> None:
    """Version, lineage, splits and the first objects of a zone."""
    zone, manifest = ws.zone(name), _manifest(ws, name)
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
    print_table(columns, [[str(row[column]) for column in columns] for row in rows])
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
    names = [name for name in _SIZES if name in manifest.table.column_names]
    stored, *plain = (int(pa.compute.sum(manifest.table[name]).as_py() or 0) for name in names)
    more = f" ({human_bytes(plain[0])} plain)" if plain and plain[0] != stored else ""
    return human_bytes(stored) + more


def verify_zones(ws: Workspace, name: str | None) -> list[dict[str, Any]]:
    """Re-read every object of a zone, or of all. Returns for each how many there are, and what is wrong with some."""
    found = []
    for zone_name in [name] if name else ZONES:
        zone = ws.zone(zone_name)
        if not zone.complete:
            say(f"{zone_name}: no manifest yet")
            continue
        manifest = zone.manifest()
        damaged: list[str] = []
        with progress(f"verify {zone_name}", manifest.table.num_rows, "objects") as advance:
            names = [name for name in ("path", "digest", "plain_bytes") if name in manifest.table.column_names]
            for record in manifest.table.select(names).to_pylist():
                try:
                    zone.verify(*record.values())
                except (DigestError, LakeError) as error:
                    damaged.append(str(error))
                advance()
        objects = manifest.table.num_rows
        say(f"{zone_name}: {objects - len(damaged)} objects as the manifest says, {len(damaged)} not")
        tell_of_other_parents(ws, zone_name)
        found.append({"zone": zone_name, "version": manifest.digest, "objects": objects, "damaged": damaged})
    return found


def report_damage(found: list[dict[str, Any]]) -> None:
    """Raises DataError that lists the damaged objects, if there are any."""
    damaged = [error for one in found for error in one["damaged"]]
    if damaged:
        more = f"\n… and {len(damaged) - _MOST} more" if len(damaged) > _MOST else ""
        raise DataError("\n".join(damaged[:_MOST]) + more)
