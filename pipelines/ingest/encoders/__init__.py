"""Curated rows → the arrays of a shard."""
