"""Shardline's losses, a module each; `train.loss` finds them by their `name`."""
