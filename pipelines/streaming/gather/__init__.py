"""Whole batches out of open shards: each kind of column is gathered its own way."""
