"""Domains in the data stages: a file's travels with all that is made of it, and nothing mixes two.

Records and keys say nothing of domains where there are none, so that such a dataset is the same to the last byte.
"""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from pipelines.ingest.rows import Rows

Records = list[dict[str, Any]]


def mark(domain: str | None) -> dict[str, str]:
    """What a record or payload says of its domain."""
    return {} if domain is None else {"domain": domain}


def salt(domain: str | None) -> list[str]:
    """What a key says of it."""
    return [] if domain is None else [domain]


def inside(domain: str | None, name: str) -> str:
    """The name of something of `domain`: code/setup.py."""
    return name if domain is None else f"{domain}/{name}"


def outside(domain: str | None, name: str) -> str:
    """The name without the domain, which says nothing of the file: no class of an image, say."""
    return name if domain is None else name.removeprefix(f"{domain}/")


def by_domain(records: Iterable[dict[str, Any]]) -> list[tuple[str | None, Records]]:
    """(domain, its records in their order), by the domains' names; (None, all) where there are none."""
    found: dict[str | None, Records] = {}
    for record in records:
        found.setdefault(record.get("domain"), []).append(record)
    return sorted(found.items(), key=lambda part: part[0] or "")


def named(rows: Rows, domain: str | None) -> Rows:
    """`rows` with the names of samples, and of what was set aside, inside the domain."""
    if domain is None:
        return rows
    aside = [{**entry, "name": inside(domain, entry["name"])} for entry in rows.quarantined]
    return replace(rows, ids=[inside(domain, name) for name in rows.ids], quarantined=aside)
