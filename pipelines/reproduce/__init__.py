"""A recipe as DVC runs it: its process, its stages, its lock, and one writer at a time."""
