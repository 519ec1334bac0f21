"""Shardline's models, a module each; `model.name` finds them by their `name`."""
