"""Shardline's sources, a module each; `ingest.sources` finds them by their `name`."""
