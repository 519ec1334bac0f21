"""A recipe tried in several ways, beside its outs: comparisons, and the largest batch."""
