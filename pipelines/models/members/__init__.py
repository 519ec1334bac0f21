"""Models and losses by name: their parameters, without torch."""
