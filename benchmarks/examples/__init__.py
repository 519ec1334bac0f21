"""Shardline beside other frameworks, run in the peers' environment."""
