"""The metrics of an evaluation: their names, and those that a recipe adds."""
