"""Samples compared by their content: which are equal, and which split each belongs to."""
