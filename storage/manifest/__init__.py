"""Manifests: what a dataset version holds. The digest of a manifest *is* the version."""

from storage.manifest.manifest import CORE_COLUMNS, DOMAIN_COLUMN, FILENAME, FORMATS, ZONE_COLUMNS, Manifest

__all__ = ["CORE_COLUMNS", "DOMAIN_COLUMN", "FILENAME", "FORMATS", "ZONE_COLUMNS", "Manifest"]
