"""Whether there is something to evaluate on. Importing this does not import torch."""

from storage.errors import DataError
from storage.manifest import Manifest


def check_split(manifest: Manifest, split: str) -> None:
    """Raises DataError for a split without samples."""
    if not any(manifest.select(split)["rows"].to_pylist()):
        known = [name for name in ("val", "test") if any(manifest.select(name)["rows"].to_pylist())]
        raise DataError(
            f"The shards (version {manifest.digest[:12]}) have no samples in split {split!r}. "
            f"Raise curate.split.{split}, add sources, or set evaluate.split to one of: {', '.join(known) or 'none'}."
        )
