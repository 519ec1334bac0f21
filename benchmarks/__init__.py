"""Benchmarks: one module a question, peers side by side. `python -m benchmarks` lists them."""
