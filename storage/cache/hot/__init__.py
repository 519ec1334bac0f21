"""The hot cache: shards in Redis for the whole cluster."""
