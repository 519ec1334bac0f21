"""What competes, each in a process of its own; the peers run in their own environment and import no Shardline."""
