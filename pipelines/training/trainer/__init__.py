"""A trainer of the user's own: what it is given, and how it is run."""
