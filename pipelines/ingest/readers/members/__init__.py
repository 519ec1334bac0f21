"""Shardline's readers, a module each; `curate.reader` finds them by their `name`."""
