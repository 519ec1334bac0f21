"""Bytes: lakes, zones, manifests, shards, caches. Knows nothing of training, scheduling or tracking."""
