"""Ranks that take no step any more: noticed, named with their stacks, and ended."""
