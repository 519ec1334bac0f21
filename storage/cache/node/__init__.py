"""The node cache: shards as files on this machine's disk."""
