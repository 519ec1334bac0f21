"""The peers, each with a loop that its own users would write; in the environment of benchmarks/peers.lock."""
